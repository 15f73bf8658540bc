"""Computes confidence intervals by the bootstrap: scores of many samples that are drawn with replacement.

If examples belong to persons or clips, whole persons or clips are drawn, because the examples of one person are alike:
drawing single examples would make the intervals too narrow. The draws have a fixed seed, so the same predictions always
have the same intervals.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

DRAWS = 1000
LEVEL = 0.95
_SEED = 0
_ENTRIES = 1 << 22  # Number of weights that are in memory at the same time, 32 MiB.

Weights = Float[np.ndarray, "draws examples"]
"""The number of times that each example occurs in each draw."""
Metric = Callable[[Weights], Float[np.ndarray, " draws"]]
"""A function that computes a score of each draw."""


def bootstrap(
    scores: Callable[[Weights], Float[np.ndarray, " draws"]], groups: Sequence[str | None]
) -> tuple[float, float]:
    """Returns the lower and the upper bound of the interval that contains `LEVEL` of the scores of the draws.

    Args:
        scores: Computes the score of each draw. A score that a draw does not have is NaN, and is left out.
        groups: The person or clip of each example. An example with None is a group of its own.

    Returns:
        The percentiles; NaN if no draw has a score.
    """
    found = np.concatenate([scores(weights) for weights in draws(groups)])
    return percentiles(found[np.isfinite(found)]) or (float("nan"), float("nan"))


def percentiles(drawn: Float[np.ndarray, " draws"]) -> tuple[float, float] | None:
    """Returns the bounds between which the share `LEVEL` of finite scores lies; None if there is no score."""
    if not drawn.size:
        return None
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def draws(groups: Sequence[str | None], count: int = DRAWS) -> Iterator[Weights]:
    """Yields how often each example occurs in each of `count` bootstrap draws, in blocks of bounded size.

    Args:
        groups: The person or clip of each example. Whole groups are drawn, and an example with None is a group.
        count: Number of draws.
    """
    numbers: dict[object, int] = {}
    # An example without a group gets a key that no other example has.
    of_group = np.array(
        [numbers.setdefault(row if group is None else group, len(numbers)) for row, group in enumerate(groups)]
    )
    random, several = np.random.default_rng(_SEED), len(numbers)
    step = max(1, _ENTRIES // max(1, len(groups)))
    for start in range(0, count, step):
        size = min(step, count - start)
        # A multinomial distribution, drawn group by group: numpy's own needs ten times as long for many groups.
        drawn = [np.bincount(random.integers(several, size=several), minlength=several) for _ in range(size)]
        yield np.stack(drawn)[:, of_group].astype(np.float64)


def class_sums(numbers: np.ndarray, classes: int) -> Callable[[Weights], Float[np.ndarray, "draws classes"]]:
    """Returns a function that adds up the weights of the examples of each class, for each draw.

    Its memory does not grow with the product of examples and classes, as that of a matrix of memberships would.

    Args:
        numbers: The number of the class of each example.
        classes: The number of classes.
    """
    order = np.argsort(numbers, kind="stable")
    present, firsts = np.unique(numbers[order], return_index=True)  # The first place of each class in this order.

    def sums(weights: Weights) -> Float[np.ndarray, "draws classes"]:
        found = np.zeros((len(weights), classes))
        if len(present):
            found[:, present] = np.add.reduceat(weights[:, order], firsts, axis=1)
        return found

    return sums


def mean_recalls(
    truth: np.ndarray, is_right: np.ndarray, classes: int
) -> Callable[[Weights], Float[np.ndarray, " draws"]]:
    """Returns a function that computes the unweighted average recall (UAR) of each draw.

    Classes that do not occur in a draw are left out of its mean, as they are in the score itself.

    Args:
        truth: The number of the true class of each example.
        is_right: Whether the class of each example was predicted.
        classes: The number of classes.
    """
    of_classes = class_sums(truth, classes)

    def scores(weights: Weights) -> Float[np.ndarray, " draws"]:
        samples, hits = of_classes(weights), of_classes(weights * is_right)
        with np.errstate(invalid="ignore"):
            return mean_of_finite(hits / samples)

    return scores


def mean_of_finite(values: Float[np.ndarray, "draws columns"]) -> Float[np.ndarray, " draws"]:
    """Returns the mean over the finite values of each row; NaN for a row without one, such as a draw without a fold."""
    is_finite = np.isfinite(values)
    counts = is_finite.sum(1)
    return np.where(counts > 0, np.where(is_finite, values, 0).sum(1) / np.maximum(counts, 1), np.nan)


def areas(
    is_positive: np.ndarray, scores: Float[np.ndarray, " examples"]
) -> Callable[[Weights], Float[np.ndarray, " draws"]]:
    """Returns a function that computes the area under the ROC curve (AUC) of each draw.

    This is the share of pairs of a positive and a negative example in which the positive one has the higher score; a
    pair with equal scores counts half. A draw without a positive or without a negative example has NaN.

    Args:
        is_positive: Whether each example is positive.
        scores: The score of each example, which should be high for positive ones.
    """
    order = np.argsort(scores, kind="stable")
    _, firsts = np.unique(scores[order], return_index=True)  # The first place of each score in this order.
    is_positive = is_positive[order]

    def of_draws(weights: Weights) -> Float[np.ndarray, " draws"]:
        weights = weights[:, order]
        positives = np.add.reduceat(weights * is_positive, firsts, axis=1)  # By score.
        negatives = np.add.reduceat(weights * ~is_positive, firsts, axis=1)
        below = negatives.cumsum(1) - negatives / 2
        with np.errstate(invalid="ignore"):
            return (positives * below).sum(1) / (positives.sum(1) * negatives.sum(1))

    return of_draws


def shares(is_right: np.ndarray) -> Callable[[Weights], Float[np.ndarray, " draws"]]:
    """Returns a function that computes the share of right examples of each draw (the accuracy, WAR)."""
    return means(is_right)


def means(values: np.ndarray) -> Callable[[Weights], Float[np.ndarray, " draws"]]:
    """Returns a function that computes the mean over the examples of each draw."""

    def scores(weights: Weights) -> Float[np.ndarray, " draws"]:
        return weights @ values / weights.sum(1)

    return scores
