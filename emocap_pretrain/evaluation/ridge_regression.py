"""Measures how well numbers such as valence and arousal follow from the image tower, by a ridge regression.

The regression is trained on the vectors before the projection, on the split `train`. The strength of its regularization
is chosen on the split `valid` by the mean CCC, and the split `test` is scored once, with the chosen strength.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from emocap_pretrain.benchmarks.card import TargetKind
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.parts import Part
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.outcomes import NumberOutcomes
from emocap_pretrain.run_folder.results import Baseline, Score, TaskResult

STRENGTHS = (1e6, 1e5, 1e4, 1e3, 1e2, 1e1, 1.0)  # scikit-learn's alpha; the first one regularizes most.


@dataclass(frozen=True, slots=True)
class RidgeRegression:
    """Implements the task. It needs the labels `evaluation.numbers` in all three splits."""

    settings: EvaluationConfig
    name: ClassVar[str] = "ridge_regression"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (("ccc",), ("strength",))
    splits: ClassVar[tuple[SplitName, ...]] = ("train", "valid", "test")
    targets: ClassVar[tuple[TargetKind, ...]] = ("numbers",)
    parts: ClassVar[tuple[Part, ...]] = ()
    about: ClassVar[str] = "predicts numbers such as valence and arousal; CCC, PCC, RMSE, SAGR (needs such labels)"

    def prompts(self) -> Sequence[str]:
        return ()

    def prepare(self, sources: Mapping[SplitName, ExampleSource], *, seconds: float | None = None) -> Sequence[str]:
        for source in sources.values():
            for name in self.settings.numbers:
                found = source.label_values(name, seconds=seconds)
                texts = [value for value in found.values if value != "" and not isinstance(value, float)]
                if texts or (found.complete and not found.values):
                    there = f"the value {texts[0]!r}" if texts else "no value"
                    raise ConfigError(
                        f"evaluation.numbers={name}: {source.address} has {there} of this label, and the task needs "
                        "numbers."
                    )
        return ()

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
                *scores_of(found, test[1], train[1].mean(0), names),
                Score("strength", "ridge regression, chosen strength", float(chosen.alpha), is_share=False),
            ),
            outcomes=(NumberOutcomes(tuple(rows["test"].tolist()), tuple(names), true_columns, found_columns),),
        )


def rows_with_numbers(features: Features, names: Sequence[str]) -> Int[np.ndarray, " rows"]:
    """Returns the rows of the examples that have all of the numbers."""

    def has_all(labels: Mapping[str, str | float]) -> bool:
        return all(isinstance(value := labels.get(name), float) and math.isfinite(value) for name in names)

    return np.array([row for row, labels in enumerate(features.labels) if has_all(labels)], dtype=np.int64)


def numbers_of(
    features: Features, names: Sequence[str], rows: Int[np.ndarray, " rows"]
) -> tuple[Float[np.ndarray, "rows width"], Float[np.ndarray, "rows numbers"]]:
    """Returns the vectors before the projection, and the numbers, of some rows."""
    truth = np.array([[float(features.labels[row][name]) for name in names] for row in rows]).reshape(-1, len(names))
    return features.pooled[rows].double().numpy(), truth


def scores_of(
    predicted: Float[np.ndarray, "examples numbers"],
    truth: Float[np.ndarray, "examples numbers"],
    mean: Float[np.ndarray, " numbers"],
    names: Sequence[str],
) -> list[Score]:
    """Returns the scores of each number, and the mean CCC first.

    The concordance correlation coefficient (CCC) is 1 for equal values, and lower for another mean or variance even if
    the values correlate. torchmetrics computes it with the variances of a sample (n - 1); with those of the population
    (n), as EmoNet does, it differs by less than 1/n. PCC is Pearson's correlation, RMSE the root of the mean squared
    error, and SAGR the share of examples whose sign is right. PCC and CCC of a constant prediction are 0.

    Args:
        predicted: The predictions.
        truth: The true numbers.
        mean: The mean of each number in the training split. RMSE and SAGR are shown beside those of predicting it.
        names: The names of the numbers.
    """
    from torchmetrics.functional.regression import concordance_corrcoef, pearson_corrcoef

    found = [Score("ccc", "ridge regression, mean CCC", mean_ccc(predicted, truth), is_share=False)]
    for column, name in enumerate(names):
        ours, theirs = torch.from_numpy(predicted[:, column]), torch.from_numpy(truth[:, column])
        constant = torch.full_like(theirs, float(mean[column]))
        of_mean = Baseline("mean of training", rmse(constant, theirs))
        sign_of_mean = Baseline("mean of training", same_sign(constant, theirs))
        found += [
            Score(f"{name}_ccc", f"{name}, CCC", _finite(concordance_corrcoef(ours, theirs)), is_share=False),
            Score(f"{name}_pcc", f"{name}, PCC", _finite(pearson_corrcoef(ours, theirs)), is_share=False),
            Score(f"{name}_rmse", f"{name}, RMSE", rmse(ours, theirs), of_mean, is_share=False),
            Score(f"{name}_sagr", f"{name}, SAGR", same_sign(ours, theirs), sign_of_mean),
        ]
    return found


def mean_ccc(predicted: Float[np.ndarray, "examples numbers"], truth: Float[np.ndarray, "examples numbers"]) -> float:
    """Returns the mean over the numbers of the concordance correlation coefficient."""
    from torchmetrics.functional.regression import concordance_corrcoef

    columns = zip(torch.from_numpy(predicted).T, torch.from_numpy(truth).T, strict=True)
    return float(np.mean([_finite(concordance_corrcoef(ours, theirs)) for ours, theirs in columns]))


def rmse(predicted: Float[Tensor, " examples"], truth: Float[Tensor, " examples"]) -> float:
    """Returns the root of the mean squared error."""
    from torchmetrics.functional.regression import mean_squared_error

    return float(mean_squared_error(predicted, truth, squared=False))


def same_sign(predicted: Float[Tensor, " examples"], truth: Float[Tensor, " examples"]) -> float:
    """Returns the sign agreement (SAGR): the share of examples whose sign is predicted. Zero has a sign of its own."""
    return float((predicted.sign() == truth.sign()).double().mean())


def _finite(value: Tensor) -> float:
    # The coefficient of a constant prediction is 0 divided by 0.
    return float(value.nan_to_num(0.0))
