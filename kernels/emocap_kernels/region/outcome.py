"""From the sums of all anchors to what the local loss reports: for every backend that keeps sums and no matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from emocap_kernels.distributed.numbers import sum_over
from emocap_kernels.region.problem import RegionProblem
from emocap_kernels.result import Directions, LossResult
from emocap_kernels.softmax import Both


def row_weights(problem: RegionProblem) -> Tensor:
    """What each local image weighs in the mean over images that own a sentence, [local images]; 0 for the others."""
    anchors = problem.anchors()
    return anchors[problem.images.own].to(problem.scale.dtype) / anchors.sum()


def means(problem: RegionProblem, both: Both, row_weight: Tensor) -> Tensor:
    """Losses of both directions, mean number of positives, recall of both directions, float64 [5]."""
    weight, own = row_weight.double(), problem.lines.own
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
