"""Estimates how certain scores are that vary with the test samples and with the draws of training examples.

The UAR of probes on few examples is a mean over a few draws of these, and every draw is scored on the same test
samples: draws and samples are crossed. A bootstrap of the samples alone ignores that other training examples give other
scores, and a bootstrap of five draws is too narrow. This is the design of studies in which several readers look at the
same cases, and the analysis is theirs (N. A. Obuchowski and H. E. Rockette, 1995), with draws as readers and persons as
cases. Let D_d be the score of draw d, or the difference of two models for it:

    variance of the mean of n draws = (variance of D_d over the draws) / n + (mean covariance of two draws)

The first term holds the draws, and the random errors of single probes. The covariance of two draws is what they share,
which is the choice of the test samples. It is computed from the samples by the infinitesimal jackknife of UAR. The mean
divided by its standard error has nearly a t distribution with the degrees of freedom of S. L. Hillis (2007), here with
a further term for the number of persons.

scipy is imported within a function, because its import takes time and most commands do not need it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from emocap_pretrain.evaluation.intervals import LEVEL
from emocap_pretrain.run_folder.outcomes import ShotOutcomes


@dataclass(frozen=True, slots=True)
class CrossedScores:
    """Holds the UAR of each draw, and how it depends on each person.

    Attributes:
        values: The UAR of each draw; with folds, its mean over the folds.
        influences: By how much the UAR of a draw changes, to first order, with the share of a person in the samples.
            The sum over the persons is 0.
    """

    values: Float[np.ndarray, " draws"]
    influences: Float[np.ndarray, "draws persons"]

    def minus(self, other: "CrossedScores") -> "CrossedScores":
        """Returns the scores minus those of another model, for the same draws and persons."""
        return CrossedScores(self.values - other.values, self.influences - other.influences)

    @property
    def mean(self) -> float:
        """Returns the mean over the draws."""
        return float(self.values.mean())

    def error(self) -> tuple[float, float]:
        """Returns the standard error of the mean and its degrees of freedom. They are NaN if there is only one person.

        A negative covariance counts as 0.
        """
        draws, persons = self.influences.shape
        if persons < 2:
            return math.nan, math.nan
        covariances = self.influences @ self.influences.T * (persons / (persons - 1))
        between = float(self.values.var(ddof=1)) / draws
        shared = max(0.0, float(covariances.sum() - covariances.trace()) / (draws * (draws - 1)))
        below = between**2 / (draws - 1) + shared**2 / (persons - 1)
        return math.sqrt(between + shared), (between + shared) ** 2 / below if below > 0 else math.inf

    def interval(self) -> tuple[float, float] | None:
        """Returns the bounds of the interval of the mean at the level `LEVEL`; None if there is only one person."""
        from scipy.stats import t

        error, freedom = self.error()
        if math.isnan(error):
            return None
        half = float(t.ppf((1 + LEVEL) / 2, freedom)) * error
        return self.mean - half, self.mean + half

    def p(self) -> float:
        """Returns the two-sided p value of a mean of 0; 1 if there is only one person."""
        from scipy.stats import t

        error, freedom = self.error()
        if math.isnan(error) or self.mean == 0:
            return 1.0
        return float(2 * t.sf(abs(self.mean) / error, freedom)) if error > 0 else 0.0


def crossed_scores(
    outcomes: ShotOutcomes, groups: Sequence[str | None], folds: Int[np.ndarray, " entries"] | None
) -> dict[str, CrossedScores]:
    """Returns the scores of the draws by the names of their means, such as `uar_4`.

    Args:
        outcomes: The outcomes of the probes.
        groups: The person or clip of each entry; an entry with None is a person of its own. The persons of the result
            are in the order in which they occur here.
        folds: The fold of each entry; None means that there are no folds.
    """
    numbers: dict[object, int] = {}
    persons = np.array(
        [numbers.setdefault(row if each is None else each, len(numbers)) for row, each in enumerate(groups)]
    )
    parts = [np.arange(len(groups))] if folds is None else [np.flatnonzero(folds == each) for each in np.unique(folds)]
    truth = np.array(outcomes.truth)
    found: dict[str, CrossedScores] = {}
    for shots, column in zip(outcomes.shots, outcomes.right, strict=True):
        is_right = right_of(column, outcomes.draws)
        values, influences = np.zeros(outcomes.draws), np.zeros((outcomes.draws, len(numbers)))
        for rows in parts:
            uars, of_entries = _recalls(truth[rows], is_right[:, rows])
            values += uars / len(parts)
            for draw, each in enumerate(of_entries):
                influences[draw] += np.bincount(persons[rows], each / len(parts), len(numbers))
        found[f"uar_{shots}"] = CrossedScores(values, influences)
    return found


def right_of(column: Sequence[int], draws: int) -> Bool[np.ndarray, "{draws} entries"]:
    """Returns whether the probe of each draw was right, from a column of `ShotOutcomes.right`."""
    return (np.array(column, dtype=np.int64) >> np.arange(draws)[:, None] & 1).astype(bool)


def _recalls(
    truth: Int[np.ndarray, " entries"], is_right: Bool[np.ndarray, "draws entries"]
) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, "draws entries"]]:
    """Returns the UAR of each draw, and the influence of each entry on it."""
    _, classes, counts = np.unique(truth, return_inverse=True, return_counts=True)
    recalls = np.stack([np.bincount(classes, each, len(counts)) for each in is_right]) / counts
    influences = (is_right - recalls[:, classes]) / (counts[classes] * len(counts))
    return recalls.mean(1), influences
