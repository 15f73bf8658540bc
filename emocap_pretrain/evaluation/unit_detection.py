"""Detects action units by prompts: a unit is shown if the prompts of its presence are closer to the image.

Each unit has some prompts that say that it is shown, and equally many that say that it is not. The score of an image is
the mean cosine with the former minus that with the latter. F1 takes a unit as shown if its score is above 0, and AUC is
the area under the curve of all thresholds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml
from jaxtyping import Float, Int

from emocap_pretrain.benchmarks.card import TargetKind
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.parts import Part
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.classification import listed
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.inference.facs import FACS
from emocap_pretrain.run_folder.outcomes import UnitOutcomes
from emocap_pretrain.run_folder.results import Baseline, ClassValues, Domain, Score, TaskResult

ABSENT = Path(__file__).with_name("absent_units.yaml")
MOST_SCORES = 1_000_000  # More numbers than this would not fit into a file of results.


@dataclass(frozen=True, slots=True)
class UnitDetection:
    """Implements the task `unit_detection`. Its scores are the means of F1 and of AUC over the action units.

    The labels are named `AU12` and so on. A value above 0 means that the unit is shown. A unit that no face shows is
    left out of both means, and a unit that every face shows is left out of the mean AUC.
    """

    settings: EvaluationConfig
    name: ClassVar[str] = "unit_detection"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (("f1",), ("auc",))
    splits: ClassVar[tuple[SplitName, ...]] = ("test",)
    targets: ClassVar[tuple[TargetKind, ...]] = ("units",)
    reads_texts: ClassVar[bool] = True
    parts: ClassVar[tuple[Part, ...]] = ()
    about: ClassVar[str] = "finds action units by prompts; mean F1 and AUC (needs labels such as AU12)"

    def prompts(self) -> Sequence[str]:
        return [text for each in sentences().values() for texts in each for text in texts]

    def prepare(self, sources: Mapping[SplitName, ExampleSource], *, seconds: float | None = None) -> Sequence[str]:
        """Checks that the samples have a label of an action unit that has prompts.

        Only the values of one label are counted. The names of all labels that were read come with them.

        Returns:
            A note about the action units without prompts, if there are any.

        Raises:
            ConfigError: If the samples have labels, and none of them is an action unit with prompts.
            ShardsError: If the data cannot be read.
        """
        names = sources["test"].label_values(next(iter(sentences())), seconds=seconds).names
        known = [name for name in names if name in sentences()]
        if names and not known:
            raise ConfigError(
                f"the samples of {sources['test'].address} have no label such as AU12; their labels are "
                f"{listed(names)}."
            )
        unknown = [name for name in names if name.startswith("AU") and name not in sentences()]
        return [f"action units without prompts are left out: {listed(unknown)}."] if unknown else []

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:
        test = features["test"]
        units = [unit for unit in sentences() if any(has_label(labels, unit) for labels in test.labels)]
        if not units:
            raise ConfigError(f"no sample of {self.settings.url} has a label of an action unit, such as AU12.")
        rows = [row for row, labels in enumerate(test.labels) if any(has_label(labels, unit) for unit in units)]
        shown = np.array([[_shown(test, row, unit) for row in rows] for unit in units])
        margins = np.stack([unit_scores(embedder, test, unit)[rows] for unit in units])
        found = {unit: Detection.of(*each) for unit, *each in zip(units, shown, margins, strict=True)}
        f1 = [each.f1 for each in found.values() if each.f1 is not None]
        auc = [each.auc for each in found.values() if each.auc is not None]
        always = [2 * each.share / (1 + each.share) for each in found.values() if each.f1 is not None]
        scores: list[Score] = []
        if f1:
            baseline = Baseline("always shown", float(np.mean(always)))
            scores.append(Score("f1", "action units, mean F1", float(np.mean(f1)), baseline))
        if auc:
            scores.append(Score("auc", "action units, mean AUC", float(np.mean(auc)), Baseline("chance", 0.5)))
        if not scores:
            raise ConfigError(
                f"{self.settings.url}: no face shows one of the action units {listed(units)}, so they have neither F1 "
                "nor AUC; leave unit_detection out."
            )
        samples = tuple(round(each.share * each.samples) for each in found.values())
        values = tuple(each.f1 for each in found.values())
        return TaskResult(
            task=self.name,
            samples=len(rows),
            scores=tuple(scores),
            class_values=(ClassValues("f1", "action units, F1", tuple(units), values, samples),),
            outcomes=(
                UnitOutcomes(
                    tuple(rows),
                    tuple(units),
                    shown=_columns(shown),
                    found=_columns((margins > 0).astype(int)),
                    scores=_columns(margins) if margins.size <= MOST_SCORES else (),
                ),
            ),
            domain=Domain(),
        )


def _columns(table: np.ndarray) -> tuple[tuple[Any, ...], ...]:
    return tuple(map(tuple, table.tolist()))


@dataclass(frozen=True, slots=True)
class Detection:
    """Holds how well one unit is found.

    Attributes:
        samples: Number of examples that have the label of the unit.
        share: Share of these examples that show the unit.
        f1: F1 of the prediction that the unit is shown; None if no example shows the unit.
        auc: Area under the curve; None if all or no examples show the unit.
    """

    samples: int
    share: float
    f1: float | None
    auc: float | None

    @classmethod
    def of(cls, shown: Int[np.ndarray, " examples"], margins: Float[np.ndarray, " examples"]) -> "Detection":
        """Scores one unit.

        Args:
            shown: 1 for an example that shows the unit, 0 for one that does not, and -1 for one without a label, which
                does not count.
            margins: The score of each example (`unit_scores`).
        """
        from sklearn.metrics import f1_score, roc_auc_score

        is_labelled = shown >= 0
        truth, scores = shown[is_labelled] == 1, margins[is_labelled]
        f1 = float(f1_score(truth, scores > 0)) if truth.any() else None
        auc = float(roc_auc_score(truth, scores)) if 0 < truth.sum() < len(truth) else None
        return cls(len(truth), float(truth.mean()), f1, auc)


def unit_scores(embedder: Embedder, features: Features, unit: str) -> Float[np.ndarray, " examples"]:
    """Returns the mean cosine with the prompts of a unit's presence, minus that with the prompts of its absence.

    Raises:
        ConfigError: If the model cannot read texts.
    """
    present, absent = (embedder.texts(texts).mean(0) for texts in sentences()[unit])
    # Vectors have seven digits. Rounded scores need less room in a file of results.
    return np.round((features.images @ (present - absent)).double().numpy(), 7)


@cache
def sentences() -> Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Returns the prompts of presence and of absence by the name of the unit, such as AU12."""
    present, absent = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (FACS, ABSENT))
    return {unit: (tuple(present[unit]), tuple(absent[unit])) for unit in present if unit in absent}


def has_label(labels: Mapping[str, str | float], unit: str) -> bool:
    """Returns whether an example has a label of this unit. An empty one, or NaN, counts as missing."""
    value = labels.get(unit, "")
    return value != "" and not (isinstance(value, float) and math.isnan(value))


def _shown(features: Features, row: int, unit: str) -> int:
    """Returns 1 if the label says that an example shows the unit, 0 if it says the opposite, and -1 without a label.

    Raises:
        ConfigError: If the label is not a number.
    """
    labels = features.labels[row]
    if not has_label(labels, unit):
        return -1
    try:
        return int(float(labels[unit]) > 0)
    except ValueError as error:
        raise ConfigError(
            f"the label {unit} of {features.keys[row]} is {labels[unit]!r}, and the task needs numbers: 0 for a unit "
            "that is not shown."
        ) from error
