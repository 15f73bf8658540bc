"""Labels of a dataset beside the classes of the settings: one spelling for both, and one comparison."""

from collections.abc import Iterable, Mapping, Sequence

from emocap_shards.inspecting.label_values import LabelValues, label_values

from emocap_pretrain.checkpoint.manifest import Checkpoint
from emocap_pretrain.config.fields import label_text
from emocap_pretrain.config.schema import Config, Evaluation
from emocap_pretrain.errors import ConfigError

SHOWN = 8


def check_labels(settings: Evaluation, *, seconds: float | None = None) -> LabelValues | None:
    """Compare every label of the evaluation dataset with the classes; None where nothing is evaluated.

    Args:
        settings: Dataset, label, classes.
        seconds: Stop reading after this time; the result says how many samples were compared. None reads all.

    Raises:
        ConfigError: If no sample has the label, or `evaluation.classes` lacks a label.
        ShardsError: If the dataset cannot be read, or is damaged.
    """
    if settings.url is None:
        return None
    found = label_values(settings.url, settings.label, seconds=seconds)
    if found.values or found.complete:
        classes_of(settings, map(label_text, found.values), found.names)
    return found


def were_compared(checkpoint: Checkpoint | None, config: Config) -> bool:
    """Whether an attempt with these evaluation settings has made a checkpoint, and so has compared all labels."""
    before = checkpoint.state.get("config") if checkpoint else None
    return isinstance(before, dict) and before.get("evaluation") == config.stored()["evaluation"]


def classes_of(settings: Evaluation, labels: Iterable[str], names: Sequence[str] = ()) -> Mapping[str, Sequence[str]]:
    """The words of each class, in the order of the classes.

    Args:
        settings: Their classes win; without them each label is a class of its own name.
        labels: What samples have, as `label_text` writes it.
        names: Labels that samples have, for the error.

    Raises:
        ConfigError: If there is no label, or the settings have classes and one is not among them.
    """
    found = sorted(set(labels))
    if not found:
        there = f"; labels there: {listed(names)}" if names else "; its samples have no labels"
        raise ConfigError(f"evaluation.label={settings.label}: no sample of {settings.url} has this label{there}.")
    classes = settings.classes or {name: (name,) for name in found}
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise ConfigError(
            f"evaluation.classes lacks {listed(unknown)}, which samples of {settings.url} have as their label "
            f"{settings.label!r}; the classes are {listed(tuple(classes))}."
        )
    return classes


def listed(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name if len(name) <= 40 else f"{name[:37]}..." for name in names[:SHOWN]) + more
