"""Measures the image tower by a linear probe: a logistic regression on its vectors before the projection.

The probe is trained on the split `train` with L-BFGS. The strength of its regularization is chosen on the split `valid`
by UAR, and the split `test` is scored once, with the chosen strength.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from emocap_pretrain.benchmarks.card import TargetKind
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.parts import Part
from emocap_pretrain.evaluation.classification import LabelledRows, check_labels, classes_of_features, scored
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.probe import fitted
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.results import Score, TaskResult


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """Implements the task. It needs a label in all three splits."""

    settings: EvaluationConfig
    name: ClassVar[str] = "linear_probe"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (("uar",), ("war",), ("macro_f1",), ("inverse_strength",))
    splits: ClassVar[tuple[SplitName, ...]] = ("train", "valid", "test")
    targets: ClassVar[tuple[TargetKind, ...]] = ("class",)
    parts: ClassVar[tuple[Part, ...]] = ()
    about: ClassVar[str] = "trains a logistic regression on the image tower; UAR, WAR, recall by class (needs a label)"

    def prompts(self) -> Sequence[str]:
        return ()

    def prepare(self, sources: Mapping[SplitName, ExampleSource], *, seconds: float | None = None) -> Sequence[str]:
        check_labels(self.settings, sources.values(), seconds)
        return ()

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:  # noqa: ARG002 - there are no prompts
        # The classes of the training split, which may be more than those of the split that is scored.
        classes = tuple(classes_of_features(self.settings, features["train"]))
        train, valid, test = (LabelledRows.of(features[each], self.settings.label, classes) for each in self.splits)
        probe = fitted(
            (train.pooled(features["train"]), train.truth), (valid.pooled(features["valid"]), valid.truth), classes
        )
        predicted = probe.predicted(test.pooled(features["test"]))
        result = scored(self.name, "linear probe", test, predicted)
        strength = Score("inverse_strength", "linear probe, chosen C", probe.inverse_strength, is_share=False)
        return replace(result, scores=(*result.scores, strength))
