"""Tests whether two models differ on the same samples, by what they have found for each sample.

`outcome_scores.py` computes the scores from outcomes, which are what a task has found for each sample.

scipy is imported within a function, because its import takes time and most commands do not need it.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from emocap_pretrain.evaluation.calibration_error import debiased_errors
from emocap_pretrain.evaluation.crossed_draws import crossed_scores
from emocap_pretrain.evaluation.intervals import Weights, draws, percentiles
from emocap_pretrain.evaluation.outcome_scores import (
    Metric,
    calibration_name,
    entries,
    folds_of,
    groups_of,
    is_right_of,
    keys_of,
    metrics_of,
    part,
)
from emocap_pretrain.run_folder.outcomes import (
    AnswerOutcomes,
    ClassOutcomes,
    NumberOutcomes,
    Outcomes,
    ProbabilityOutcomes,
    RankOutcomes,
    Samples,
    ShotOutcomes,
    UnitOutcomes,
)

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
    classes = _classes(one), _classes(other)
    if set(classes[0]) != set(classes[1]):
        yield f"the classes to choose from differ: {len(classes[0]):,} and {len(classes[1]):,}"
    if isinstance(one, ShotOutcomes) and isinstance(other, ShotOutcomes):
        ours, theirs = (dict(zip(each.shots, each.chosen, strict=True)) for each in (one, other))
        if any(ours[shots] != theirs[shots] for shots in ours.keys() & theirs.keys()):
            yield "the probes were trained on other examples"
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


def _classes(outcomes: Outcomes) -> Sequence[str]:
    match outcomes:
        case ClassOutcomes() | ShotOutcomes() | ProbabilityOutcomes():
            return outcomes.classes
        case RankOutcomes() | NumberOutcomes() | AnswerOutcomes() | UnitOutcomes():
            return ()


def _truths(outcomes: Outcomes) -> Sequence[object]:
    match outcomes:
        case NumberOutcomes():
            return list(zip(*outcomes.truth, strict=True))
        case UnitOutcomes():
            return list(zip(*outcomes.shown, strict=True))
        case ClassOutcomes() | ShotOutcomes() | ProbabilityOutcomes():
            return [outcomes.classes[number] for number in outcomes.truth]
        case RankOutcomes() | AnswerOutcomes():
            return [None] * len(entries(outcomes))
