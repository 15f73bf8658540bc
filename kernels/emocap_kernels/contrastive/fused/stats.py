"""What the statistics of tiles add up to: over tiles, over panels, over ranks, and then in losses and shares."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.contrastive.fused.kernels import gradient, statistics
from emocap_kernels.distributed.numbers import add_over_, largest_over_, smallest_over_
from emocap_kernels.distributed.ranks import Ranks

LN_2 = math.log(2.0)


@dataclass(frozen=True, slots=True)
class Best:
    """The best score of each anchor, and 1.0 if it is that of a known positive; [anchors] or [parts, anchors]."""

    score: Tensor
    found: Tensor

    def folded(self) -> Best:
        """Parts in their order: of equal scores the earlier part wins."""
        score = self.score.amax(0)
        numbers = torch.arange(len(self.score), device=score.device)[:, None]
        first = torch.where(self.score == score, numbers, len(self.score) - 1).amin(0)
        return Best(score, self.found.gather(0, first[None])[0])

    def then(self, later: Best) -> Best:
        return Best(torch.stack([self.score, later.score]), torch.stack([self.found, later.found])).folded()

    def over(self, ranks: Ranks, score: Tensor | None = None) -> Best:
        """Of equal scores the lower rank wins; `score` are the largest of any rank."""
        if score is None:
            score = self.score.clone()
            largest_over_(score, ranks)
        # The lowest rank with the best score, and whether it found: one number, the smaller the better.
        key = torch.where(self.score == score, 2.0 * ranks.rank + 1.0 - self.found, 2.0 * ranks.size + 1.0)
        smallest_over_(key, ranks)
        return Best(score, (key % 2 == 0).float())


@dataclass(frozen=True, slots=True)
class LogSum:
    """`total` times 2^peak for each anchor; [anchors] or [parts, anchors]."""

    peak: Tensor
    total: Tensor

    def folded(self) -> LogSum:
        peak = self.peak.amax(0)
        return LogSum(peak, (self.total * (self.peak - _finite(peak)).exp2()).sum(0))

    def then(self, later: LogSum) -> LogSum:
        return LogSum(torch.stack([self.peak, later.peak]), torch.stack([self.total, later.total])).folded()

    def rescaled(self, peak: Tensor) -> Tensor:
        """The totals relative to another peak, float64."""
        return self.total.double() * (self.peak - _finite(peak)).exp2()

    def over(self, ranks: Ranks) -> LogSum:
        peak = self.peak.clone()
        largest_over_(peak, ranks)
        total = self.rescaled(peak)
        add_over_(total, ranks)
        return LogSum(peak, total.to(self.total.dtype))

    def value(self) -> Tensor:
        """Base-2 logarithm, float64."""
        return self.peak.double() + self.total.double().log2()

    def share(self, shift: Tensor, steep: Tensor) -> tuple[Tensor, Tensor]:
        """(weight, peak) with weight times 2^(score - peak) a candidate's part; `peak` is `shift` unless `steep`."""
        peak = torch.where(steep, self.peak, shift)
        return (peak.double() - self.value()).exp2(), peak


def _finite(peak: Tensor) -> Tensor:
    # An anchor may have no candidate among the parts seen so far; 2^(-inf - -inf) would be NaN.
    return peak.masked_fill(peak == float("-inf"), 0.0)


@dataclass(frozen=True, slots=True)
class Stats:
    """Of each anchor, in base 2; [anchors], or [parts, anchors] before they are folded.

    Attributes:
        candidates: Sum of 2^score over the candidates.
        positives: Sum over the positives of 2^score (`mil_nce`), or of the scores, float64.
        count: How many positives.
        best: Among all candidates.
    """

    candidates: LogSum
    positives: LogSum | Tensor
    count: Tensor
    best: Best

    @staticmethod
    def of(parts: Tensor, *, sum_positives: bool) -> Stats:
        """From the lines of a kernel, [lines, parts, anchors]."""
        positives = parts[statistics.POSITIVE.value].double()
        return Stats(
            candidates=LogSum(parts[statistics.PEAK.value], parts[statistics.TOTAL.value]),
            positives=LogSum(parts[statistics.POSITIVE_PEAK.value], positives) if sum_positives else positives,
            count=parts[statistics.COUNT.value],
            best=Best(parts[statistics.BEST.value], parts[statistics.FOUND.value]),
        )

    def folded(self) -> Stats:
        """Parts in their order."""
        positives = self.positives
        summed = positives.folded() if isinstance(positives, LogSum) else positives.sum(0)
        return Stats(self.candidates.folded(), summed, self.count.sum(0), self.best.folded())

    def then(self, later: Stats) -> Stats:
        """With the sums over later candidates."""
        if isinstance(self.positives, LogSum) and isinstance(later.positives, LogSum):
            positives = self.positives.then(later.positives)
        else:
            assert isinstance(self.positives, Tensor)
            assert isinstance(later.positives, Tensor)
            positives = self.positives + later.positives
        return Stats(
            self.candidates.then(later.candidates), positives, self.count + later.count, self.best.then(later.best)
        )

    def over(self, ranks: Ranks) -> Stats:
        """Columns once the rows of all ranks went by."""
        if ranks.size == 1:
            return self
        if isinstance(self.positives, LogSum):
            count = self.count.clone()
            add_over_(count, ranks)
            best, positives = self.best.over(ranks), self.positives.over(ranks)
            return Stats(self.candidates.over(ranks), positives, count, best)
        # Together: a round trip costs more than what it carries.
        largest = torch.stack([self.candidates.peak, self.best.score])
        largest_over_(largest, ranks)
        peak, score = largest
        sums = torch.stack([self.candidates.rescaled(peak), self.positives, self.count.double()])
        add_over_(sums, ranks)
        total, positives, count = sums
        candidates = LogSum(peak, total.to(self.candidates.total.dtype))
        return Stats(candidates, positives, count.to(self.count.dtype), self.best.over(ranks, score))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Stats:
        """Each tensor changed alike."""
        positives = self.positives
        if isinstance(positives, LogSum):
            positives = LogSum(change(positives.peak), change(positives.total))
        else:
            positives = change(positives)
        return Stats(
            LogSum(change(self.candidates.peak), change(self.candidates.total)),
            positives,
            change(self.count),
            Best(change(self.best.score), change(self.best.found)),
        )

    def tensors(self) -> list[Tensor]:
        """In the order of `mapped`."""
        found: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.mapped(keep)
        return found

    def part(self, part: slice) -> Stats:
        return self.mapped(lambda tensor: tensor[part])

    def losses(self) -> Tensor:
        """Of each anchor, float64."""
        attraction = self.positives.value() if isinstance(self.positives, LogSum) else self.positives / self.count
        return (self.candidates.value() - attraction) * LN_2

    def shares(self, shift: Tensor, steep: Tensor) -> Tensor:
        """The lines that the gradient kernel reads, float32 [lines, anchors]."""
        shares = self.count.new_zeros(gradient.LINES, len(self.count))
        shares[gradient.WEIGHT.value], shares[gradient.PEAK.value] = self.candidates.share(shift, steep)
        if isinstance(self.positives, LogSum):
            weight, peak = self.positives.share(shift, steep)
            shares[gradient.POSITIVE_WEIGHT.value], shares[gradient.POSITIVE_PEAK.value] = weight, peak
        else:
            shares[gradient.POSITIVE_WEIGHT.value] = 1.0 / self.count
        return shares


def joined(parts: list[Stats]) -> Stats:
    """The anchors of all parts, in order."""
    whole = iter([torch.cat(tensors) for tensors in zip(*[part.tensors() for part in parts], strict=True)])
    return parts[0].mapped(lambda _: next(whole))
