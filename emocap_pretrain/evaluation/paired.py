"""Tests whether two models differ on the same samples, by what they have found for each sample.

`outcome_scores.py` computes the scores from outcomes, which are what a task has found for each sample.

scipy is imported within a function, because its import takes time and most commands do not need it.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from emocap_pretrain.evaluation.calibration_error import debiased_errors
from emocap_pretrain.evaluation.crossed_draws import crossed_scores
from emocap_pretrain.evaluation.intervals import Metric, Weights, draws, percentiles
from emocap_pretrain.evaluation.outcome_scores import (
    calibration_name,
    folds_of,
    groups_of,
    is_right_of,
    keys_of,
    metrics_of,
    part,
)
from emocap_pretrain.evaluation.pairing import incomparable
from emocap_pretrain.run_folder.outcomes import (
    Outcomes,
    ProbabilityOutcomes,
    ShotOutcomes,
)
from emocap_pretrain.run_folder.samples import Samples

DRAWS = 4000  # The smallest p of a paired bootstrap is about 2 / DRAWS, so it must be small also after a correction.
SMALLEST_P = 2 / (DRAWS + 1)
SIGNIFICANT = 0.05  # A difference with a smaller p is marked.
ACCURACIES = ("war", "accuracy")  # Shares of right samples, for which McNemar's test is exact.


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

    def verdict(self, *, lower_is_better: bool) -> str:
        """Returns "better" or "worse" than the first model if the corrected p is below 0.05; otherwise an empty text.

        If p was not corrected, p itself is compared. `lower_is_better` says whether a smaller score is a better one.
        """
        if self.shown_p >= SIGNIFICANT or self.value == 0:
            return ""
        return "better" if (self.value < 0) == lower_is_better else "worse"

    @property
    def shown_p(self) -> float:
        """Returns the corrected p; p itself if it was not corrected."""
        return self.p if self.p_holm is None else self.p_holm


def differences(
    one: tuple[Outcomes, Samples], other: tuple[Outcomes, Samples], names: Collection[str] | None = None
) -> dict[str, Difference]:
    """Returns the scores of the other model minus those of the first one, with tests, by the names of the scores.

    `mismatches` must be empty for the two outcomes.

    A paired bootstrap draws whole persons or clips, and gives the interval and the p value of each difference. All
    scores are computed from the same draws. The share of right samples is an exception: if no person or clip has
    several samples and there are no folds, its p value is that of McNemar's exact test, which is a binomial test on the
    samples for which exactly one model is right (Q. McNemar, 1947). Means over draws of training examples are compared
    draw by draw (`crossed_draws.py`). The interval and the p value of a calibration error are those of the debiased
    one.

    Args:
        one: The outcomes of the first model, with their samples.
        other: The outcomes of the other model, with their samples.
        names: The names of the scores that are compared; None compares all that follow from the outcomes.
    """
    places = {key: place for place, key in enumerate(keys_of(*other))}
    order = np.array([places[key] for key in keys_of(*one)], dtype=np.int64)
    groups, folds = groups_of(*one), folds_of(*one)
    pair = one[0], part(other[0], order)
    if isinstance(pair[0], ShotOutcomes) and isinstance(pair[1], ShotOutcomes):
        return _of_draws(pair[0], pair[1], groups, folds, names)
    ours, theirs = (metrics_of(outcomes, folds) for outcomes in pair)
    compared = [name for name in ours if name in theirs and (names is None or name in names)]
    compared = [name for name in compared if name not in incomparable(*pair)]
    everything = np.ones((1, len(groups)))
    values = {name: float(theirs[name](everything)[0] - ours[name](everything)[0]) for name in compared}
    tests = dict.fromkeys(compared, "paired bootstrap")
    if (name := calibration_name(pair[0])) in compared:
        ours[name], theirs[name] = (_debiased(outcomes, groups, folds) for outcomes in pair)
        tests[name] = "paired bootstrap of the debiased calibration error"
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in compared}
    for weights in draws(groups, DRAWS if compared else 0):
        for name in compared:
            drawn[name].append(theirs[name](weights) - ours[name](weights))
    are_alone = not has_groups(groups) and folds is None
    found: dict[str, Difference] = {}
    for name in compared:
        found[name] = _by_bootstrap(values[name], np.concatenate(drawn[name]), tests[name])
        if name in ACCURACIES and are_alone:
            p = mcnemar(*map(is_right_of, pair))
            found[name] = replace(found[name], p=p, test="exact McNemar test")
    return found


def _by_bootstrap(value: float, drawn: Float[np.ndarray, " draws"], test: str) -> Difference:
    drawn = drawn[np.isfinite(drawn)]
    # Draws without a difference count on both sides. Those of a debiased score may lie on the other side of `value`.
    others = drawn <= 0 if value > 0 else drawn >= 0
    fewer = int(others.sum()) if value else len(drawn)
    return Difference(value, percentiles(drawn), min(1.0, 2 * (fewer + 1) / (len(drawn) + 1)), test)


def _of_draws(
    one: ShotOutcomes,
    other: ShotOutcomes,
    groups: Sequence[str | None],
    folds: Int[np.ndarray, " entries"] | None,
    names: Collection[str] | None,
) -> dict[str, Difference]:
    """Returns the differences of means over draws of training examples. The entries must be in the same order."""
    ours, theirs = (crossed_scores(each, groups, folds) for each in (one, other))
    # The deviations over draws are not compared.
    compared = [name for name in ours if name in theirs and (names is None or name in names)]
    found = {name: theirs[name].minus(ours[name]) for name in compared}
    return {
        name: Difference(
            each.mean, each.interval(), max(each.p(), SMALLEST_P) if each.mean else 1.0, "t test of crossed draws"
        )
        for name, each in found.items()
    }


def _debiased(outcomes: Outcomes, groups: Sequence[str | None], folds: Int[np.ndarray, " entries"] | None) -> Metric:
    """Returns a function that computes the debiased calibration error; with folds, its mean over the folds."""
    assert isinstance(outcomes, ProbabilityOutcomes)
    confidences, is_right = np.array(outcomes.confidences), np.array(outcomes.truth) == np.array(outcomes.predicted)
    parts = [np.arange(len(groups))] if folds is None else [np.flatnonzero(folds == each) for each in np.unique(folds)]
    metrics = [
        debiased_errors(confidences[rows], is_right[rows], [groups[row] for row in rows.tolist()]) for rows in parts
    ]

    def scores(weights: Weights) -> Float[np.ndarray, " draws"]:
        with np.errstate(invalid="ignore"):  # A draw may lack a fold.
            return np.mean([metric(weights[:, rows]) for metric, rows in zip(metrics, parts, strict=True)], axis=0)

    return scores


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
