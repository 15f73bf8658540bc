"""Computes scores again from outcomes, and their confidence intervals.

Outcomes are what a task has found for each sample (`run_folder/outcomes.py`). A score has the same name here as in the
result of its task. Each score is a function of the number of times that each sample occurs in a draw, so that the
bootstrap, a test of two models and a division into groups use the same formula.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from emocap_pretrain.evaluation.calibration_error import errors
from emocap_pretrain.evaluation.corpus_scores import metrics_of_sums
from emocap_pretrain.evaluation.crossed_draws import crossed_scores, right_of
from emocap_pretrain.evaluation.intervals import (
    Metric,
    Weights,
    areas,
    class_sums,
    draws,
    mean_of_finite,
    mean_recalls,
    means,
    percentiles,
    shares,
)
from emocap_pretrain.run_folder.outcome_sums import CaptionOutcomes, LossOutcomes, RegionOutcomes
from emocap_pretrain.run_folder.outcomes import (
    AnswerOutcomes,
    ClassOutcomes,
    NumberOutcomes,
    Outcomes,
    ProbabilityOutcomes,
    RankOutcomes,
    ShotOutcomes,
    UnitOutcomes,
    columns,
    tables,
)
from emocap_pretrain.run_folder.results import TaskResult, metric_name
from emocap_pretrain.run_folder.samples import Samples

RECALLS = (1, 5, 10)  # The k of the recalls; further ones in a result are not compared.
MOST_ENTRIES = 100_000  # A result with more has intervals only where its task or a comparison computes them.


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
            found = {"accuracy": shares(is_right_of(outcomes))}
        case UnitOutcomes():
            found = _of_units(outcomes)
        case ShotOutcomes():
            found = _of_shots(outcomes)
        case ProbabilityOutcomes():
            found = _of_probabilities(outcomes)
        case CaptionOutcomes() | RegionOutcomes() | LossOutcomes():
            found = metrics_of_sums(outcomes)
    if folds is None:
        return dict(found)
    return {name: over_folds(metric, folds) for name, metric in found.items()}


def part(outcomes: Outcomes, places: Int[np.ndarray, " chosen"]) -> Outcomes:
    """Returns outcomes with only the entries that have the indices `places`, in the order of `places`."""

    def of(column: Sequence[object]) -> tuple[object, ...]:
        return tuple(column[place] for place in places)

    changes: dict[str, Any] = {name: of(getattr(outcomes, name)) for name in columns(outcomes)}
    changes |= {name: tuple(map(of, getattr(outcomes, name))) for name in tables(outcomes)}
    return replace(outcomes, **changes)


def with_intervals(result: TaskResult, *, most: int | None = MOST_ENTRIES) -> TaskResult:
    """Returns the result with a bootstrap interval for each score that follows from its outcomes and has none.

    Whole persons or clips are drawn where they are known. All scores of one entry of `result.outcomes` are computed
    from the same draws. The intervals of means over draws are those of `crossed_draws.py`. A calibration error gets no
    interval, because draws of the samples have larger errors than the samples themselves (`calibration_error.py`).

    Args:
        result: The result of a task.
        most: Outcomes with more entries give no intervals, which would be narrow and take long; None computes all.
    """
    samples = result.scored_samples
    lacking = {score.name for score in result.scores if score.interval is None}
    bounds: dict[str, tuple[float, float]] = {}
    for outcomes in result.outcomes if samples and lacking else ():
        assert samples, "outcomes refer to samples"
        if most is None or len(entries(outcomes)) <= most:
            bounds |= _intervals(outcomes, samples, lacking)
    scores = tuple(score.within(bounds[score.name]) if score.name in bounds else score for score in result.scores)
    return replace(result, scores=scores)


def _intervals(outcomes: Outcomes, samples: Samples, names: Collection[str]) -> dict[str, tuple[float, float]]:
    groups, folds = groups_of(outcomes, samples), folds_of(outcomes, samples)
    if isinstance(outcomes, ShotOutcomes):
        crossed = crossed_scores(outcomes, groups, folds)
        of_shots = {name: each.interval() for name, each in crossed.items() if name in names}
        return {name: (max(0.0, each[0]), min(1.0, each[1])) for name, each in of_shots.items() if each}
    without = calibration_name(outcomes)
    of_outcomes = metrics_of(outcomes, folds)
    metrics = {name: metric for name, metric in of_outcomes.items() if name in names and name != without}
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    for weights in draws(groups) if metrics else ():
        for name, metric in metrics.items():
            drawn[name].append(metric(weights))
    joined = {name: np.concatenate(found) for name, found in drawn.items()}
    found = {name: percentiles(each[np.isfinite(each)]) for name, each in joined.items()}
    return {name: each for name, each in found.items() if each}


def is_right_of(outcomes: Outcomes) -> np.ndarray:
    """Returns whether the model was right, for each sample of outcomes that have one right class or answer each."""
    match outcomes:
        case ClassOutcomes():
            return np.array(outcomes.truth) == np.array(outcomes.predicted)
        case AnswerOutcomes():
            return np.array(outcomes.is_right)
        case _:
            raise AssertionError(outcomes.kind)


def _of_classes(outcomes: ClassOutcomes) -> dict[str, Metric]:
    truth, predicted, count = np.array(outcomes.truth), np.array(outcomes.predicted), len(outcomes.classes)
    is_right = truth == predicted
    return {
        "uar": mean_recalls(truth, is_right, count),
        "war": shares(is_right),
        "macro_f1": mean_f1(truth, predicted, count),
        **({"auc": areas(truth == truth.max(), np.array(outcomes.margins))} if outcomes.margins else {}),
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
            return mean_of_finite(np.where(true > 0, 2 * hits / (true + guesses), np.nan))

    return scores


def _of_ranks(outcomes: RankOutcomes) -> dict[str, Metric]:
    ranks = np.array(outcomes.ranks)
    found = {f"recall_at_{k}_{outcomes.direction}": shares(ranks <= k) for k in RECALLS}
    return {**found, f"median_rank_{outcomes.direction}": median_rank(ranks)}


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


def _of_units(outcomes: UnitOutcomes) -> dict[str, Metric]:
    shown, found = np.array(outcomes.shown) == 1, np.array(outcomes.found) == 1
    is_labelled = np.array(outcomes.shown) >= 0
    hits, guesses = (shown & found).T.astype(float), (found & is_labelled).T.astype(float)

    def f1(weights: Weights) -> Float[np.ndarray, " draws"]:
        truths = weights @ shown.T
        with np.errstate(invalid="ignore"):
            by_unit = np.where(truths > 0, 2 * (weights @ hits) / (truths + weights @ guesses), np.nan)
        return mean_of_finite(by_unit)

    if not outcomes.scores:
        return {"f1": f1}
    rows = [np.flatnonzero(each) for each in is_labelled]
    by_unit = [
        areas(truth[each], np.array(column)[each])
        for truth, column, each in zip(shown, outcomes.scores, rows, strict=True)
        if len(each)
    ]

    def auc(weights: Weights) -> Float[np.ndarray, " draws"]:
        labelled = (each for each in rows if len(each))
        columns = [metric(weights[:, each]) for metric, each in zip(by_unit, labelled, strict=True)]
        return mean_of_finite(np.stack(columns, axis=1))

    return {"f1": f1, "auc": auc}


def _of_shots(outcomes: ShotOutcomes) -> dict[str, Metric]:
    truth, count = np.array(outcomes.truth), len(outcomes.classes)
    found: dict[str, Metric] = {}
    for shots, column in zip(outcomes.shots, outcomes.right, strict=True):
        of_draws = partial(_uars, [mean_recalls(truth, each, count) for each in right_of(column, outcomes.draws)])
        found[f"uar_{shots}"] = partial(_mean, of_draws)
        found[f"uar_{shots}_deviation"] = partial(_deviation, of_draws)
    return found


def _uars(of_draws: Sequence[Metric], weights: Weights) -> Float[np.ndarray, "probes draws"]:
    return np.stack([metric(weights) for metric in of_draws])


def _mean(uars: Metric, weights: Weights) -> Float[np.ndarray, " draws"]:
    return uars(weights).mean(0)


def _deviation(uars: Metric, weights: Weights) -> Float[np.ndarray, " draws"]:
    return uars(weights).std(0, ddof=1)


def calibration_name(outcomes: Outcomes) -> str | None:
    """Returns the name of the calibration error that follows from outcomes; None if none does."""
    return f"ece{outcomes.suffix}" if isinstance(outcomes, ProbabilityOutcomes) else None


def _of_probabilities(outcomes: ProbabilityOutcomes) -> dict[str, Metric]:
    is_right = np.array(outcomes.truth) == np.array(outcomes.predicted)
    found = {f"ece{outcomes.suffix}": errors(np.array(outcomes.confidences), is_right)}
    if outcomes.losses:
        found[f"log_loss{outcomes.suffix}"] = means(np.array(outcomes.losses))
    return found


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


def over_folds(metric: Metric, folds: Int[np.ndarray, " entries"]) -> Metric:
    """Returns a function that computes the mean of a score over the folds of the entries."""
    members = [folds == number for number in np.unique(folds)]

    def scores(weights: Weights) -> Float[np.ndarray, " draws"]:
        with np.errstate(invalid="ignore"):
            return np.mean([metric(weights * member) for member in members], axis=0)

    return scores
