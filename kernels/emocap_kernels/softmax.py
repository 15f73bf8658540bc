"""Cross-entropy of a score matrix in both directions, tile by tile.

For a row i with positives P_i the loss is `log sum_j exp(S_ij) - mean over P_i of S_ij`. A tile gives parts of the
anchors of its rows and of its columns: a peak, a sum of exponentials relative to the peak, and the positives. Parts of
more tiles, and of more ranks, are merged by rescaling. Losses are formed in float64: at scale 100 the difference of a
log-sum-exp and a score near 100 would round away a small loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.distributed.numbers import add_over_, largest_over_, smallest_over_
from emocap_kernels.distributed.ranks import Ranks
from emocap_kernels.targets import Targets

FAR = torch.iinfo(torch.int64).max


@dataclass(frozen=True, slots=True)
class Top:
    """The best-scoring candidate of each anchor: its score, and its global index, the lower one of a tie."""

    score: Tensor
    place: Tensor


def row_top(score: Tensor, *, first: int) -> Top:
    """Of the rows of a tile, [rows, columns > 0]; column 0 has the global index `first`."""
    best, place = score.max(1)
    return Top(best, place + first)


def column_top(score: Tensor, *, first: int) -> Top:
    """Of the columns of a tile, [rows > 0, columns]; row 0 has the global index `first`."""
    best = score.amax(0)
    # Twice as fast as the indices of max(0) on CPU.
    rows = torch.arange(len(score), dtype=torch.int32, device=score.device)[:, None]
    place = torch.where(score == best, rows, len(score)).amin(0)
    return Top(best, place.long() + first)


class RunningTop:
    """The best-scoring candidates of the anchors of one direction while tiles go by."""

    def __init__(self, number: int, *, like: Tensor) -> None:
        self._score = like.new_full((number,), float("-inf"))
        self._place = torch.full((number,), FAR, dtype=torch.int64, device=like.device)

    def add(self, part: Top, at: slice) -> None:
        """Takes in what a tile knows of the anchors `at`."""
        score, place = self._score[at], self._place[at]
        better = (part.score > score) | ((part.score == score) & (part.place < place))
        place.copy_(torch.where(better, part.place, place))
        score.copy_(torch.where(better, part.score, score))

    def all(self) -> Tensor:
        """Global indices, once all candidates went by on this rank."""
        return self._place

    def peaks(self) -> Tensor:
        return self._score

    def over(self, ranks: Ranks, score: Tensor | None = None) -> Tensor:
        """Global indices, once the candidates of all ranks went by; `score` are the largest `peaks` of any rank."""
        if score is None:
            score = self._score.clone()
            largest_over_(score, ranks)
        place = torch.where(self._score == score, self._place, FAR)
        smallest_over_(place, ranks)
        return place


@dataclass(frozen=True, slots=True)
class Anchors:
    """What is known of each anchor of one direction from the candidates that were seen; all [anchors].

    Attributes:
        peak: Largest score among those that take part; -inf if none does.
        total: Sum of exp(score - peak) over those that take part.
        positive: Sum of the scores of the positives, float64.
        count: Number of positives, in the type of the scores.
    """

    peak: Tensor
    total: Tensor
    positive: Tensor
    count: Tensor

    def part(self, part: slice) -> Anchors:
        return Anchors(self.peak[part], self.total[part], self.positive[part], self.count[part])

    def losses(self) -> Tensor:
        """Of each anchor, float64."""
        return (self.peak.double() - self.positive / self.count.clamp(min=1)) + self.total.double().log()

    def log_sums(self) -> Tensor:
        """Natural logarithm of the sum of exp(score), in the type of the scores."""
        return self.peak + self.total.log()

    def log_sums_above(self, others: Anchors) -> Tensor:
        """How far the log-sums lie above those of `others`, float64 [anchors]."""
        ratio = self.total.double().log() - others.total.double().log()
        return (self.peak.double() - others.peak.double()) + ratio


def row_anchors(score: Tensor, targets: Targets, best: Tensor) -> Anchors:
    """Of the rows of a tile, [rows, columns > 0], whose largest scores are `best`."""
    candidates = targets.row_candidates(score)
    peak = best if candidates is score else candidates.amax(1)
    count = targets.row_counts().to(score.dtype)
    shift = _finite(peak)
    shifted = candidates - shift[:, None]
    # Summed relative to the peak, where the roundings are small.
    positive = targets.row_sums(shifted).double() + count * shift.double()
    return Anchors(peak, shifted.exp_().sum(1), positive, count)


def column_anchors(score: Tensor, targets: Targets, best: Tensor) -> Anchors:
    """Of the columns of a tile, [rows > 0, columns], whose largest scores are `best`."""
    candidates = targets.column_candidates(score)
    peak = best if candidates is score else candidates.amax(0)
    count = targets.column_counts().to(score.dtype)
    shift = _finite(peak)
    shifted = candidates - shift
    positive = targets.column_sums(shifted).double() + count * shift.double()
    return Anchors(peak, shifted.exp_().sum(0), positive, count)


def _finite(peak: Tensor) -> Tensor:
    # An anchor may have no candidate among those seen so far; exp(-inf - -inf) would be NaN.
    return peak.masked_fill(peak == float("-inf"), 0.0)


class Running:
    """The anchors of one direction while tiles go by."""

    def __init__(self, number: int, *, like: Tensor) -> None:
        self._found = Anchors(
            peak=like.new_full((number,), float("-inf")),
            total=like.new_zeros(number),
            positive=like.new_zeros(number, dtype=torch.float64),
            count=like.new_zeros(number),
        )

    def add(self, part: Anchors, at: slice) -> None:
        """Takes in what a tile knows of the anchors `at`."""
        found = self._found.part(at)
        peak = torch.maximum(found.peak, part.peak)
        shift = _finite(peak)
        found.total.mul_((found.peak - shift).exp_()).add_((part.peak - shift).exp_().mul_(part.total))
        found.peak.copy_(peak)
        found.positive.add_(part.positive)
        found.count.add_(part.count)

    def all(self) -> Anchors:
        """Once all candidates went by on this rank."""
        return self._found

    def over(self, ranks: Ranks, peak: Tensor) -> Anchors:
        """Once the candidates of all ranks went by: every rank gets the same; `peak` are the largest of any rank."""
        mine = self._found
        total = mine.total * (mine.peak - _finite(peak)).exp_()
        sums = torch.stack([total.double(), mine.positive, mine.count.double()])
        add_over_(sums, ranks)
        kind = mine.total.dtype
        return Anchors(peak, sums[0].to(kind), sums[1], sums[2].to(kind))


class RunningBoth:
    """Rows of this rank and columns of the whole batch while tiles go by."""

    def __init__(self, rows: int, columns: int, *, first: int, like: Tensor) -> None:
        """Row 0 has the global index `first`."""
        self._first = first
        self._rows, self._columns = Running(rows, like=like), Running(columns, like=like)
        self._row_tops, self._column_tops = RunningTop(rows, like=like), RunningTop(columns, like=like)

    def add(self, score: Tensor, targets: Targets, rows: slice, columns: slice) -> None:
        """Takes in the tile of `rows` and `columns`."""
        if score.numel() == 0:
            return
        row_tops = row_top(score, first=columns.start)
        column_tops = column_top(score, first=self._first + rows.start)
        self._row_tops.add(row_tops, rows)
        self._column_tops.add(column_tops, columns)
        self._rows.add(row_anchors(score, targets, row_tops.score), rows)
        self._columns.add(column_anchors(score, targets, column_tops.score), columns)

    def over(self, ranks: Ranks) -> Both:
        """Once all tiles of all ranks went by."""
        peak, score = self._columns.all().peak, self._column_tops.peaks()
        if ranks.size > 1:
            # Both at once: a round trip costs more than what it carries.
            largest_over_(both := torch.stack([peak, score]), ranks)
            peak, score = both
        columns, best = self._columns.over(ranks, peak), self._column_tops.over(ranks, score)
        return Both(self._rows.all(), columns, self._row_tops.all(), best)


@dataclass(frozen=True, slots=True)
class Both:
    """Rows of this rank and columns of the whole batch, and the global indices of their best candidates."""

    rows: Anchors
    columns: Anchors
    row_best: Tensor
    column_best: Tensor


@dataclass(frozen=True, slots=True)
class Shares:
    """What each anchor of one direction contributes to the gradient of its scores; all [anchors].

    Attributes:
        peak: As in `Anchors`.
        softmax: Weight of the anchor over its `total`: times exp(score - peak), the softmax part.
        positive: Weight of the anchor over its number of positives: the part of each of them.
    """

    peak: Tensor
    softmax: Tensor
    positive: Tensor

    def part(self, part: slice) -> Shares:
        return Shares(self.peak[part], self.softmax[part], self.positive[part])


def shares(anchors: Anchors, weight: Tensor | float) -> Shares:
    return Shares(anchors.peak, weight / anchors.total, weight / anchors.count.clamp(min=1))


def softmax_gradient(score: Tensor, targets: Targets, rows: Shares, columns: Shares) -> Tensor:
    """Weighted softmax of the candidates of each row, plus that of each column, [rows, columns]."""
    gradient = (targets.row_candidates(score) - rows.peak[:, None]).exp_().mul_(rows.softmax[:, None])
    by_column = (targets.column_candidates(score) - columns.peak).exp_()
    return gradient.addcmul_(by_column, columns.softmax.expand_as(by_column))


def score_gradient(score: Tensor, targets: Targets, rows: Shares, columns: Shares) -> Tensor:
    """Gradient of both directions in a block of scores, [rows, columns]."""
    gradient = softmax_gradient(score, targets, rows, columns)
    targets.subtract_(gradient, rows.positive, columns.positive)
    return gradient
