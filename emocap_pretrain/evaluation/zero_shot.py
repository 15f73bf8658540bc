"""Classifies images zero-shot: the predicted class is the one whose prompts are closest to the image.

`inference/classes.py` makes the prompts and computes the cosines.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from emocap_shards.inspecting.label_values import LabelValues

from emocap_pretrain.config.fields import label_text
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.parts import Part
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.confusion import Confusion
from emocap_pretrain.evaluation.examples import Source
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.classes import class_cosines, class_embeddings, prompts_of
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.results import TaskResult

SHOWN = 8  # Number of names of classes or labels that an error message lists.


@dataclass(frozen=True, slots=True)
class ZeroShot:
    """Implements the zero-shot task. Samples whose label `evaluation.label` is missing or empty are left out."""

    settings: EvaluationConfig
    name: ClassVar[str] = "zero_shot"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (("uar",), ("war",))
    splits: ClassVar[tuple[SplitName, ...]] = ("test",)
    parts: ClassVar[tuple[Part, ...]] = ()
    about: ClassVar[str] = "names the class of each face by prompts; UAR, WAR, recall by class (needs a label)"

    def prompts(self) -> Sequence[str]:
        return prompts_of(self.settings.templates, self.settings.classes or {})

    def prepare(self, sources: Mapping[SplitName, Source], *, seconds: float | None = None) -> Sequence[str]:
        """Checks that the labels of the dataset are among the classes, and returns notes for the user.

        It checks all labels, or only those that it can read within `seconds` seconds.
        """
        settings = self.settings
        found = sources["test"].label_values(settings.label, seconds=seconds)
        # A reading that was cut off before it found a label says nothing about the dataset, so nothing is compared.
        if found.values or found.complete:
            classes_of(settings, map(label_text, found.values), found.names)
        return list(_notes(settings, found, seconds))

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:
        rows, truth = labelled(features["test"], self.settings.label)
        names = dict.fromkeys(name for labels in features["test"].labels for name in labels)
        classes = classes_of(self.settings, truth, tuple(names))
        columns = class_embeddings(embedder, self.settings.templates, classes)
        predicted = class_cosines(features["test"].images[rows], columns).argmax(1).numpy()
        numbers = {name: number for number, name in enumerate(classes)}
        confusion = Confusion.of(tuple(classes), np.array([numbers[label] for label in truth]), predicted)
        return TaskResult(
            task=self.name,
            samples=len(truth),
            scores=confusion.scores("zero-shot"),
            class_values=(confusion.recalls("zero-shot"),),
            confusion_matrices=(confusion.matrix("Zero-shot"),),
        )


def labelled(features: Features, label: str) -> tuple[list[int], list[str]]:
    """Returns the rows of the examples that have a label, and the names of their classes as `label_text` formats them.

    An example whose label is missing or empty is left out.
    """
    rows = [row for row, labels in enumerate(features.labels) if labels.get(label, "") != ""]
    return rows, [label_text(features.labels[row][label]) for row in rows]


def classes_of(
    settings: EvaluationConfig, labels: Iterable[str], names: Sequence[str] = ()
) -> Mapping[str, Sequence[str]]:
    """Returns the words of each class in prompts, in the order of the classes.

    Args:
        settings: If the setting `classes` is given, it is returned. Otherwise each distinct value in `labels` is a
            class, and the value is the only word of this class.
        labels: The values of the label `evaluation.label` in the samples, such as "happy", as `label_text` formats
            them.
        names: Names of the labels that the dataset has, such as "emotion" and "valence". The error message lists them
            if `labels` is empty.

    Raises:
        ConfigError: If `labels` is empty, or if the setting `classes` is given and lacks a value in `labels`.
    """
    found = sorted(set(labels))
    if not found:
        there = f"; its samples have the labels {_listed(names)}" if names else "; its samples have no labels"
        raise ConfigError(f"evaluation.label={settings.label}: no sample of {settings.url} has this label{there}.")
    classes = settings.classes or {name: (name,) for name in found}
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise ConfigError(
            f"evaluation.classes lacks {_listed(unknown)}, which samples of {settings.url} have as their label "
            f"{settings.label!r}; the classes are {_listed(tuple(classes))}."
        )
    return classes


def _notes(settings: EvaluationConfig, found: LabelValues, seconds: float | None) -> Iterator[str]:
    if seconds is not None and not found.complete:
        yield (
            f"evaluation.url: the labels of {found.looked:,} of {found.samples:,} samples were compared with the "
            f"classes within {seconds:.0f} s; the others are compared later."
        )
    if settings.classes is None and any(_is_number(value) for value in found.values):
        yield (
            f"evaluation.label={settings.label}: its values are numbers, and without evaluation.classes the prompts "
            "name these numbers; give each class its words, such as evaluation.classes={0: [joy]}."
        )


def _is_number(value: str | float) -> bool:
    return not isinstance(value, str) or value.replace(".", "", 1).isdecimal()


def _listed(names: Sequence[str]) -> str:
    """Returns a text with the first few names, and with the number of the other names if there are more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name if len(name) <= 40 else f"{name[:37]}..." for name in names[:SHOWN]) + more
