"""Computes the means that the local loss reports, from the statistics of all anchors.

The backends `chunked` and `fused` use this module.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.distributed.ranks import Ranks
from emocap_kernels.distributed.reductions import sum_over_ranks
from emocap_kernels.region.batch import RegionBatch
from emocap_kernels.softmax import GradientWeights, ScoreStats, gradient_weights


@dataclass(frozen=True, slots=True)
class AnchorWeights:
    """Holds the weights of the anchors in the loss, multiplied by A, the number of image anchors.

    In each direction, the loss is a mean over the anchors. So an image anchor has the weight 1 / A, and each of the N
    sentences has the weight 1 / N. Multiplied by A, these weights are 1 and A / N, which is at most 1. If they were
    multiplied by N instead, gradients in float16 would overflow with three or more sentences for each image
    (docs/log.md, 2026-11-23).

    Attributes:
        rows: [local images], 1 for an image that owns a sentence and 0 for the others, which are not anchors.
        column: 0-dim, A / N, the same for every sentence.
        anchors: 0-dim, A, the number of images of the batch that own a sentence.
    """

    rows: Tensor
    column: Tensor
    anchors: Tensor

    @staticmethod
    def of(batch: RegionBatch) -> AnchorWeights:
        """Computes the weights of a batch without communication: every rank knows the owners of all sentences."""
        is_anchor = batch.is_anchor()
        number = is_anchor.sum().to(batch.scale.dtype)
        rows = is_anchor[batch.image_partition.own].to(batch.scale.dtype)
        return AnchorWeights(rows, number / batch.sentence_partition.total, number)

    def gradient_weights(self, stats: ScoreStats) -> tuple[GradientWeights, GradientWeights]:
        """Returns the weights that determine the gradient of the scores, for rows and for columns.

        With these weights, the gradient of a score lies in [-2, 2].
        """
        return gradient_weights(stats.rows, self.rows), gradient_weights(stats.columns, self.column)

    def gradient_factor(self, grad_output: Tensor, ranks: Ranks) -> Tensor:
        """Returns the factor that turns gradients that were computed with `gradient_weights` into those of the loss.

        Each rank computes its part of a gradient, and DDP or DeepSpeed then takes the mean over ranks. This mean must
        be the sum of all parts, so the factor contains the number of ranks.
        """
        return grad_output * ranks.size / (2.0 * self.anchors)


def loss_means(batch: RegionBatch, stats: ScoreStats, weights: AnchorWeights) -> Tensor:
    """Returns the means over the global batch, float64 [5], in the order that `LossResult.from_means` expects.

    This is a collective: all ranks must call it.
    """
    # Unlike in the global loss, the weights of the two directions differ, so each sum contains its weight already.
    weight, own = weights.rows.double() / weights.anchors.double(), batch.sentence_partition.own
    column_weight = 1.0 / batch.sentence_partition.total
    columns = stats.columns.part(own)
    # Scores that are NaN have no best candidate, and their index may lie beyond the end.
    best = stats.row_best.clamp(max=len(batch.owner) - 1)
    sentence_hits = batch.owner[best] == batch.image_partition.indices(weight.device)
    image_hits = stats.column_best[own] == batch.owner[own]
    sums = torch.stack(
        [
            (stats.rows.losses() * weight).sum(),
            columns.losses().sum() * column_weight,
            ((stats.rows.count * weight).sum() + columns.count.double().sum() * column_weight) / 2,
            (sentence_hits * weight).sum(),
            image_hits.double().sum() * column_weight,
        ]
    )
    return sum_over_ranks(sums, batch.ranks)
