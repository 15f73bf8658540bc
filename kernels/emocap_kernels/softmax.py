"""Computes the cross-entropy of a score matrix in both directions, tile by tile (online softmax).

For a row i with positives P_i the loss is `log sum_j exp(S_ij) - mean over P_i of S_ij`. Each row and each column of a
tile is an anchor. A tile gives these statistics of each anchor: the peak (its largest score), the sum of exponentials
relative to the peak, and the sum and the number of the scores of its positives. Statistics of several tiles, and of
several ranks, are merged by rescaling to the larger peak. Losses are computed in float64. At scale 100, a float32
difference of a log-sum-exp and a score near 100 would round a small loss to 0.

In forward, a backend adds its tiles to `RunningScoreStats` and calls `reduce` once. From the result it makes
`GradientWeights`. In backward, it computes the scores of each tile again, and `score_gradient` returns their gradient.
In both losses, the backend `chunked` uses this module. In the local loss, `fused` uses the statistics and the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.distributed.ranks import Partition, Ranks
from emocap_kernels.distributed.reductions import all_reduce_max_, all_reduce_min_, all_reduce_sum_
from emocap_kernels.targets import Targets

# The index of an anchor without a candidate so far; larger than every real index, so a minimum removes it.
NO_INDEX = torch.iinfo(torch.int64).max


@dataclass(frozen=True, slots=True)
class Argmax:
    """Holds the best-scoring candidate of each anchor of one direction. If scores are equal, the lower index wins.

    Attributes:
        score: [anchors], the best score; -inf if there is no candidate.
        index: int64 [anchors], the global index of the candidate.
    """

    score: Tensor
    index: Tensor

    @staticmethod
    def empty(anchors: int, *, like: Tensor) -> Argmax:
        """Returns an `Argmax` of anchors that have no candidate yet, in the type and on the device of `like`."""
        index = torch.full((anchors,), NO_INDEX, dtype=torch.int64, device=like.device)
        return Argmax(like.new_full((anchors,), float("-inf")), index)

    def add_(self, part: Argmax, at: slice) -> None:
        """Updates the anchors in the slice `at`, in place, with `part`, their best candidates in one tile."""
        # Both are views, so `copy_` changes the fields of this object.
        score, index = self.score[at], self.index[at]
        better = (part.score > score) | ((part.score == score) & (part.index < index))
        index.copy_(torch.where(better, part.index, index))
        score.copy_(torch.where(better, part.score, score))

    def reduce(self, ranks: Ranks, score: Tensor | None = None) -> Tensor:
        """Returns the global index of each anchor's best candidate, int64 [anchors], over all ranks.

        This is a collective: all ranks must call it.

        Args:
            ranks: The ranks of the batch.
            score: [anchors], the best score of each anchor over all ranks, if it is known already.
        """
        if score is None:
            score = self.score.clone()
            all_reduce_max_(score, ranks)
        # A rank whose best score is lower than the best of all ranks offers NO_INDEX, and the minimum ignores it.
        index = torch.where(self.score == score, self.index, NO_INDEX)
        all_reduce_min_(index, ranks)
        return index


def row_argmax(score: Tensor, *, first: int) -> Argmax:
    """Returns the best-scoring column of each row of a tile, [rows, columns], which has at least one column.

    `first` is the global index of column 0.
    """
    best, index = score.max(1)
    return Argmax(best, index + first)


def column_argmax(score: Tensor, *, first: int) -> Argmax:
    """Returns the best-scoring row of each column of a tile, [rows, columns], which has at least one row.

    `first` is the global index of row 0.
    """
    best = score.amax(0)
    # This is twice as fast as the indices of max(0) on CPU.
    rows = torch.arange(len(score), dtype=torch.int32, device=score.device)[:, None]
    index = torch.where(score == best, rows, len(score)).amin(0)
    return Argmax(best, index.long() + first)


@dataclass(frozen=True, slots=True)
class AnchorStats:
    """Holds the softmax statistics of the anchors of one direction over the candidates so far. Each field is [anchors].

    Attributes:
        peak: Largest score of a candidate that is not excluded; -inf if there is none.
        sum_exp: Sum of exp(score - peak) over the candidates that are not excluded.
        positive: Sum of the scores of the positives, float64.
        count: Number of positives, in the type of the scores.
    """

    peak: Tensor
    sum_exp: Tensor
    positive: Tensor
    count: Tensor

    @staticmethod
    def empty(anchors: int, *, like: Tensor) -> AnchorStats:
        """Returns the statistics of anchors that have no candidate yet, for scores of the type and device of `like`."""
        return AnchorStats(
            peak=like.new_full((anchors,), float("-inf")),
            sum_exp=like.new_zeros(anchors),
            positive=like.new_zeros(anchors, dtype=torch.float64),
            count=like.new_zeros(anchors),
        )

    def part(self, part: slice) -> AnchorStats:
        """Returns the statistics of the anchors in the slice `part`, as views."""
        return AnchorStats(self.peak[part], self.sum_exp[part], self.positive[part], self.count[part])

    def losses(self) -> Tensor:
        """Returns the InfoNCE loss of each anchor, float64."""
        # The two large numbers are subtracted first, in float64. What remains may be as small as the loss. A count of 0
        # occurs only in the local loss: an image without a sentence, whose loss gets the weight 0.
        return (self.peak.double() - self.positive / self.count.clamp(min=1)) + self.sum_exp.double().log()

    def log_sum_exp(self) -> Tensor:
        """Returns the logarithm of each anchor's sum of exp(score), in the type of the scores."""
        return self.peak + self.sum_exp.log()

    def log_ratio(self, others: AnchorStats) -> Tensor:
        """Returns the log-sum-exp of each anchor minus that of the same anchor in `others`, float64."""
        ratio = self.sum_exp.double().log() - others.sum_exp.double().log()
        return (self.peak.double() - others.peak.double()) + ratio

    def add_(self, part: AnchorStats, at: slice) -> None:
        """Updates the anchors in the slice `at`, in place, with `part`, their statistics over one tile."""
        stats = self.part(at)
        peak = torch.maximum(stats.peak, part.peak)
        shift = finite(peak)
        # Both sums are rescaled to the larger peak. A side without a candidate has the peak -inf and so the factor 0.
        stats.sum_exp.mul_((stats.peak - shift).exp_()).add_((part.peak - shift).exp_().mul_(part.sum_exp))
        stats.peak.copy_(peak)
        # Sums over positives are not relative to a peak.
        stats.positive.add_(part.positive)
        stats.count.add_(part.count)

    def reduce(self, ranks: Ranks, peak: Tensor) -> AnchorStats:
        """Returns the statistics over the candidates of all ranks.

        This is a collective: all ranks must call it.

        Args:
            ranks: The ranks of the batch.
            peak: [anchors], the maximum of `self.peak` over all ranks.
        """
        sum_exp = self.sum_exp * (self.peak - finite(peak)).exp_()
        # One all-reduce for all three: its latency costs more than its bytes.
        sums = torch.stack([sum_exp.double(), self.positive, self.count.double()])
        all_reduce_sum_(sums, ranks)
        kind = self.sum_exp.dtype
        return AnchorStats(peak, sums[0].to(kind), sums[1], sums[2].to(kind))


def row_stats(score: Tensor, targets: Targets, best: Tensor) -> AnchorStats:
    """Returns the statistics of the rows of a tile of scores, [rows, columns], which has at least one column.

    `best`, [rows], is the largest score of each row, including the scores of excluded pairs.
    """
    candidates = targets.row_candidates(score)
    # If no pair is excluded, `row_candidates` returns `score` itself, whose maxima are known.
    peak = best if candidates is score else candidates.amax(1)
    count = targets.row_counts().to(score.dtype)
    shift = finite(peak)
    shifted = candidates - shift[:, None]
    # Scores of positives are summed relative to the peak, where the roundings are small.
    positive = targets.row_sums(shifted).double() + count * shift.double()
    # `exp_` overwrites `shifted`, so the positives are summed before.
    return AnchorStats(peak, shifted.exp_().sum(1), positive, count)


def column_stats(score: Tensor, targets: Targets, best: Tensor) -> AnchorStats:
    """Returns the statistics of the columns of a tile of scores, [rows, columns], which has at least one row.

    `best`, [columns], is the largest score of each column, including the scores of excluded pairs.
    """
    candidates = targets.column_candidates(score)
    peak = best if candidates is score else candidates.amax(0)
    count = targets.column_counts().to(score.dtype)
    shift = finite(peak)
    shifted = candidates - shift
    positive = targets.column_sums(shifted).double() + count * shift.double()
    return AnchorStats(peak, shifted.exp_().sum(0), positive, count)


def finite(peak: Tensor) -> Tensor:
    """Returns `peak` with 0 for anchors that have no candidate yet, because exp(-inf - (-inf)) would be NaN."""
    return peak.masked_fill(peak == float("-inf"), 0.0)


@dataclass(frozen=True, slots=True)
class ScoreStats:
    """Holds the statistics of the rows of this rank and of the columns of the whole batch.

    Attributes:
        rows: Softmax statistics of the local rows.
        columns: Softmax statistics of all columns, over the rows of all ranks.
        row_best: int64 [local rows], global index of the best-scoring column.
        column_best: int64 [columns of the batch], global index of the best-scoring row.
    """

    rows: AnchorStats
    columns: AnchorStats
    row_best: Tensor
    column_best: Tensor


class RunningScoreStats:
    """Keeps the statistics of the rows and of the columns of a score matrix, over all tiles added so far.

    Each pair of a local row and a column of the batch must be in exactly one tile. The order of the tiles changes only
    the rounding.
    """

    def __init__(self, rows: Partition, columns: Partition, *, like: Tensor) -> None:
        """Starts with empty statistics, to which no tile has been added yet.

        Args:
            rows: The division of the rows among the ranks. This rank scores only its own rows.
            columns: The division of the columns among the ranks. This rank scores all of them.
            like: A tensor of the type and device of the scores.
        """
        local, total, self._first = rows.local, columns.total, rows.first
        self._rows, self._columns = AnchorStats.empty(local, like=like), AnchorStats.empty(total, like=like)
        self._row_best, self._column_best = Argmax.empty(local, like=like), Argmax.empty(total, like=like)

    def add(self, score: Tensor, targets: Targets, rows: slice, columns: slice) -> None:
        """Adds a tile: the scores of `rows`, which are local indices, with `columns`, which are global indices."""
        # A maximum over no elements is an error in torch.
        if score.numel() == 0:
            return
        row_best = row_argmax(score, first=columns.start)
        column_best = column_argmax(score, first=self._first + rows.start)
        self._row_best.add_(row_best, rows)
        self._column_best.add_(column_best, columns)
        self._rows.add_(row_stats(score, targets, row_best.score), rows)
        self._columns.add_(column_stats(score, targets, column_best.score), columns)

    def reduce(self, ranks: Ranks) -> ScoreStats:
        """Returns the statistics over the tiles of all ranks, after every rank has added all its tiles.

        This is a collective: all ranks must call it.
        """
        # The statistics of the rows are complete: this rank has scored its rows against all columns. Those of the
        # columns lack the rows of the other ranks.
        peak, score = self._columns.peak, self._column_best.score
        if ranks.size > 1:
            # One all-reduce for both: its latency costs more than its bytes.
            all_reduce_max_(both := torch.stack([peak, score]), ranks)
            peak, score = both
        columns, best = self._columns.reduce(ranks, peak), self._column_best.reduce(ranks, score)
        return ScoreStats(self._rows, columns, self._row_best.index, best)


@dataclass(frozen=True, slots=True)
class GradientWeights:
    """Holds the weights that determine the gradient of the scores, for the anchors of one direction.

    Each field is [anchors].

    Attributes:
        peak: Largest score of a candidate, as in `AnchorStats`.
        softmax: w / sum_exp, where w is the weight of the anchor in the loss and `sum_exp` is that of `AnchorStats`.
            Multiplied by exp(score - peak), it gives the gradient of w times the anchor's log-sum-exp.
        positive: w divided by the number of positives of the anchor. It is subtracted from the gradient at each
            positive.
    """

    peak: Tensor
    softmax: Tensor
    positive: Tensor

    def part(self, part: slice) -> GradientWeights:
        """Returns the weights of the anchors in the slice `part`, as views."""
        return GradientWeights(self.peak[part], self.softmax[part], self.positive[part])


def gradient_weights(stats: AnchorStats, weight: Tensor | float) -> GradientWeights:
    """Returns the weights that determine the gradient of the scores, from the statistics of the anchors.

    `weight` is the factor of an anchor's loss in the mean: [anchors], or one number for all anchors.
    """
    # `sum_exp` is not 0: every anchor has a candidate, because known positives are never excluded.
    return GradientWeights(stats.peak, weight / stats.sum_exp, weight / stats.count.clamp(min=1))


def softmax_gradient(score: Tensor, targets: Targets, rows: GradientWeights, columns: GradientWeights) -> Tensor:
    """Returns the sum of two weighted softmaxes: over the candidates of each row, and over those of each column.

    The result is [rows, columns], like the tile of scores.
    """
    # The peaks are those over all candidates, so no exponent is above 0.
    gradient = (targets.row_candidates(score) - rows.peak[:, None]).exp_().mul_(rows.softmax[:, None])
    by_column = (targets.column_candidates(score) - columns.peak).exp_()
    return gradient.addcmul_(by_column, columns.softmax.expand_as(by_column))


def score_gradient(score: Tensor, targets: Targets, rows: GradientWeights, columns: GradientWeights) -> Tensor:
    """Returns the gradient of the weighted sum of all InfoNCE losses with respect to the scores of a tile.

    The result is [rows, columns], like the tile.
    """
    gradient = softmax_gradient(score, targets, rows, columns)
    targets.subtract_at_positives_(gradient, rows.positive, columns.positive)
    return gradient
