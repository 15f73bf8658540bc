"""Scores a model for each value of a label of the samples, such as the gender or the age of the persons.

A group with few samples has a score that says little, so it is named and not scored. The groups with the highest and
the lowest score are chosen after looking at the scores, so their difference is above 0 even if the model treats all
groups alike. The test therefore compares this difference with the same difference in random divisions of the samples
into groups of the same sizes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emocap_pretrain.config.fields import label_text
from emocap_pretrain.evaluation.intervals import Metric, bootstrap
from emocap_pretrain.evaluation.outcome_scores import folds_of, groups_of, metrics_of, part
from emocap_pretrain.run_folder.outcomes import ClassOutcomes, Outcomes
from emocap_pretrain.run_folder.results import Score
from emocap_pretrain.run_folder.samples import Samples

LEAST = 20
PERMUTATIONS = 1000
MOST_VALUES, BINS = 6, 4  # A label with more different numbers than MOST_VALUES is divided into BINS ranges.
MOST_GROUPS = 24  # A label with more values is refused, such as the name of the person.
_SEED = 0


@dataclass(frozen=True, slots=True)
class GroupScore:
    """Holds the score of one group.

    Attributes:
        value: The value of the label, or a range of numbers.
        samples: Number of samples.
        persons: Number of persons or clips; None if they are unknown.
        score: The score; None if the group is too small, or its score is undefined.
        interval: The 95 % confidence interval of the score; None if the group is too small, or the score is undefined.
        lacks: The classes that occur among all samples but not in this group. Empty if the group is too small, or if
            the task predicts no classes. A group that lacks classes is left out of the difference, because its UAR is a
            mean over fewer classes than that of other groups.
    """

    value: str
    samples: int
    persons: int | None
    score: float | None = None
    interval: tuple[float, float] | None = None
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Subgroups:
    """Holds the score of each group, and the difference between the highest and the lowest score.

    Attributes:
        label: The name of the label by which the samples are divided.
        score: The name of the score.
        groups: The groups.
        unlabelled: Number of samples without a value of the label.
        lowest: The value of the group with the lowest score; empty if fewer than two groups can be compared.
        highest: The value of the group with the highest score; empty in the same case.
        difference: The highest minus the lowest score; None in the same case.
        p: The probability of at least this difference between random groups of the same sizes; None in the same case,
            and if a person or clip has samples of several compared groups, because then no division of whole persons
            is like this one.
        is_share: Whether the scores are fractions in [0, 1], which are shown in per cent.
    """

    label: str
    score: str
    groups: tuple[GroupScore, ...]
    unlabelled: int = 0
    lowest: str = ""
    highest: str = ""
    difference: float | None = None
    p: float | None = None
    is_share: bool = True

    def score_of(self, group: GroupScore) -> Score | None:
        """Returns the score of a group as a value with a text; None if the group has no score."""
        if group.score is None:
            return None
        return Score(self.score, self.label, group.score, is_share=self.is_share, interval=group.interval)

    @property
    def difference_text(self) -> str:
        """Returns the difference for users, such as "12.3 points"; empty if there is none."""
        if self.difference is None:
            return ""
        return f"{100 * self.difference:.1f} points" if self.is_share else f"{self.difference:.4g}"


def subgroups(outcomes: Outcomes, samples: Samples, label: str, score: str, *, least: int = LEAST) -> Subgroups | None:
    """Divides samples by a label, and scores each group.

    Args:
        outcomes: What the model has found for each sample.
        samples: The samples, which must have the label.
        label: The name of the label.
        score: The name of a score that follows from the outcomes.
        least: A group with fewer samples is not scored.

    Returns:
        The scores; None if the label has more than `MOST_GROUPS` values (or ranges, see `named`), or if the queries of
        the outcomes are texts, and not samples.
    """
    if not outcomes.rows:
        return None
    values = [samples.labels[label][row] for row in outcomes.rows]
    names = named(values)
    if len(set(names) - {None}) > MOST_GROUPS:
        return None
    persons = groups_of(outcomes, samples)
    found = [
        _scored(outcomes, samples, name, np.flatnonzero([each == name for each in names]), score, least)
        for name in _in_order(values, names)
    ]
    unlabelled = sum(name is None for name in names)
    compared = [each for each in found if each.score is not None and not each.lacks]
    if len(compared) < 2:
        return Subgroups(label, score, tuple(found), unlabelled)
    low, high = (choose(compared, key=lambda each: each.score or 0.0) for choose in (min, max))
    gap = (high.score or 0.0) - (low.score or 0.0)
    chosen = [each.value for each in compared]
    metric = metrics_of(outcomes, folds_of(outcomes, samples))[score]
    p = _p_of_gap(metric, names, persons, chosen, gap)
    return Subgroups(label, score, tuple(found), unlabelled, low.value, high.value, gap, p)


def named(values: Sequence[str | float | None]) -> list[str | None]:
    """Returns the name of the group to which each value belongs; None for a missing value.

    Each value is a group. But if all values are numbers and more than `MOST_VALUES` different ones occur, the groups
    are up to `BINS` ranges between their quartiles, with names such as "20 to 35".
    """
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(set(numbers)) <= MOST_VALUES or any(isinstance(value, str) for value in values):
        return [None if value is None else label_text(value) for value in values]
    edges = np.quantile(numbers, np.arange(1, BINS) / BINS, method="closest_observation")
    # A number that is equal to an edge belongs to the range below it.
    places = {number: int(np.searchsorted(np.unique(edges), number)) for number in set(numbers)}
    names = {place: _range([number for number in places if places[number] == place]) for place in places.values()}
    return [None if not isinstance(value, int | float) else names[places[value]] for value in values]


def _range(numbers: Sequence[float]) -> str:
    low, high = f"{min(numbers):g}", f"{max(numbers):g}"
    return low if low == high else f"{low} to {high}"


def _in_order(values: Sequence[str | float | None], names: Sequence[str | None]) -> list[str]:
    """Returns each name of a group once: numbers in ascending order, and texts with the most frequent one first."""
    firsts = {name: value for value, name in zip(values, names, strict=True) if name is not None}
    counts = Counter(names)
    return sorted(
        firsts, key=lambda name: (0.0, -counts[name], name) if isinstance(firsts[name], str) else (firsts[name], 0, "")
    )


def _scored(outcomes: Outcomes, samples: Samples, name: str, places: np.ndarray, score: str, least: int) -> GroupScore:
    chosen = part(outcomes, places)
    persons = groups_of(chosen, samples)
    known = [person for person in persons if person is not None]
    count = len(set(known)) if known else None
    if len(places) < least:
        return GroupScore(name, len(places), count)
    metric = metrics_of(chosen, folds_of(chosen, samples))[score]
    value = float(metric(np.ones((1, len(places))))[0])
    low, high = bootstrap(metric, persons)
    interval = (low, high) if np.isfinite([low, high]).all() else None
    return GroupScore(
        name, len(places), count, value if np.isfinite(value) else None, interval, _lacks(outcomes, chosen)
    )


def _lacks(everything: Outcomes, chosen: Outcomes) -> tuple[str, ...]:
    if not isinstance(everything, ClassOutcomes) or not isinstance(chosen, ClassOutcomes):
        return ()
    missing = set(everything.truth) - set(chosen.truth)
    return tuple(everything.classes[number] for number in sorted(missing))


def _p_of_gap(
    metric: Metric, names: Sequence[str | None], persons: Sequence[str | None], chosen: Sequence[str], gap: float
) -> float | None:
    """Returns the p value of a permutation test: how often random divisions have at least the difference `gap`.

    A random division exchanges the values of the label among whole persons or clips. Samples of no compared group
    belong to none in any division, and do not count when the values of a person are compared.

    Args:
        metric: The score.
        names: The name of the group of each sample; None without a value.
        persons: The person or clip of each sample; None if it is unknown.
        chosen: The names of the groups that are compared.
        gap: The difference between the highest and the lowest score of these groups.

    Returns:
        The share of the divisions; None if a person or clip has samples of several groups. Single samples are never
        exchanged instead, because those of a person are alike and would make almost any difference significant.
    """
    numbers = {name: number for number, name in enumerate(chosen)}
    of_sample = np.array([-1 if name is None else numbers.get(name, -1) for name in names])
    compared = np.flatnonzero(of_sample >= 0)
    unit_names = [place if persons[place] is None else persons[place] for place in compared.tolist()]
    _, first, unit = np.unique(np.array(list(map(repr, unit_names))), return_index=True, return_inverse=True)
    of_unit = of_sample[compared][first]
    if (of_unit[unit] != of_sample[compared]).any():
        return None
    random, reached = np.random.default_rng(_SEED), 0
    members = np.zeros((len(chosen), len(names)))
    for _ in range(PERMUTATIONS):
        shuffled = random.permutation(of_unit)[unit]
        members[:, compared] = shuffled == np.arange(len(chosen))[:, None]
        found = metric(members)
        reached += bool(np.nanmax(found) - np.nanmin(found) >= gap - 1e-12)
    return (reached + 1) / (PERMUTATIONS + 1)
