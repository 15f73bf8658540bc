"""Computes scores that follow from sums of what each sample adds: BLEU, means over regions, and losses."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from emocap_pretrain.evaluation.intervals import Metric, Weights, mean_of_finite, means
from emocap_pretrain.run_folder.outcome_sums import CaptionOutcomes, LossOutcomes, RegionOutcomes

BLEU, TOTAL_LOSS = "bleu", "loss"
"""The names of the scores that are no means of stored values."""


def metrics_of_sums(outcomes: CaptionOutcomes | RegionOutcomes | LossOutcomes) -> dict[str, Metric]:
    """Returns the functions that compute the scores which follow from outcomes, by the names of the scores."""
    match outcomes:
        case CaptionOutcomes():
            found = {
                name: means(np.array(column)) for name, column in zip(outcomes.names, outcomes.values, strict=True)
            }
            return {BLEU: bleu(np.array(outcomes.ngrams, dtype=float).T), **found}
        case RegionOutcomes():
            return _of_regions(outcomes)
        case LossOutcomes():
            values = np.array(outcomes.values)
            total = {TOTAL_LOSS: means(np.array(outcomes.weights) @ values)} if outcomes.weights else {}
            parts = {f"loss_{part}": means(column) for part, column in zip(outcomes.parts, values, strict=True)}
            return {**total, **parts}


def bleu(counts: Float[np.ndarray, "captions 10"]) -> Metric:
    """Returns a function that computes BLEU-4, in [0, 1], of each draw.

    The formula is that of sacrebleu with the smoothing `exp`, from the sums of the counts of n-grams over the captions
    of the draw. `emocap compare` needs it for thousands of draws, and also where sacrebleu is not installed.

    Args:
        counts: For each caption the numbers of matching n-grams for n = 1 to 4, the numbers of all n-grams for n = 1 to
            4, the length of the caption, and the length of the reference that is closest to it in length.
    """

    def scores(weights: Weights) -> Float[np.ndarray, " draws"]:
        sums = weights @ counts
        matches, totals, length, wanted = sums[:, :4], sums[:, 4:8], sums[:, 8], sums[:, 9]
        # The first order without a match counts as half a match, the second one as a quarter, and so on.
        smoothed = np.where(matches > 0, matches, 0.5 ** np.cumsum(matches == 0, axis=1))
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.exp(np.log(smoothed / totals).mean(1) + np.minimum(0, 1 - wanted / length))
        return np.where((totals > 0).all(1) & (matches > 0).any(1), found, 0.0)

    return scores


def mean_in_region(sums: Float[np.ndarray, " samples"], counts: Float[np.ndarray, " samples"]) -> Metric:
    """Returns a function that computes the mean of a value over all sentences of a draw about one region.

    A draw without such a sentence has NaN.

    Args:
        sums: The sum of the value over the sentences of each sample.
        counts: The number of these sentences.
    """

    def scores(weights: Weights) -> Float[np.ndarray, " draws"]:
        number = weights @ counts
        return np.where(number > 0, weights @ sums / np.where(number > 0, number, 1), np.nan)

    return scores


def mean_over_regions(
    of_regions: Sequence[Metric],
) -> Metric:
    """Returns a function that computes the mean over the regions that occur in a draw, each of which counts equally."""
    return lambda weights: mean_of_finite(np.stack([each(weights) for each in of_regions], axis=1))


def _of_regions(outcomes: RegionOutcomes) -> dict[str, Metric]:
    number = len(outcomes.regions)
    sentences, controlled = np.array(outcomes.sentences, dtype=float), np.array(outcomes.controlled, dtype=float)
    found: dict[str, Metric] = {}
    for at, measure in enumerate(outcomes.measures):
        columns = slice(at * number, (at + 1) * number)
        of_regions = [*map(mean_in_region, np.array(outcomes.own[columns]), sentences)]
        found[measure] = mean_over_regions(of_regions)
        found |= {f"{measure}/{name}": each for name, each in zip(outcomes.regions, of_regions, strict=True)}
        if controlled.any():
            for name, sums in (("shuffled", outcomes.control), ("difference", outcomes.change)):
                means_in = [*map(mean_in_region, np.array(sums[columns]), controlled)]
                found[f"{measure}_{name}"] = mean_over_regions(means_in)
    return found
