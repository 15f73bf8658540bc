"""Cross-entropy of a score matrix in both directions, block of rows by block of rows.

For a row i with positives P_i the loss is `log sum_j exp(S_ij) - mean over P_i of S_ij`. It is kept as a peak, a sum
of exponentials relative to the peak, and a mean relative to the peak: at scale 100 a plain log-sum-exp would round
away the small losses. Rows are whole within a block; columns run over blocks, then over ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.distributed import Ranks, add_over_, largest_over_, smallest_over_
from emocap_kernels.targets import Targets

FAR = torch.iinfo(torch.int64).max


@dataclass(frozen=True, slots=True)
class Anchors:
    """What is known of each anchor of one direction once all its candidates were seen; all [anchors].

    Attributes:
        peak: Largest score among those that take part.
        total: Sum of exp(score - peak) over those that take part.
        positive: Sum of the scores of the positives; for rows, each less the peak.
        count: Number of positives, in the type of the scores.
        best: Global index of the best-scoring candidate, the lower one of a tie.
    """

    peak: Tensor
    total: Tensor
    positive: Tensor
    count: Tensor
    best: Tensor

    def row_losses(self) -> Tensor:
        return self.total.double().log() - self.positive.double() / self.count.clamp(min=1)

    def column_losses(self, own: slice) -> Tensor:
        mean = self.positive[own] / self.count[own].clamp(min=1)
        return (self.peak[own].double() - mean) + self.total[own].double().log()

    def log_sums(self) -> Tensor:
        """Natural logarithm of the sum of exp(score), in the type of the scores."""
        return self.peak + self.total.log()

    def log_sums_above(self, others: Anchors, part: slice) -> Tensor:
        """How far the log-sums lie above those of `others`, float64 [part]."""
        ratio = self.total[part].double().log() - others.total[part].double().log()
        return (self.peak[part].double() - others.peak[part].double()) + ratio


def row_anchors(score: Tensor, targets: Targets) -> Anchors:
    """The row anchors of a block that holds all columns, [rows, columns > 0]."""
    candidates = targets.row_candidates(score)
    peak, best = score.max(1)
    if candidates is not score:
        peak = candidates.amax(1)
    shifted = candidates - peak[:, None]
    positive = targets.row_sums(shifted)
    total = shifted.exp_().sum(1)
    return Anchors(peak, total, positive, targets.row_counts().to(score.dtype), best)


def joined(parts: list[Anchors], like: Tensor) -> Anchors:
    """The anchors of all blocks of one rank, in order; `like` has the device and type of the scores."""
    none = like.new_empty(0)
    empty = Anchors(none, none, none, none, none.long())
    every = [empty, *parts]
    return Anchors(
        torch.cat([part.peak for part in every]),
        torch.cat([part.total for part in every]),
        torch.cat([part.positive for part in every]),
        torch.cat([part.count for part in every]),
        torch.cat([part.best for part in every]),
    )


class ColumnBest:
    """The best-scoring row of each column, while blocks of rows go by."""

    def __init__(self, number: int, *, like: Tensor) -> None:
        self._score = like.new_full((number,), float("-inf"))
        self._row = torch.full((number,), FAR, dtype=torch.int64, device=like.device)

    def add(self, score: Tensor, *, first: int) -> Tensor:
        """Takes in a block, [rows > 0, columns], whose row 0 has the global index `first`; returns its maxima."""
        block = score.amax(0)
        better = block > self._score
        self._score = torch.where(better, block, self._score)
        self._row = torch.where(better, _first_row(score, block) + first, self._row)
        return block

    def over(self, ranks: Ranks) -> Tensor:
        """Global indices once the rows of all ranks went by; the lower one of a tie."""
        score = self._score.clone()
        largest_over_(score, ranks)
        row = torch.where(self._score == score, self._row, FAR)
        smallest_over_(row, ranks)
        return row


class Columns:
    """The column anchors, while blocks of rows go by."""

    def __init__(self, number: int, *, like: Tensor) -> None:
        self._peak = like.new_full((number,), float("-inf"))
        self._total = like.new_zeros(number)
        # Partial sums in float64: hundreds of scores near 100 must not round away a small loss.
        self._positive = like.new_zeros(number, dtype=torch.float64)
        self._count = like.new_zeros(number)
        self._best = ColumnBest(number, like=like)

    def add(self, score: Tensor, targets: Targets, *, first: int) -> None:
        """Takes in a block, [rows > 0, columns], whose row 0 has the global index `first`."""
        self._positive += targets.column_sums(score)
        self._count += targets.column_counts()
        best = self._best.add(score, first=first)
        candidates = targets.column_candidates(score)
        block_peak = best if candidates is score else candidates.amax(0)
        peak = torch.maximum(self._peak, block_peak)
        shift = _finite(peak)
        self._total *= (self._peak - shift).exp_()
        self._total += (candidates - shift).exp_().sum(0)
        self._peak = peak

    def over(self, ranks: Ranks) -> Anchors:
        """The columns once the rows of all ranks went by."""
        peak = self._peak.clone()
        largest_over_(peak, ranks)
        total = self._total * (self._peak - _finite(peak)).exp_()
        sums = torch.stack([total.double(), self._positive, self._count.double()])
        add_over_(sums, ranks)
        kind = self._total.dtype
        return Anchors(peak, sums[0].to(kind), sums[1], sums[2].to(kind), self._best.over(ranks))


def _first_row(score: Tensor, value: Tensor) -> Tensor:
    """The first row of each column that holds `value`, int64; twice as fast as the indices of max(0) on CPU."""
    rows = torch.arange(len(score), dtype=torch.int32, device=score.device)[:, None]
    return torch.where(score == value, rows, len(score)).amin(0).long()


def _finite(peak: Tensor) -> Tensor:
    # A column may have no candidate among the rows seen so far; exp(-inf - -inf) would be NaN.
    return peak.masked_fill(peak == float("-inf"), 0.0)


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
