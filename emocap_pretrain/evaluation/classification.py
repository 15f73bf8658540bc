"""Scores predicted classes: what all tasks that predict one class for each example report in the same way."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from emocap_shards.inspecting.label_values import LabelValues
from jaxtyping import Float, Int

from emocap_pretrain.benchmarks.card import TargetKind
from emocap_pretrain.config.fields import label_text
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.parts import Part
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.confusion import Confusion
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.intervals import areas, bootstrap, mean_recalls, shares
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.run_folder.outcomes import ClassOutcomes
from emocap_pretrain.run_folder.results import Baseline, Score, TaskResult

SHOWN = 8  # Number of names of classes or labels that an error message lists.


@dataclass(frozen=True, slots=True, eq=False)
class LabelledRows:
    """Holds the rows of `Features` that have a label.

    Attributes:
        rows: The rows.
        truth: The number of the class of each of these rows.
        classes: The names of the classes.
        groups: The person or clip of each of these rows; None if it is unknown.
    """

    rows: Int[np.ndarray, " labelled"]
    truth: Int[np.ndarray, " labelled"]
    classes: tuple[str, ...]
    groups: tuple[str | None, ...]

    @classmethod
    def of(cls, features: Features, label: str, classes: Sequence[str]) -> "LabelledRows":
        """Finds the rows that have the label. A row whose label is missing or empty is left out.

        Raises:
            ConfigError: If no row has the label, or a label is not the name of a class.
        """
        rows, names = labelled(features, label)
        if not rows:
            raise ConfigError(f"label {label!r}: none of the {len(features):,} examples of a split has it.")
        numbers = {name: number for number, name in enumerate(classes)}
        if unknown := sorted({name for name in names if name not in numbers}):
            raise ConfigError(f"label {label!r}: {listed(unknown)} is not among the classes {listed(classes)}.")
        truth = np.array([numbers[name] for name in names], dtype=np.int64)
        groups = tuple(features.groups[row] if features.groups else None for row in rows)
        return cls(np.array(rows, dtype=np.int64), truth, tuple(classes), groups)


@dataclass(frozen=True, slots=True, eq=False)
class LabelledVectors:
    """Holds the labelled rows of a split with their vectors before the projection."""

    rows: LabelledRows
    vectors: Float[np.ndarray, "labelled width"]

    @property
    def truth(self) -> Int[np.ndarray, " labelled"]:
        """Returns the number of the class of each vector."""
        return self.rows.truth


@dataclass(frozen=True, slots=True)
class LearnsClasses:
    """Base class of the tasks that learn classes from the vectors of the image tower. They use no prompts.

    If the settings name no classes, the classes are the labels of the split `train`. These may include classes that do
    not occur in the split `test`.
    """

    settings: EvaluationConfig
    splits: ClassVar[tuple[SplitName, ...]] = ("train", "valid", "test")
    targets: ClassVar[tuple[TargetKind, ...]] = ("class",)
    reads_texts: ClassVar[bool] = False
    parts: ClassVar[tuple[Part, ...]] = ()

    def prompts(self) -> Sequence[str]:
        return ()

    def prepare(self, sources: Mapping[SplitName, ExampleSource], *, seconds: float | None = None) -> Sequence[str]:
        """Compares the labels of every split with the classes, as far as they can be read within `seconds` seconds.

        Raises:
            ConfigError: If no sample of a split has the label, or a label is not a class.
            ShardsError: If the data cannot be read.
        """
        counted: dict[SplitName, LabelValues] = {}
        for split, source in sources.items():
            found = counted[split] = source.label_values(self.settings.label, seconds=seconds)
            # A reading that was cut off before it found a label says nothing about the dataset.
            if found.values or found.complete:
                classes_of(self.settings, map(label_text, found.values), found.names, url=source.address)
        self._check_learned(sources, counted)
        return ()

    def _check_learned(
        self, sources: Mapping[SplitName, ExampleSource], counted: Mapping[SplitName, LabelValues]
    ) -> None:
        """Checks that the split `train` has every class that another split has.

        Nothing is checked if the settings name the classes, or if not all labels of `train` were read.

        Raises:
            ConfigError: If another split has a class that `train` lacks.
        """
        if self.settings.classes or "train" not in counted or not counted["train"].complete:
            return
        learned = set(map(label_text, counted["train"].values))
        for split, found in counted.items():
            if unknown := sorted({*map(label_text, found.values)} - learned):
                raise ConfigError(
                    f"evaluation.label={self.settings.label}: {listed(unknown)}, which samples of "
                    f"{sources[split].address} have, occurs in no sample of {sources['train'].address}, from which the "
                    "classes are learned; name the classes in evaluation.classes, or take other splits."
                )

    def count_labelled(self, features: Features) -> int:
        """Returns the number of examples of a split that have the label."""
        return len(labelled(features, self.settings.label)[0])

    def labelled(
        self, features: Mapping[SplitName, Features]
    ) -> tuple[LabelledVectors, LabelledVectors, LabelledVectors]:
        """Returns the labelled vectors of the splits `train`, `valid` and `test`.

        Raises:
            ConfigError: If a split has no labels, or a label that is not a class.
        """
        classes = tuple(classes_of_features(self.settings, features["train"]))
        rows = [LabelledRows.of(features[split], self.settings.label, classes) for split in self.splits]
        train, valid, test = (
            LabelledVectors(found, features[split].pooled[found.rows].double().numpy())
            for split, found in zip(self.splits, rows, strict=True)
        )
        return train, valid, test


def labelled(features: Features, label: str) -> tuple[list[int], list[str]]:
    """Returns the rows of the examples that have a label, and the names of their classes as `label_text` formats them.

    An example whose label is missing or empty is left out.
    """
    rows = [row for row, labels in enumerate(features.labels) if labels.get(label, "") != ""]
    return rows, [label_text(features.labels[row][label]) for row in rows]


def scored(
    task: str,
    title: str,
    found: LabelledRows,
    predicted: np.ndarray,
    scores: Float[np.ndarray, "labelled classes"] | None = None,
) -> TaskResult:
    """Returns UAR and WAR with their intervals, macro-F1, the recall of each class, and the confusion matrix.

    The result also has the area under the ROC curve (AUC) between two classes, with its interval, if `scores` are
    given, exactly two of the classes occur, and every row has a score of both.

    Args:
        task: The name of the task.
        title: The first words of the titles of scores.
        found: The rows with a label, and their true classes.
        predicted: The index of the predicted class of each row.
        scores: A score of each class for each row, from which AUC is computed; NaN for a class without a score.
    """
    from sklearn.metrics import f1_score  # It takes a second, and only rank 0 needs it.

    confusion = Confusion.of(found.classes, found.truth, predicted)
    is_right, margins = predicted == found.truth, _margins(found, scores)
    uar, war = confusion.scores(title)
    occurring = np.unique(found.truth)
    f1 = float(f1_score(found.truth, predicted, labels=occurring, average="macro"))
    return TaskResult(
        task=task,
        samples=len(found.truth),
        scores=(
            uar.within(bootstrap(mean_recalls(found.truth, is_right, len(found.classes)), found.groups)),
            war.within(bootstrap(shares(is_right), found.groups)),
            Score("macro_f1", f"{title} macro-F1", f1),
            *(() if margins is None else (_area(title, found, margins),)),
        ),
        class_values=(confusion.recalls(title),),
        confusion_matrices=(confusion.matrix(title[:1].upper() + title[1:]),),
        outcomes=(
            ClassOutcomes(
                tuple(found.rows.tolist()),
                found.classes,
                tuple(found.truth.tolist()),
                tuple(predicted.tolist()),
                () if margins is None else tuple(margins.tolist()),
            ),
        ),
    )


def _margins(
    found: LabelledRows, scores: Float[np.ndarray, "labelled classes"] | None
) -> Float[np.ndarray, " labelled"] | None:
    """Returns the score of the second of the two classes that occur minus that of the first one, for each row.

    Returns None if there are no scores, the number of classes that occur is not two, or a difference is not finite.
    """
    occurring = np.unique(found.truth)
    if scores is None or len(occurring) != 2:
        return None
    margins = scores[:, occurring[1]] - scores[:, occurring[0]]
    return margins if np.isfinite(margins).all() else None


def _area(title: str, found: LabelledRows, margins: Float[np.ndarray, " labelled"]) -> Score:
    """Returns the area under the ROC curve (AUC) of the margins between the two classes that occur."""
    from sklearn.metrics import roc_auc_score

    first, second = map(int, np.unique(found.truth))
    is_second = found.truth == second
    chance = Baseline("chance", 0.5, f"{found.classes[second]} against {found.classes[first]}")
    area = Score("auc", f"{title} AUC", float(roc_auc_score(is_second, margins)), chance)
    return area.within(bootstrap(areas(is_second, margins), found.groups))


def classes_of(
    settings: EvaluationConfig, labels: Iterable[str], names: Sequence[str] = (), *, url: str | None = None
) -> Mapping[str, Sequence[str]]:
    """Returns the words of each class in prompts, in the order of the classes.

    Args:
        settings: If the setting `classes` is given, it is returned. Otherwise each distinct value in `labels` is a
            class, and the value is the only word of this class.
        labels: The values of the label `evaluation.label` in the samples, such as "happy", as `label_text` formats
            them.
        names: Names of the labels that the dataset has, such as "emotion" and "valence". The error message lists them
            if `labels` is empty.
        url: The dataset; by default `evaluation.url`.

    Raises:
        ConfigError: If `labels` is empty, or if the setting `classes` is given and lacks a value in `labels`.
    """
    where = url or settings.url
    found = sorted(set(labels))
    if not found:
        there = f"; its samples have the labels {listed(names)}" if names else "; its samples have no labels"
        raise ConfigError(f"evaluation.label={settings.label}: no sample of {where} has this label{there}.")
    classes = settings.classes or {name: (name,) for name in found}
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise ConfigError(
            f"evaluation.classes lacks {listed(unknown)}, which samples of {where} have as their label "
            f"{settings.label!r}; the classes are {listed(tuple(classes))}."
        )
    return classes


def classes_of_features(settings: EvaluationConfig, features: Features) -> Mapping[str, Sequence[str]]:
    """Returns the words of each class, as `classes_of` finds them for the labels of a split.

    Raises:
        ConfigError: As `classes_of` does.
    """
    kinds = {name: not isinstance(value, str) for labels in features.labels for name, value in labels.items()}
    names = sorted(kinds, key=kinds.__getitem__)  # Labels with texts come first, as in `LabelValues`.
    return classes_of(settings, labelled(features, settings.label)[1], names)


def listed(names: Sequence[str]) -> str:
    """Returns a text with the first `SHOWN` names, and with the number of the other names if there are more.

    A name of more than 40 characters is cut.
    """
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name if len(name) <= 40 else f"{name[:37]}..." for name in names[:SHOWN]) + more
