"""From the sums of all anchors to what the local loss reports: for every backend that keeps sums and no matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.distributed.numbers import sum_over
from emocap_kernels.distributed.ranks import Ranks
from emocap_kernels.region.problem import RegionProblem
from emocap_kernels.result import Directions, LossResult
from emocap_kernels.softmax import Both, Shares, shares


@dataclass(frozen=True, slots=True)
class Weights:
    """What anchors weigh in the mean of their direction, times the number of image anchors: none more than 1.

    Attributes:
        rows: 1 for a local image that owns a sentence and 0 for the others, [local images].
        column: Of every sentence, 0-dim.
        anchors: Number of images of the batch that own a sentence, 0-dim.
    """

    rows: Tensor
    column: Tensor
    anchors: Tensor

    def shares(self, both: Both) -> tuple[Shares, Shares]:
        """Of gradients in scores, which then lie in [-2, 2] whatever the batch is."""
        return shares(both.rows, self.rows), shares(both.columns, self.column)

    def factor(self, grad_output: Tensor, ranks: Ranks) -> Tensor:
        """What such gradients are multiplied with: a mean over ranks must give the sum of their parts."""
        return grad_output * ranks.size / (2.0 * self.anchors)


def weights_of(problem: RegionProblem) -> Weights:
    anchors = problem.anchors()
    number = anchors.sum().to(problem.scale.dtype)
    rows = anchors[problem.images.own].to(problem.scale.dtype)
    return Weights(rows, number / problem.lines.total, number)


def means(problem: RegionProblem, both: Both, weights: Weights) -> Tensor:
    """Losses of both directions, mean number of positives, recall of both directions, float64 [5]."""
    weight, own = weights.rows.double() / weights.anchors.double(), problem.lines.own
    share = 1.0 / problem.lines.total
    columns = both.columns.part(own)
    # Scores that are no numbers have no best one.
    best = both.row_best.clamp(max=len(problem.owner) - 1)
    found_sentence = problem.owner[best] == problem.images.indices(weight.device)
    found_image = both.column_best[own] == problem.owner[own]
    sums = torch.stack(
        [
            (both.rows.losses() * weight).sum(),
            columns.losses().sum() * share,
            ((both.rows.count * weight).sum() + columns.count.double().sum() * share) / 2,
            (found_sentence * weight).sum(),
            found_image.double().sum() * share,
        ]
    )
    return sum_over(sums, problem.ranks)


def outcome(loss: Tensor, seen: Tensor) -> LossResult:
    """`loss` keeps its graph; `seen` are the `means`."""
    image_to_text, text_to_image, positives, by_image, by_text = seen.unbind()
    return LossResult(loss, image_to_text, text_to_image, positives, Directions(by_image, by_text))
