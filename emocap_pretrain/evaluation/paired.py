"""Computes scores again from outcomes, and tests whether two models differ on the same samples.

Outcomes are what a task has found for each sample (`run_folder/outcomes.py`). A score has the same name here as in the
result of its task. Each score is a function of the number of times that each sample occurs in a draw, so that the
bootstrap, a test of two models and a division into groups use the same formula.

scipy is imported within a function, because its import takes time and most commands do not need it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from emocap_pretrain.evaluation.intervals import Weights, class_sums, draws, mean_recalls, percentiles, shares
from emocap_pretrain.run_folder.outcomes import (
    AnswerOutcomes,
    ClassOutcomes,
    NumberOutcomes,
    Outcomes,
    RankOutcomes,
    Samples,
    columns,
)
from emocap_pretrain.run_folder.results import metric_name

Metric = Callable[[Weights], Float[np.ndarray, " draws"]]

DRAWS = 4000  # The smallest p of a paired bootstrap is about 2 / DRAWS, so it must be small also after a correction.
ACCURACIES = ("war", "accuracy")  # Shares of right samples, for which McNemar's test is exact.
RECALLS = (1, 5, 10)  # The k of the recalls; further ones in a result are not compared.


@dataclass(frozen=True, slots=True)
class Difference:
    """Holds the score of a model minus that of the first model, on the same samples.

    Attributes:
        value: The difference.
        interval: The bounds of the 95 % confidence interval of the difference, by a paired bootstrap; None if the
            difference is undefined in every bootstrap draw.
        p: The two-sided p value: the probability of a difference at least as large if the models do not differ.
        test: The name of the test that gives `p`.
        p_holm: `p` after Holm's correction; None if it was not corrected yet.
    """

    value: float
    interval: tuple[float, float] | None
    p: float
    test: str
    p_holm: float | None = None


def keys_of(outcomes: Outcomes, samples: Samples) -> list[tuple[int, str]]:
    """Returns what identifies each entry of outcomes: the number of its fold, and the key of its sample or query.

    The number of the fold is 0 if there are no folds, or if the queries are texts.
    """
    if isinstance(outcomes, RankOutcomes) and outcomes.keys:
        return [(0, key) for key in outcomes.keys]
    return [(samples.folds[row] if samples.folds else 0, samples.keys[row]) for row in outcomes.rows]


def groups_of(outcomes: Outcomes, samples: Samples) -> tuple[str | None, ...]:
    """Returns the person or clip of each entry of outcomes; None if it is unknown or the query is a text."""
    if not samples.groups or (isinstance(outcomes, RankOutcomes) and outcomes.keys):
        return (None,) * len(entries(outcomes))
    return tuple(samples.groups[row] for row in outcomes.rows)


def entries(outcomes: Outcomes) -> Sequence[object]:
    """Returns a sequence that is as long as the outcomes have entries. Its values mean nothing to the caller."""
    return outcomes.ranks if isinstance(outcomes, RankOutcomes) else outcomes.rows


def mismatches(one: tuple[Outcomes, Samples], other: tuple[Outcomes, Samples]) -> list[str]:
    """Returns the reasons why two outcomes do not belong to the same samples, each with the number of samples.

    The result is empty if they belong to the same samples. A sample with another true value counts as another sample.
    Outcomes of different kinds have this as their only reason.

    Args:
        one: The outcomes of the first model, with their samples.
        other: The outcomes of the other model, with their samples.
    """
    if one[0].kind != other[0].kind:
        return [f"the kinds of outcomes differ: {one[0].kind} and {other[0].kind}"]
    ours, theirs = (dict(zip(keys_of(*each), _truths(each[0]), strict=True)) for each in (one, other))
    found = [
        (len(entries(one[0])) - len(ours), "of the first occur more than once"),
        (len(entries(other[0])) - len(theirs), "of the other occur more than once"),
        (len(ours.keys() - theirs.keys()), "only in the first"),
        (len(theirs.keys() - ours.keys()), "only in the other"),
        (sum(ours[key] != theirs[key] for key in ours.keys() & theirs.keys()), "with another true value"),
    ]
    reasons = [f"{count:,} {what}" for count, what in found if count]
    # Other samples also have other answers, which need not be said.
    return reasons or [*_choices(one[0], other[0])]


def _choices(one: Outcomes, other: Outcomes) -> Iterator[str]:
    """Yields how the answers differ among which two models have chosen, as far as outcomes of one kind know it."""
    if isinstance(one, ClassOutcomes) and isinstance(other, ClassOutcomes) and set(one.classes) != set(other.classes):
        yield f"the classes to choose from differ: {len(one.classes):,} and {len(other.classes):,}"
    if isinstance(one, RankOutcomes) and isinstance(other, RankOutcomes):
        counts = (one.candidates, other.candidates)
        if all(counts) and counts[0] != counts[1]:
            yield f"the numbers of candidates differ: {counts[0]:,} and {counts[1]:,}"
    if isinstance(one, RankOutcomes | AnswerOutcomes) and isinstance(other, RankOutcomes | AnswerOutcomes):
        answers = (one.answers, other.answers)
        if all(answers) and answers[0] != answers[1]:
            yield "the answers to choose from, or the right ones, differ"


def differences(
    one: tuple[Outcomes, Samples], other: tuple[Outcomes, Samples], names: Collection[str] | None = None
) -> dict[str, Difference]:
    """Returns the scores of the other model minus those of the first one, with tests, by the names of the scores.

    `mismatches` must be empty for the two outcomes.

    A paired bootstrap draws whole persons or clips, and gives the interval and the p value of each difference. All
    scores are computed from the same draws. The share of right samples is an exception: if no person or clip has
    several samples and there are no folds, its p value is that of McNemar's exact test, which is a binomial test on the
    samples for which exactly one model is right (Q. McNemar, 1947).

    Args:
        one: The outcomes of the first model, with their samples.
        other: The outcomes of the other model, with their samples.
        names: The names of the scores that are compared; None compares all that follow from the outcomes.
    """
    places = {key: place for place, key in enumerate(keys_of(*other))}
    order = np.array([places[key] for key in keys_of(*one)], dtype=np.int64)
    groups, folds = groups_of(*one), folds_of(*one)
    ours, theirs = (metrics_of(outcomes, folds) for outcomes in (one[0], part(other[0], order)))
    compared = [name for name in ours if name in theirs and (names is None or name in names)]
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in compared}
    for weights in draws(groups, DRAWS if compared else 0):
        for name in compared:
            drawn[name].append(theirs[name](weights) - ours[name](weights))
    everything = np.ones((1, len(groups)))
    are_alone = not has_groups(groups) and folds is None
    found: dict[str, Difference] = {}
    for name in compared:
        value = float(theirs[name](everything)[0] - ours[name](everything)[0])
        found[name] = _by_bootstrap(value, np.concatenate(drawn[name]))
        if name in ACCURACIES and are_alone:
            p = mcnemar(_is_right(one[0]), _is_right(other[0])[order])
            found[name] = replace(found[name], p=p, test="exact McNemar test")
    return found


def _by_bootstrap(value: float, drawn: Float[np.ndarray, " draws"]) -> Difference:
    drawn = drawn[np.isfinite(drawn)]
    fewer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Difference(value, percentiles(drawn), min(1.0, 2 * (fewer + 1) / (len(drawn) + 1)), "paired bootstrap")


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the two-sided p value of McNemar's exact test.

    Args:
        one: Whether the first model is right, for each sample.
        other: Whether the other model is right, for each sample.
    """
    from scipy.stats import binomtest

    first, second = int((one & ~other).sum()), int((other & ~one).sum())
    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """Returns p values after the step-down correction of S. Holm (1979), in the order of `ps`.

    >>> holm([0.04, 0.01, 0.5])
    [0.08, 0.03, 0.5]
    """
    found, largest = [0.0] * len(ps), 0.0
    for place, number in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - place) * ps[number]))
        found[number] = largest
    return found


def has_groups(groups: Sequence[str | None]) -> bool:
    """Returns whether at least one person or clip has several samples."""
    return any(count > 1 for group, count in Counter(groups).items() if group is not None)


def folds_of(outcomes: Outcomes, samples: Samples) -> Int[np.ndarray, " entries"] | None:
    """Returns the fold of each entry of outcomes; None without folds, and for queries that are texts."""
    if not samples.folds or (isinstance(outcomes, RankOutcomes) and outcomes.keys):
        return None
    return np.array([samples.folds[row] for row in outcomes.rows], dtype=np.int64)


def metrics_of(outcomes: Outcomes, folds: Int[np.ndarray, " entries"] | None = None) -> dict[str, Metric]:
    """Returns the functions that compute the scores which follow from outcomes, by the names of the scores.

    Args:
        outcomes: The outcomes.
        folds: The fold of each entry; each score is then the mean over the folds. None means that there are no folds.
    """
    match outcomes:
        case ClassOutcomes():
            found = _of_classes(outcomes)
        case RankOutcomes():
            found = _of_ranks(outcomes)
        case NumberOutcomes():
            found = _of_numbers(outcomes)
        case AnswerOutcomes():
            found = {"accuracy": shares(_is_right(outcomes))}
    if folds is None:
        return dict(found)
    return {name: _over_folds(metric, folds) for name, metric in found.items()}


def part(outcomes: Outcomes, places: Int[np.ndarray, " chosen"]) -> Outcomes:
    """Returns outcomes with only the entries that have the indices `places`, in the order of `places`."""

    def of(column: Sequence[object]) -> tuple[object, ...]:
        return tuple(column[place] for place in places)

    changes: dict[str, Any] = {name: of(getattr(outcomes, name)) for name in columns(outcomes)}
    if isinstance(outcomes, NumberOutcomes):
        changes |= {name: tuple(map(of, getattr(outcomes, name))) for name in ("truth", "predicted")}
    return replace(outcomes, **changes)


def _truths(outcomes: Outcomes) -> Sequence[object]:
    match outcomes:
        case ClassOutcomes():
            return [outcomes.classes[number] for number in outcomes.truth]
        case NumberOutcomes():
            return list(zip(*outcomes.truth, strict=True))
        case RankOutcomes() | AnswerOutcomes():
            return [None] * len(entries(outcomes))


def _is_right(outcomes: Outcomes) -> np.ndarray:
    match outcomes:
        case ClassOutcomes():
            return np.array(outcomes.truth) == np.array(outcomes.predicted)
        case AnswerOutcomes():
            return np.array(outcomes.is_right)
        case RankOutcomes() | NumberOutcomes():
            raise AssertionError(outcomes.kind)


def _of_classes(outcomes: ClassOutcomes) -> dict[str, Metric]:
    truth, predicted, count = np.array(outcomes.truth), np.array(outcomes.predicted), len(outcomes.classes)
    is_right = truth == predicted
    return {
        "uar": mean_recalls(truth, is_right, count),
        "war": shares(is_right),
        "macro_f1": mean_f1(truth, predicted, count),
    }


def mean_f1(truth: np.ndarray, predicted: np.ndarray, classes: int) -> Metric:
    """Returns a function that computes macro-F1: the mean F1 of the classes that occur in the truth of a draw.

    Args:
        truth: The index of the true class of each sample.
        predicted: The index of the predicted class of each sample.
        classes: The number of classes.
    """
    of_truth, of_guesses, is_right = class_sums(truth, classes), class_sums(predicted, classes), truth == predicted

    def scores(weights: Weights) -> Float[np.ndarray, " draws"]:
        true, hits, guesses = of_truth(weights), of_truth(weights * is_right), of_guesses(weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.nanmean(np.where(true > 0, 2 * hits / (true + guesses), np.nan), axis=1)

    return scores


def _of_ranks(outcomes: RankOutcomes) -> dict[str, Metric]:
    ranks = np.array(outcomes.ranks)
    found = {f"{outcomes.prefix}recall_at_{k}_{outcomes.direction}": shares(ranks <= k) for k in RECALLS}
    return {**found, f"{outcomes.prefix}median_rank_{outcomes.direction}": median_rank(ranks)}


def median_rank(ranks: np.ndarray) -> Metric:
    """Returns a function that computes the median rank of each draw, in which each rank occurs as often as its query.

    As in `numpy.median`, the median of an even number of ranks is the mean of the two middle ones. A draw without any
    rank has NaN.
    """
    order = np.argsort(ranks, kind="stable")
    ascending = ranks[order]

    def scores(weights: Weights) -> Float[np.ndarray, " draws"]:
        reached = weights[:, order].cumsum(1)
        total = reached[:, -1:]
        # The ranks number (total - 1) // 2 and total // 2, counted from 0.
        lower, upper = ((reached > np.floor(each)).argmax(1) for each in ((total - 1) / 2, total / 2))
        # A fold of which a draw holds no query has no median.
        return np.where(total[:, 0] > 0, (ascending[lower] + ascending[upper]) / 2, np.nan)

    return scores


def _of_numbers(outcomes: NumberOutcomes) -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    for name, truth, predicted in zip(outcomes.names, outcomes.truth, outcomes.predicted, strict=True):
        columns = np.array(predicted), np.array(truth)
        found |= {
            f"{metric_name(name)}_{score}": _number_score(score, *columns) for score in ("ccc", "pcc", "rmse", "sagr")
        }
    concordances = [found[f"{metric_name(name)}_ccc"] for name in outcomes.names]
    return {"ccc": lambda weights: np.mean([each(weights) for each in concordances], axis=0), **found}


def _number_score(score: str, predicted: np.ndarray, truth: np.ndarray) -> Metric:
    # Means near 0 lose no digits when squares are subtracted.
    x, y = predicted - truth.mean(), truth - truth.mean()

    def scores(weights: Weights) -> Float[np.ndarray, " draws"]:
        count = weights.sum(1)
        if score == "sagr":
            return weights @ (np.sign(predicted) == np.sign(truth)) / count
        if score == "rmse":
            return np.sqrt(weights @ (x - y) ** 2 / count)
        mean_x, mean_y = weights @ x / count, weights @ y / count
        of_x, of_y = weights @ x**2 - count * mean_x**2, weights @ y**2 - count * mean_y**2
        together = weights @ (x * y) - count * mean_x * mean_y
        if score == "pcc":
            below = np.sqrt(np.maximum(of_x * of_y, 0))
            return np.where(below > 0, together / np.where(below > 0, below, 1), 0.0)
        # torchmetrics divides variances by n - 1, and the squared distance of the means is not divided.
        below = (of_x + of_y) / (count - 1) + (mean_x - mean_y) ** 2
        return np.where(below > 0, 2 * together / (count - 1) / np.where(below > 0, below, 1), 0.0)

    return scores


def _over_folds(metric: Metric, folds: Int[np.ndarray, " entries"]) -> Metric:
    members = [folds == number for number in np.unique(folds)]

    def scores(weights: Weights) -> Float[np.ndarray, " draws"]:
        with np.errstate(invalid="ignore"):
            return np.mean([metric(weights * member) for member in members], axis=0)

    return scores
