"""Measures how well numbers such as valence and arousal follow from the image tower, by a ridge regression.

The regression is trained on the vectors before the projection, on the split `train`. The strength of its regularization
is chosen on the split `valid` by the mean CCC, and the split `test` is scored once, with the chosen strength.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from emocap_pretrain.benchmarks.card import TargetKind
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.parts import Part
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.regression import check_numbers, mean_ccc, numbers_of, rows_with_numbers, scores_of
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.outcomes import NumberOutcomes
from emocap_pretrain.run_folder.results import Score, TaskResult

STRENGTHS = (1e6, 1e5, 1e4, 1e3, 1e2, 1e1, 1.0)  # scikit-learn's alpha; the first one regularizes most.


@dataclass(frozen=True, slots=True)
class RidgeRegression:
    """Implements the task `ridge_regression`. It needs the labels `evaluation.numbers` in all three splits.

    The scores are CCC, PCC, RMSE and SAGR of each number, the mean CCC, and the chosen strength of the regularization.
    Examples that lack one of the labels are left out. At least two examples of each split must have all of them.
    """

    settings: EvaluationConfig
    name: ClassVar[str] = "ridge_regression"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (("ccc",), ("strength",))
    splits: ClassVar[tuple[SplitName, ...]] = ("train", "valid", "test")
    targets: ClassVar[tuple[TargetKind, ...]] = ("numbers",)
    reads_texts: ClassVar[bool] = False
    parts: ClassVar[tuple[Part, ...]] = ()
    about: ClassVar[str] = "predicts numbers such as valence and arousal; CCC, PCC, RMSE, SAGR (needs such labels)"

    def prompts(self) -> Sequence[str]:
        return ()

    def prepare(self, sources: Mapping[SplitName, ExampleSource], *, seconds: float | None = None) -> Sequence[str]:
        check_numbers(sources.values(), self.settings.numbers, seconds=seconds)
        return ()

    def count_labelled(self, features: Features) -> int:
        """Returns the number of examples of a split that have all numbers."""
        return len(rows_with_numbers(features, self.settings.numbers))

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:  # noqa: ARG002 - there are no prompts
        from sklearn.linear_model import Ridge
        from sklearn.preprocessing import StandardScaler

        names = self.settings.numbers
        rows = {split: rows_with_numbers(features[split], names) for split in self.splits}
        data = {split: numbers_of(features[split], names, rows[split]) for split in self.splits}
        for split, (_, truth) in data.items():
            if len(truth) < 2:
                raise ConfigError(f"evaluation.numbers: the split {split!r} has fewer than two examples with {names}.")
        train, valid, test = (data[split] for split in self.splits)
        scaler = StandardScaler().fit(train[0])
        ridges = [Ridge(alpha=strength).fit(scaler.transform(train[0]), train[1]) for strength in STRENGTHS]

        def predicted(ridge: Ridge, vectors: np.ndarray) -> np.ndarray:
            return np.asarray(ridge.predict(scaler.transform(vectors))).reshape(len(vectors), -1)

        chosen = max(ridges, key=lambda ridge: mean_ccc(predicted(ridge, valid[0]), valid[1]))
        found = predicted(chosen, test[0])
        true_columns, found_columns = (tuple(map(tuple, each.T.tolist())) for each in (test[1], found))
        return TaskResult(
            task=self.name,
            samples=len(test[1]),
            scores=(
                *scores_of(found, test[1], names, title="ridge regression", mean=train[1].mean(0)),
                Score("strength", "ridge regression, chosen strength", float(chosen.alpha), is_share=False),
            ),
            outcomes=(NumberOutcomes(tuple(rows["test"].tolist()), tuple(names), true_columns, found_columns),),
        )
