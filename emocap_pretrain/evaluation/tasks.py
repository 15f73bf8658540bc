"""Lists the evaluation tasks, and checks that settings, data and model fit those that a run's settings name.

This is the only module that mentions a task by name, apart from the reader of old reports; a test checks that. The
training loop, the commands and the tracker call the functions of this module, and of `run_tasks.py`, which runs the
tasks. The results of all tasks have the same types (`run_folder/results.py`), so the callers need no code for a single
task.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from emocap_shards.dataset_filter import DatasetFilter
from emocap_shards.inspecting.wording import counted

from emocap_pretrain.checkpoint.manifest import Checkpoint
from emocap_pretrain.config.explain import did_you_mean
from emocap_pretrain.config.fields import ImageCrop
from emocap_pretrain.config.objective import LabelConfig
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.config.stored import filled
from emocap_pretrain.data.datasets import CutTexts, opened_filter
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.choice import Choice
from emocap_pretrain.evaluation.classification import listed
from emocap_pretrain.evaluation.examples import ExampleSource, PackedSource
from emocap_pretrain.evaluation.few_shot import FewShot
from emocap_pretrain.evaluation.fine_tuned import (
    FineTunedClasses,
    FineTunedNumbers,
    check_head_classes,
    label_of_classes,
    require_numbers,
)
from emocap_pretrain.evaluation.held_out_loss import HeldOutLoss
from emocap_pretrain.evaluation.linear_probe import LinearProbe
from emocap_pretrain.evaluation.nearest import Nearest
from emocap_pretrain.evaluation.region_grounding import RegionGrounding
from emocap_pretrain.evaluation.retrieval import Retrieval
from emocap_pretrain.evaluation.ridge_regression import RidgeRegression
from emocap_pretrain.evaluation.subgroups import MOST_GROUPS, named
from emocap_pretrain.evaluation.task import MapTask, SplitName, Task
from emocap_pretrain.evaluation.temperature_scaling import TemperatureScaling
from emocap_pretrain.evaluation.unit_detection import UnitDetection
from emocap_pretrain.evaluation.zero_shot import ZeroShot

Value = TypeVar("Value")

# The order is that of `emocap evaluate --list` and of the charts in the tracker.
TASKS: tuple[type[Task], ...] = (
    ZeroShot,
    TemperatureScaling,
    Retrieval,
    LinearProbe,
    FewShot,
    Nearest,
    RidgeRegression,
    UnitDetection,
    Choice,
    RegionGrounding,
    FineTunedClasses,
    FineTunedNumbers,
    HeldOutLoss,
)
NEED_A_HEAD: tuple[type[Task], ...] = (FineTunedClasses, FineTunedNumbers)
"""The tasks that few models allow. They run only if the settings name them."""
WITHOUT_MATRIX: tuple[type[Task], ...] = (
    TemperatureScaling,
    Retrieval,
    FewShot,
    RidgeRegression,
    UnitDetection,
    Choice,
    RegionGrounding,
    FineTunedNumbers,
)
"""The tasks that give no confusion matrix."""
DEFAULT = (ZeroShot,)  # The tasks if the settings name none.
PREPARE_S = 20.0  # Seconds for which each task may read before a start. The ranks read the rest before the first step.


def charts() -> tuple[tuple[str, ...], ...]:
    """Returns the charts of all tasks, in the order of the tasks. A chart is a tuple of the names of its metrics."""
    return tuple(tuple(f"{task.name}/{score}" for score in chart) for task in TASKS for chart in task.charts)


def tasks_of(settings: EvaluationConfig) -> list[Task]:
    """Returns the tasks that the settings name, constructed with these settings; the default tasks if they name none.

    Raises:
        ConfigError: If a name is not the name of a task, or is given twice.
    """
    known = {task.name: task for task in TASKS}
    names = [task.name for task in DEFAULT] if settings.tasks is None else settings.tasks
    for number, name in enumerate(names):
        if name not in known:
            raise ConfigError(f"evaluation.tasks: there is no task {name!r}{did_you_mean(name, tuple(known))}")
        if name in names[:number]:
            raise ConfigError(f"evaluation.tasks: {name} comes twice; name each task once.")
    return [known[name](settings) for name in names]


def require_score(keep_best: str | None, settings: EvaluationConfig) -> None:
    """Checks that `checkpoint.keep_best` names a score of a task that the run evaluates.

    The scores that are known before an evaluation are those of the charts of the task.

    Raises:
        ConfigError: If it does not. The message names the tasks, or the scores of the task.
    """
    if keep_best is None:
        return
    name, _, score = keep_best.partition("/")
    by_name = {task.name: task for task in tasks_of(settings)}
    if name not in by_name:
        raise ConfigError(
            f"checkpoint.keep_best={keep_best}: evaluation.tasks does not have {name!r}; the tasks of this run are "
            f"{', '.join(by_name)}."
        )
    scores = [each for chart in by_name[name].charts for each in chart]
    if score not in scores:
        raise ConfigError(
            f"checkpoint.keep_best={keep_best}: {name} has no score {score!r} that a checkpoint can be chosen by; take "
            f"one of {', '.join(scores)}."
        )


def prepare(
    settings: EvaluationConfig,
    *,
    has_local: bool = True,
    crop: ImageCrop = "center",
    head: Sequence[LabelConfig] | None = None,
    seconds: float | None = None,
) -> list[str]:
    """Checks that the settings of every task fit the dataset, and returns notes for the user. One rank calls it.

    This function is called before training, so that a wrong label or class is reported before the first step and not
    after the last one.

    Args:
        settings: The evaluation settings. If they name no dataset, nothing is read.
        has_local: Whether the model is, or will be, trained with local sentences.
        crop: The part of an image that the model reads if the settings name none.
        head: The labels that the head of the model predicts; None if they are not checked.
        seconds: Each task may stop reading after this time; None reads everything.

    Raises:
        ConfigError: If the settings name a task that does not exist, if a task's settings do not fit its data, if the
            samples lack a label that the settings name, or if a task needs attention maps and `has_local` is False or
            the whole image is read.
        ShardsError: If the data cannot be read.
    """
    tasks = tasks_of(settings)
    check_maps(tasks, settings.crop or crop, has_local=has_local)
    filter_ = evaluation_filter(settings)
    sources = sources_of(settings, tasks, filter_) if settings.url else {}
    _check_labels(settings, sources, seconds)
    if head is not None:
        require_head(tasks, head)
        for task in tasks:
            if isinstance(task, FineTunedClasses) and sources:
                check_head_classes(head, task.settings, sources["test"], seconds=seconds)
    notes = (
        []
        if filter_ is None
        else [f"evaluation.filter (digest {filter_.digest[:16]}) leaves out {filter_.describe()}."]
    )
    notes += _check_captions(tasks, sources)
    return notes + [
        note for task in tasks if sources for note in task.prepare(splits_of(task, sources), seconds=seconds)
    ]


def require_head(tasks: Sequence[Task], labels: Sequence[LabelConfig]) -> None:
    """Checks that the head of a model predicts the labels that the tasks score.

    Args:
        tasks: The tasks. Tasks that use no head are ignored.
        labels: The labels that the head predicts (`objective.labels`); empty if the model has no head.

    Raises:
        ConfigError: If a task scores a label that the head does not predict.
    """
    for task in tasks:
        if isinstance(task, FineTunedClasses):
            label_of_classes(labels, task.settings.label)
        elif isinstance(task, FineTunedNumbers):
            require_numbers(labels, task.settings.numbers)


def require_matrix(settings: EvaluationConfig) -> None:
    """Checks that one of the tasks can give a confusion matrix.

    Raises:
        ConfigError: If all of them are among `WITHOUT_MATRIX`.
    """
    tasks = tasks_of(settings)
    if all(isinstance(task, WITHOUT_MATRIX) for task in tasks):
        raise ConfigError(f"--picture: {', '.join(task.name for task in tasks)} gives no confusion matrix to draw.")


def evaluation_filter(settings: EvaluationConfig) -> DatasetFilter | None:
    """Reads the filter of the dataset at `evaluation.url`; None if the settings name none. One rank calls it.

    Raises:
        ConfigError, ShardsError: If the filter cannot be used or does not fit the dataset (`opened_filter`).
    """
    if settings.filter is None or settings.url is None:
        return None
    return opened_filter(settings.filter, settings.url, "evaluation.filter")


def sources_of(
    settings: EvaluationConfig, tasks: Sequence[Task], filter_: DatasetFilter | None = None
) -> dict[SplitName, ExampleSource]:
    """Returns the sources of all splits that the tasks need, by the name of the split.

    Args:
        settings: The datasets.
        tasks: The tasks.
        filter_: The filter of the split `test`; the other splits have none.

    Raises:
        ConfigError: If a task needs a split for which the settings name no dataset.
    """
    urls: dict[SplitName, str | None] = {
        "test": settings.url,
        "train": settings.train_url,
        "valid": settings.valid_url,
    }
    found: dict[SplitName, ExampleSource] = {}
    for task in tasks:
        for split in task.splits:
            url = urls[split]
            if url is None:
                key = "url" if split == "test" else f"{split}_url"
                raise ConfigError(
                    f"evaluation.{key}: {task.name} needs the split {split!r}; give its dataset, or leave {task.name} "
                    "out of evaluation.tasks."
                )
            found[split] = PackedSource(url, settings.group, filter=filter_ if split == "test" else None)
    return found


def _check_labels(
    settings: EvaluationConfig, sources: Mapping[SplitName, ExampleSource], seconds: float | None
) -> None:
    """Checks that the split `test` has the labels that the settings `group` and `by` name, and can be divided by `by`.

    Raises:
        ConfigError: If all samples were read within `seconds`, and none has one of these labels; or if a label of `by`
            has too many values.
        ShardsError: If the data cannot be read.
    """
    labels = [("group", settings.group), *(("by", name) for name in settings.by)]
    for key, name in labels:
        if name is None or "test" not in sources:
            continue
        found = sources["test"].label_values(name, seconds=seconds)
        if found.complete and not found.values:
            raise ConfigError(
                f"evaluation.{key}={name}: no sample of {sources['test'].address} has this label; its samples have "
                f"{listed(found.names) if found.names else 'no labels'}."
            )
        if key == "by" and (count := len(set(named(tuple(found.values))))) > MOST_GROUPS:
            raise ConfigError(
                f"evaluation.by={name}: it has {'' if found.complete else 'at least '}{count:,} values, and at most "
                f"{MOST_GROUPS} are scored; give a label with few, such as gender."
            )


def _check_captions(tasks: Sequence[Task], sources: Mapping[SplitName, ExampleSource]) -> list[str]:
    """Checks that there are captions for the tasks that need them, and returns notes for the user.

    Raises:
        ConfigError: If such a task has a packed dataset in which no sample has a caption.
    """
    test = sources.get("test")
    needing = ", ".join(task.name for task in tasks if task.parts or isinstance(task, MapTask))
    if not needing or not isinstance(test, PackedSource) or not test.without_caption:
        return []
    if test.without_caption == test.stored:
        raise ConfigError(
            f"evaluation.url: the {counted(test.stored, 'sample')} of {test.address} have labels and no caption, which "
            f"{needing} needs; leave it out of evaluation.tasks, or give a dataset with captions."
        )
    share = f"{test.without_caption:,} of the {test.stored:,} samples of {test.address}"
    return [f"{needing}: {share} have no caption and are left out."]


def check_maps(tasks: Sequence[Task], crop: ImageCrop, *, has_local: bool) -> bool:
    """Returns whether one of the tasks needs attention maps.

    Raises:
        ConfigError: If one needs them, and the model is not trained with local sentences (`has_local` is False) or
            `crop` is not the central square.
    """
    needing = [task.name for task in tasks if isinstance(task, MapTask)]
    if needing and not has_local:
        raise ConfigError(
            f"evaluation.tasks: {needing[0]} needs a model that is trained with local sentences (objective.local above "
            "0); leave it out."
        )
    if needing and crop != "center":
        # The outlines of regions are shares of this square (`data/regions.py`).
        raise ConfigError(
            f"evaluation.tasks: {needing[0]} needs the central square of an image (evaluation.crop: center), in which "
            f"the regions lie, and the part that is read is {crop!r}; choose --crop center, or leave {needing[0]} out."
        )
    return bool(needing)


def require_texts(settings: EvaluationConfig, *, has_texts: bool) -> None:
    """Checks that the model can read texts if one of the tasks needs them.

    Raises:
        ConfigError: If a task needs texts and the model has no text tower. The message names the tasks that need none.
    """
    need = [task.name for task in tasks_of(settings) if task.reads_texts]
    if need and not has_texts:
        others = ", ".join(task.name for task in TASKS if not task.reads_texts)
        raise ConfigError(
            f"evaluation.tasks: {', '.join(need)} {'needs' if len(need) == 1 else 'need'} a text tower, and this model "
            f"is an image tower alone; it can do {others}."
        )


def splits_of(task: Task, splits: Mapping[SplitName, Value]) -> dict[SplitName, Value]:
    """Returns the entries of the splits that a task needs."""
    return {name: splits[name] for name in task.splits}


def were_prepared(checkpoint: Checkpoint | None, evaluation: Mapping[str, Any]) -> bool:
    """Returns whether the newest checkpoint was saved with these evaluation settings.

    If so, the attempt that saved this checkpoint has checked the whole evaluation dataset, and a later attempt does not
    need to check the dataset again.

    Args:
        checkpoint: The newest checkpoint of the run; None if the run has no checkpoint.
        evaluation: The settings as they are stored (`Config.stored`).
    """
    before = checkpoint.state.get("config") if checkpoint else None
    settings = before.get("evaluation") if isinstance(before, dict) else None
    return isinstance(settings, dict) and filled(settings, EvaluationConfig) == evaluation


def cut_prompts(settings: EvaluationConfig, tokenizer: Tokenizer, limit: int) -> list[CutTexts]:
    """Counts the prompts of all tasks, and how many of them have more tokens than the text tower reads.

    Args:
        settings: The tasks and their prompts.
        tokenizer: The tokenizer of the text tower.
        limit: Number of tokens to which a prompt is cut.

    Returns:
        A list with one `CutTexts` for the prompts of all tasks together; empty if there are no prompts.

    Raises:
        ConfigError: If the settings name a task that does not exist, or their prompts do not fit the classes.
    """
    texts = [prompt for task in tasks_of(settings) for prompt in task.prompts()]
    return [CutTexts.of("prompts", tokenizer, texts, limit)] if texts else []
