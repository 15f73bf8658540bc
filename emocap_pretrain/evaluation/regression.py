"""Holds what all tasks that predict numbers such as valence and arousal share: checks of labels, and scores."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.run_folder.results import Baseline, Score, metric_name


def check_numbers(sources: Iterable[ExampleSource], names: Sequence[str], *, seconds: float | None = None) -> None:
    """Checks that the labels `names` exist in every split and are numbers.

    Args:
        sources: The examples of the splits.
        names: The names of the labels.
        seconds: Reading of each split and label stops after this time; None reads everything.

    Raises:
        ConfigError: If a split has a text as the value of one of these labels, or no value at all.
        ShardsError: If the data cannot be read.
    """
    metrics: dict[str, str] = {}
    for name in names:
        if metrics.setdefault(metric_name(name), name) != name:
            raise ConfigError(
                f"evaluation.numbers: {metrics[metric_name(name)]} and {name} would have scores of the same name; name "
                "one of them."
            )
    for source in sources:
        for name in names:
            found = source.label_values(name, seconds=seconds)
            texts = [value for value in found.values if value != "" and not isinstance(value, float)]
            if texts or (found.complete and not found.values):
                there = f"the value {texts[0]!r}" if texts else "no value"
                raise ConfigError(
                    f"evaluation.numbers={name}: {source.address} has {there} of this label, and the task needs "
                    "numbers."
                )


def rows_with_numbers(features: Features, names: Sequence[str]) -> Int[np.ndarray, " rows"]:
    """Returns the rows of the examples that have a finite number in each of the labels `names`."""

    def has_all(labels: Mapping[str, str | float]) -> bool:
        return all(isinstance(value := labels.get(name), float) and math.isfinite(value) for name in names)

    return np.array([row for row, labels in enumerate(features.labels) if has_all(labels)], dtype=np.int64)


def numbers_of(
    features: Features, names: Sequence[str], rows: Int[np.ndarray, " rows"]
) -> tuple[Float[np.ndarray, "rows width"], Float[np.ndarray, "rows numbers"]]:
    """Returns the vectors before the projection (`Features.pooled`) and the true numbers of the examples in `rows`."""
    truth = np.array([[float(features.labels[row][name]) for name in names] for row in rows]).reshape(-1, len(names))
    return features.pooled[rows].double().numpy(), truth


def scores_of(
    predicted: Float[np.ndarray, "examples numbers"],
    truth: Float[np.ndarray, "examples numbers"],
    names: Sequence[str],
    *,
    title: str,
    mean: Float[np.ndarray, " numbers"] | None = None,
) -> list[Score]:
    """Returns the mean CCC over the numbers, and then CCC, PCC, RMSE and SAGR of each number.

    The concordance correlation coefficient (CCC) is 1 for equal values, and lower for another mean or variance even if
    the values correlate. torchmetrics computes it with the variances of a sample (n - 1); with those of the population
    (n), as EmoNet does, it differs by less than 1/n. PCC is Pearson's correlation, RMSE the root of the mean squared
    error, and SAGR the share of examples whose sign is right. PCC and CCC of a constant prediction are 0.

    Args:
        predicted: The predictions.
        truth: The true numbers.
        names: The names of the numbers.
        title: The first words of the title of the mean CCC.
        mean: The mean of each number in the training split. RMSE and SAGR then have a baseline: their value if this
            mean is always predicted. None gives no baselines.
    """
    from torchmetrics.functional.regression import concordance_corrcoef, pearson_corrcoef

    found = [Score("ccc", f"{title}, mean CCC", mean_ccc(predicted, truth), is_share=False)]
    for column, name in enumerate(names):
        ours, theirs = torch.from_numpy(predicted[:, column]), torch.from_numpy(truth[:, column])
        of_mean = sign_of_mean = None
        metric = metric_name(name)
        if mean is not None:
            constant = torch.full_like(theirs, float(mean[column]))
            of_mean = Baseline("mean of training", rmse(constant, theirs))
            sign_of_mean = Baseline("mean of training", same_sign(constant, theirs))
        found += [
            Score(f"{metric}_ccc", f"{name}, CCC", _finite(concordance_corrcoef(ours, theirs)), is_share=False),
            Score(f"{metric}_pcc", f"{name}, PCC", _finite(pearson_corrcoef(ours, theirs)), is_share=False),
            Score(f"{metric}_rmse", f"{name}, RMSE", rmse(ours, theirs), of_mean, is_share=False, lower_is_better=True),
            Score(f"{metric}_sagr", f"{name}, SAGR", same_sign(ours, theirs), sign_of_mean),
        ]
    return found


def mean_ccc(predicted: Float[np.ndarray, "examples numbers"], truth: Float[np.ndarray, "examples numbers"]) -> float:
    """Returns the concordance correlation coefficient (CCC), as the mean over the columns."""
    from torchmetrics.functional.regression import concordance_corrcoef

    columns = zip(torch.from_numpy(predicted).T, torch.from_numpy(truth).T, strict=True)
    return float(np.mean([_finite(concordance_corrcoef(ours, theirs)) for ours, theirs in columns]))


def rmse(predicted: Float[Tensor, " examples"], truth: Float[Tensor, " examples"]) -> float:
    """Returns the root of the mean squared error (RMSE)."""
    from torchmetrics.functional.regression import mean_squared_error

    return float(mean_squared_error(predicted, truth, squared=False))


def same_sign(predicted: Float[Tensor, " examples"], truth: Float[Tensor, " examples"]) -> float:
    """Returns the sign agreement (SAGR): the share of examples whose sign is predicted.

    The sign of zero is neither positive nor negative, so a zero agrees only with a zero.
    """
    return float((predicted.sign() == truth.sign()).double().mean())


def _finite(value: Tensor) -> float:
    # The coefficient of a constant prediction is 0 divided by 0.
    return float(value.nan_to_num(0.0))
