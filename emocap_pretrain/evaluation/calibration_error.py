"""Measures how well the softmax over prompted classes is calibrated as probabilities, and fits its temperature.

The calibration error (ECE) of few samples is too large: the gap between accuracy and confidence in a bin is a mean over
its samples, and the absolute value of its random error does not average out (Roelofs et al. 2022). A model with many
confidences near 1 has smaller random errors, so the ECEs of two perfectly calibrated models differ, and drawing samples
with replacement adds further random error. A test of two models therefore takes the debiased error (`debiased_errors`).
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from emocap_pretrain.evaluation.intervals import Weights, class_sums
from emocap_pretrain.run_folder.outcomes import ProbabilityOutcomes

BINS = 15
# A file of results needs about 50 bytes for the probabilities of each sample, so results of more samples have none.
MOST_PROBABILITIES = 250_000
# The fitted temperature is between the inverse of this number and this number, also if all images are right.
LARGEST_TEMPERATURE = 100.0

Logits: TypeAlias = Float[Tensor, "examples classes"]


def calibration_error(logits: Logits, truth: Int[np.ndarray, " examples"]) -> float:
    """Returns the expected calibration error (ECE) of the softmax of logits, in [0, 1].

    The examples are divided into `BINS` bins of equal width by the probability of their predicted class. The ECE is
    the mean over the bins of the absolute difference (norm "l1") between the accuracy and the mean probability in the
    bin, weighted by the number of examples in it (Guo et al. 2017). There must be at least two classes.
    """
    confidences, predicted = _confidences(logits)
    return float(errors(confidences, predicted == truth)(np.ones((1, len(truth))))[0])


def errors(
    confidences: Float[np.ndarray, " examples"], is_right: np.ndarray
) -> Callable[[Weights], Float[np.ndarray, " draws"]]:
    """Returns a function that computes the calibration error of each draw of the examples.

    Args:
        confidences: The probability of the predicted class of each example.
        is_right: Whether the predicted class of each example is the true one.
    """
    sums, gaps = class_sums(_bins(confidences), BINS), is_right - confidences

    def scores(weights: Weights) -> Float[np.ndarray, " draws"]:
        return np.abs(sums(weights * gaps)).sum(1) / weights.sum(1)

    return scores


def debiased_errors(
    confidences: Float[np.ndarray, " examples"], is_right: np.ndarray, groups: Sequence[str | None]
) -> Callable[[Weights], Float[np.ndarray, " draws"]]:
    """Returns a function that computes the debiased calibration error of each draw of the examples.

    Let S be the sum of `is_right - confidences` over the examples of a bin, and s its standard error if the bin is
    calibrated. The sums of two random halves of the examples have the mean S / 2 and the standard error s / 2, and are
    independent. If the sum of one half says which sign the gap has, the sum of the other half, with this sign, has no
    bias in a calibrated bin. Twice the expected value of it takes the place of |S|, where z is S / s, and Phi and phi
    are the distribution and the density of the normal distribution:

        S (2 Phi(z) - 1) - 2 s phi(z)

    It is nearly |S| if |S| is much larger than s, and on average too small if they are alike, so that the errors of two
    models are rather called equal than different. It can be negative. s is that of the examples themselves, and is the
    same in all draws.

    Args:
        confidences: The probability of the predicted class of each example.
        is_right: Whether the predicted class of each example is the true one.
        groups: The person or clip of each example; None if it is unknown. The gaps of one person are added before they
            are squared, because they are not independent.
    """
    from scipy.special import ndtr

    bins, gaps = _bins(confidences), is_right - confidences
    sums = class_sums(bins, BINS)
    numbers: dict[object, int] = {}
    cells = [
        numbers.setdefault((row if group is None else group, number), len(numbers))
        for row, (group, number) in enumerate(zip(groups, bins.tolist(), strict=True))
    ]
    bin_of_cell = np.empty(len(numbers), dtype=np.int64)
    bin_of_cell[cells] = bins
    variances = np.bincount(bin_of_cell, np.bincount(cells, gaps) ** 2, BINS)
    # A bin without random error, which has no example or only certain ones, keeps its absolute value: z is large.
    deviations = np.maximum(np.sqrt(variances), 1e-12)

    def scores(weights: Weights) -> Float[np.ndarray, " draws"]:
        of_bins = sums(weights * gaps)
        z = of_bins / deviations
        density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        return (of_bins * (2 * ndtr(z) - 1) - 2 * deviations * density).sum(1) / weights.sum(1)

    return scores


def _bins(confidences: Float[np.ndarray, " examples"]) -> Int[np.ndarray, " examples"]:
    """Returns the bin of each confidence, from 0 to `BINS` - 1. A confidence on an edge belongs to the upper bin."""
    # float64: a probability beside the edge of a bin must not change its bin with the device.
    edges = np.linspace(0, 1, BINS + 1)
    return np.minimum(np.searchsorted(edges, confidences, side="right") - 1, BINS - 1)


def probabilities(
    logits: Logits,
    truth: Int[np.ndarray, " examples"],
    rows: Int[np.ndarray, " examples"],
    classes: Sequence[str],
    *,
    with_losses: bool = False,
    suffix: str = "",
) -> tuple[ProbabilityOutcomes, ...]:
    """Returns what two models are compared by; nothing if there are more than `MOST_PROBABILITIES` examples.

    Args:
        logits: The logits of the examples.
        truth: The index of the true class of each example.
        rows: The row of each example among the samples.
        classes: The names of the classes.
        with_losses: Whether the task reports the log loss.
        suffix: The last part of the names of scores.
    """
    if len(truth) > MOST_PROBABILITIES:
        return ()
    confidences, predicted = _confidences(logits)
    losses = cross_entropy(logits.double(), torch.from_numpy(truth), reduction="none").tolist() if with_losses else []
    found = ProbabilityOutcomes(
        tuple(rows.tolist()),
        tuple(classes),
        truth=tuple(truth.tolist()),
        predicted=tuple(predicted.tolist()),
        confidences=tuple(confidences.tolist()),
        losses=tuple(losses),
        suffix=suffix,
    )
    return (found,)


def _confidences(logits: Logits) -> tuple[Float[np.ndarray, " examples"], Int[np.ndarray, " examples"]]:
    """Returns the probability of the predicted class of each example, and the predicted class."""
    found = logits.double().softmax(1).max(1)
    # A sum of rounded exponentials may be a little below the largest of them.
    return found.values.numpy().clip(0, 1), found.indices.numpy()


def log_loss(logits: Logits, truth: Int[np.ndarray, " examples"]) -> float:
    """Returns the mean negative log-likelihood of the true classes, in nats."""
    return float(cross_entropy(logits.double(), torch.from_numpy(truth)))


def fitted_temperature(logits: Logits, truth: Int[np.ndarray, " examples"]) -> float:
    """Returns the temperature by which the logits must be divided so that their log loss is lowest (Guo et al. 2017).

    The temperature lies between the inverse of `LARGEST_TEMPERATURE` and `LARGEST_TEMPERATURE`. The loss is convex in
    the inverse of the temperature, so it has one minimum.
    """
    from scipy.optimize import minimize_scalar

    def loss(logarithm: float) -> float:
        return log_loss(logits / math.exp(logarithm), truth)

    edge = math.log(LARGEST_TEMPERATURE)
    return math.exp(minimize_scalar(loss, bounds=(-edge, edge), method="bounded").x)
