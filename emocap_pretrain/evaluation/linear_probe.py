"""Measures the image tower by a linear probe: a logistic regression on its vectors before the projection.

The probe is trained on the split `train` with L-BFGS. The strength of its regularization is chosen on the split `valid`
by UAR, and the split `test` is scored once, with the chosen strength.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from emocap_pretrain.evaluation.classification import LearnsClasses, scored
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.probe import fitted
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.results import Score, TaskResult


@dataclass(frozen=True, slots=True)
class LinearProbe(LearnsClasses):
    """Implements the task `linear_probe`. It needs the label in all three splits.

    The scores are UAR, WAR, macro-F1, AUC if two classes occur, and the chosen inverse strength of the regularization.
    """

    name: ClassVar[str] = "linear_probe"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (("uar",), ("war",), ("macro_f1",), ("auc",), ("inverse_strength",))
    about: ClassVar[str] = "trains a logistic regression on the image tower; UAR, WAR, recall by class (needs a label)"

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:  # noqa: ARG002 - there are no prompts
        train, valid, test = self.labelled(features)
        probe = fitted((train.vectors, train.truth), (valid.vectors, valid.truth))
        scores = probe.scores(test.vectors, len(test.rows.classes))
        result = scored(self.name, "linear probe", test.rows, probe.predicted(test.vectors), scores)
        strength = Score("inverse_strength", "linear probe, chosen C", probe.inverse_strength, is_share=False)
        return replace(result, scores=(*result.scores, strength))
