"""Merges the softmax statistics that fused kernels write, over tiles, panels, blocks and ranks.

Exponentials and logarithms are in base 2. A kernel writes one *part* for each strip or tile: the statistics over the
candidates of that strip or tile alone. Parts are merged in a fixed order, so that two runs are equal to the bit.

A sum of exponentials is stored relative to a *peak*, which was subtracted from the scores. If one shift fits the whole
batch (decision 9), the peak of every part is this shift, and merging only adds the sums. Otherwise the peak of a part
is its running maximum, and merging first rescales the sums to the largest peak. The same code serves both cases,
because in the first case every factor of the rescaling is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.contrastive.fused.kernels import gradient, statistics
from emocap_kernels.distributed.ranks import Ranks
from emocap_kernels.distributed.reductions import all_reduce_max_, all_reduce_min_, all_reduce_sum_
from emocap_kernels.softmax import finite

LN_2 = math.log(2.0)


@dataclass(frozen=True, slots=True)
class Best:
    """Holds the best score of each anchor, and whether the candidate with this score is a known positive.

    A known positive is a positive without mining. The tensors are [anchors], or [parts, anchors] until `merge_parts`
    has merged the parts that a kernel wrote.

    Attributes:
        score: Largest score.
        hit: 1.0 if the best candidate is a known positive, else 0.0.
    """

    score: Tensor
    hit: Tensor

    def merge_parts(self) -> Best:
        """Returns the best over all parts that a kernel wrote, [anchors]. Of equal scores the earlier part wins."""
        score = self.score.amax(0)
        # If the scores are NaN no part equals the maximum, and the last part is a valid place.
        numbers = torch.arange(len(self.score), device=score.device)[:, None]
        first = torch.where(self.score == score, numbers, len(self.score) - 1).amin(0)
        return Best(score, self.hit.gather(0, first[None])[0])

    def merge(self, later: Best) -> Best:
        """Returns the best over the candidates of this object and those of `later`.

        If the two best scores of an anchor are equal, the candidate of this object wins.
        """
        return Best(torch.stack([self.score, later.score]), torch.stack([self.hit, later.hit])).merge_parts()

    def reduce(self, ranks: Ranks, score: Tensor | None = None) -> Best:
        """Returns the best over all ranks. Of equal scores the lower rank wins.

        This is a collective: all ranks must call it.

        Args:
            ranks: The ranks of the batch.
            score: [anchors], the largest score of each anchor over the ranks, if the caller knows it already.
        """
        if score is None:
            score = self.score.clone()
            all_reduce_max_(score, ranks)
        # One number holds the lowest rank with the best score and whether it is a hit: 2 rank + (0 for a hit, else 1).
        # A rank with a lower score offers a larger and odd number, so NaN on all ranks is no hit.
        key = torch.where(self.score == score, 2.0 * ranks.rank + 1.0 - self.hit, 2.0 * ranks.size + 1.0)
        all_reduce_min_(key, ranks)
        return Best(score, (key % 2 == 0).float())


@dataclass(frozen=True, slots=True)
class LogSumExp2:
    """Holds a sum of 2^score for each anchor, stored as `sum_exp2` times 2^`peak`.

    The tensors are [anchors], or [parts, anchors] until `merge_parts` has merged the parts that a kernel wrote.
    """

    peak: Tensor
    sum_exp2: Tensor

    def merge_parts(self) -> LogSumExp2:
        """Returns the sum over all parts that a kernel wrote, [anchors]."""
        peak = self.peak.amax(0)
        return LogSumExp2(peak, (self.sum_exp2 * (self.peak - finite(peak)).exp2()).sum(0))

    def rescaled(self, peak: Tensor) -> Tensor:
        """Returns the factor that replaces `sum_exp2`, float64, if the same sum is stored with the given `peak`."""
        return self.sum_exp2.double() * (self.peak - finite(peak)).exp2()

    def reduce(self, ranks: Ranks) -> LogSumExp2:
        """Returns the sum over all ranks. This is a collective: all ranks must call it."""
        peak = self.peak.clone()
        all_reduce_max_(peak, ranks)
        sum_exp2 = self.rescaled(peak)
        all_reduce_sum_(sum_exp2, ranks)
        return LogSumExp2(peak, sum_exp2.to(self.sum_exp2.dtype))

    def log2(self) -> Tensor:
        """Returns the base-2 logarithm of the sum, float64."""
        return self.peak.double() + self.sum_exp2.double().log2()

    def gradient_weight(self, shift: Tensor, running_max: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (weight, peak), so that weight times 2^(score - peak) is the softmax probability of a candidate.

        If `running_max` is True, the kernels kept a running maximum, and the returned peak is the field `peak`, one
        number for each anchor. Otherwise the returned peak is `shift`, the same number for all anchors.
        """
        # The kernel without running maxima subtracts the shift from all scores, and uses no peak of an anchor.
        peak = torch.where(running_max, self.peak, shift)
        return (peak.double() - self.log2()).exp2(), peak


@dataclass(frozen=True, slots=True)
class Base2Stats:
    """Holds the softmax statistics of each anchor. Scores are in base 2: they contain the factor log2(e).

    The tensors are [anchors], or [parts, anchors] until `merge_parts` has merged the parts that a kernel wrote.

    Attributes:
        candidates: Sum of 2^score over the candidates.
        positives: The sum of 2^score over the positives if the kernel computed this sum (`sum_positives`), otherwise
            the sum of the scores of the positives, float64.
        count: Number of positives.
        best: The largest score of a candidate, and whether this candidate is a known positive.
    """

    candidates: LogSumExp2
    positives: LogSumExp2 | Tensor
    count: Tensor
    best: Best

    @staticmethod
    def from_fields(parts: Tensor, *, sum_positives: bool) -> Base2Stats:
        """Returns the statistics that a kernel wrote to `parts`, [fields, parts, anchors].

        `sum_positives` says whether the kernel summed 2^score over the positives (`mil_nce`), or their scores.
        """
        positives = parts[statistics.POSITIVE.value].double()
        return Base2Stats(
            candidates=LogSumExp2(parts[statistics.PEAK.value], parts[statistics.SUM_EXP2.value]),
            positives=LogSumExp2(parts[statistics.POSITIVE_PEAK.value], positives) if sum_positives else positives,
            count=parts[statistics.COUNT.value],
            best=Best(parts[statistics.BEST.value], parts[statistics.HIT.value]),
        )

    def merge_parts(self) -> Base2Stats:
        """Returns the statistics over all parts that a kernel wrote, [anchors]."""
        positives = self.positives
        merged = positives.merge_parts() if isinstance(positives, LogSumExp2) else positives.sum(0)
        return Base2Stats(self.candidates.merge_parts(), merged, self.count.sum(0), self.best.merge_parts())

    def merge(self, later: Base2Stats) -> Base2Stats:
        """Returns the statistics over the candidates of this object and those of `later`."""
        return _joined([self, later], torch.stack).merge_parts()

    def reduce(self, ranks: Ranks) -> Base2Stats:
        """Returns the statistics of columns over the rows of all ranks.

        This is a collective: all ranks must call it. The statistics of rows need no exchange, because a rank scores its
        rows against all columns.
        """
        if ranks.size == 1:
            return self
        if isinstance(self.positives, LogSumExp2):
            count = self.count.clone()
            all_reduce_sum_(count, ranks)
            best, positives = self.best.reduce(ranks), self.positives.reduce(ranks)
            return Base2Stats(self.candidates.reduce(ranks), positives, count, best)
        # One all-reduce for several statistics: its latency costs more than its bytes.
        largest = torch.stack([self.candidates.peak, self.best.score])
        all_reduce_max_(largest, ranks)
        peak, score = largest
        sums = torch.stack([self.candidates.rescaled(peak), self.positives, self.count.double()])
        all_reduce_sum_(sums, ranks)
        sum_exp2, positives, count = sums
        candidates = LogSumExp2(peak, sum_exp2.to(self.candidates.sum_exp2.dtype))
        return Base2Stats(candidates, positives, count.to(self.count.dtype), self.best.reduce(ranks, score))

    def map(self, change: Callable[[Tensor], Tensor]) -> Base2Stats:
        """Returns the statistics with `change` applied to each tensor."""
        positives = self.positives
        if isinstance(positives, LogSumExp2):
            positives = LogSumExp2(change(positives.peak), change(positives.sum_exp2))
        else:
            positives = change(positives)
        return Base2Stats(
            LogSumExp2(change(self.candidates.peak), change(self.candidates.sum_exp2)),
            positives,
            change(self.count),
            Best(change(self.best.score), change(self.best.hit)),
        )

    def tensors(self) -> list[Tensor]:
        """Returns all tensors, in the order in which `map` visits them."""
        found: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.map(keep)
        return found

    def part(self, part: slice) -> Base2Stats:
        """Returns the statistics of the anchors in the slice `part`."""
        return self.map(lambda tensor: tensor[part])

    def losses(self) -> Tensor:
        """Returns the loss of each anchor, float64. It is converted from base 2 to natural logarithms."""
        positive = self.positives.log2() if isinstance(self.positives, LogSumExp2) else self.positives / self.count
        return (self.candidates.log2() - positive) * LN_2

    def gradient_weights(self, shift: Tensor, running_max: Tensor) -> Tensor:
        """Returns the gradient weights in the layout that `gradient_kernel` reads, float32 [fields, anchors].

        The kernel computes the gradient of a score from the score and these weights. `shift` and `running_max` have the
        same meaning as in `LogSumExp2.gradient_weight`.
        """
        weights = self.count.new_zeros(gradient.N_FIELDS, len(self.count))
        weights[gradient.WEIGHT.value], weights[gradient.PEAK.value] = self.candidates.gradient_weight(
            shift, running_max
        )
        if isinstance(self.positives, LogSumExp2):
            weight, peak = self.positives.gradient_weight(shift, running_max)
            weights[gradient.POSITIVE_WEIGHT.value], weights[gradient.POSITIVE_PEAK.value] = weight, peak
        else:
            weights[gradient.POSITIVE_WEIGHT.value] = 1.0 / self.count
        return weights


def concatenate(stats: list[Base2Stats]) -> Base2Stats:
    """Joins the statistics of several sets of anchors along the axis of the anchors."""
    return _joined(stats, torch.cat)


def _joined(stats: list[Base2Stats], join: Callable[[list[Tensor]], Tensor]) -> Base2Stats:
    """Returns statistics in which `join` has combined the corresponding tensors of all `stats`."""
    joined = iter([join(list(tensors)) for tensors in zip(*[each.tensors() for each in stats], strict=True)])
    return stats[0].map(lambda _: next(joined))
