"""Computes the global loss in bounded memory, in plain torch. Each tile of scores is computed twice and never stored.

This module computes the objectives `infonce` and `mil_nce`, which compare positives with all candidates by a softmax.
Forward keeps a few numbers for each anchor. Backward computes each tile again, in the same shapes from the same
tensors, so that scores and masks equal those of forward to the bit. Then it adds the tile's part of the gradients. The
cost is four matrix products of the size of the score matrix, the least for a symmetric loss that stores no scores.

The module `pairwise` computes objectives that are sums over pairs. Their gradients can be computed in forward.

Forward and backward both loop over blocks of texts, which arrive from the ranks one after the other (`batch`), and over
slices of the local images (`tiling`). The module `softmax` merges the statistics of the tiles, and `sums` adds up their
gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd import Function

from emocap_kernels.contrastive import pairwise
from emocap_kernels.contrastive.batch import ContrastiveBatch
from emocap_kernels.contrastive.objectives import ContrastiveObjective, InfoNCE, MilNCE, PairwiseObjective
from emocap_kernels.contrastive.sums import GradientSums, LossSums, count_hits
from emocap_kernels.contrastive.tiling import Tiling
from emocap_kernels.matmul import matmul
from emocap_kernels.precision import full_precision
from emocap_kernels.result import LossResult
from emocap_kernels.softmax import (
    GradientWeights,
    RunningScoreStats,
    ScoreStats,
    gradient_weights,
    score_gradient,
    softmax_gradient,
)
from emocap_kernels.targets import Targets
from emocap_kernels.transforms import once_differentiable


def evaluate(batch: ContrastiveBatch, *, block_bytes: int | None = None) -> LossResult:
    """Returns the loss of the global batch, of which this rank may hold any number of rows.

    This is a collective: all ranks must call it.

    Args:
        batch: The batch, with embeddings of any type. On a GPU, half-precision vectors are multiplied in their own
            type.
        block_bytes: Largest number of bytes of one tile of scores; None means the default of the device.
    """
    tiling = Tiling.of(batch, block_bytes)
    if isinstance(batch.objective, PairwiseObjective):
        return pairwise.evaluate(batch, batch.objective, tiling)
    loss, means = _Softmax.apply(batch.image, batch.text, batch.scale, batch, tiling)  # pyright: ignore[reportGeneralTypeIssues]
    return LossResult.from_means(loss, means)


def can_run(objective: ContrastiveObjective) -> bool:
    """Returns whether this backend can run the objective. `choose_backend` asks this before a batch is made."""
    return isinstance(objective, InfoNCE | MilNCE | PairwiseObjective)


class _Softmax(Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, batch: ContrastiveBatch, tiling: Tiling
    ) -> tuple[Tensor, Tensor]:
        # These are the tensors that autograd differentiates. The batch holds them too.
        del image, text
        stats = _statistics(batch, tiling)
        ctx.tiling, ctx.weights = tiling, stats.gradient_weights()
        ctx.batch, vectors = batch.pack()
        # `ids` is saved only so that autograd raises an error if it was changed: `ctx.batch` holds it as well.
        ctx.save_for_backward(scale, batch.ids, *vectors)
        means = stats.loss_sums(batch).means(batch.partition, batch.ranks).to(scale.dtype)
        ctx.mark_non_differentiable(means)
        return (means[0] + means[1]) / 2, means

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, None, None]:
        scale, _, *vectors = ctx.saved_tensors
        batch: ContrastiveBatch = ctx.batch.unpack(vectors)
        sums = GradientSums(batch, (*ctx.needs_input_grad[:3], False))
        with full_precision(scale.device):
            for block in sums.blocks():
                for rows in ctx.tiling.rows:
                    cosine = matmul(batch.image[rows], block.text.T)
                    # The targets may be decided by the cosines, which `mul_` then overwrites by the scores.
                    targets = ctx.tiling.targets(batch, rows, block, cosine)
                    gradient = ctx.weights.gradient(cosine.mul_(scale), targets, rows, block.columns)
                    sums.add(gradient, rows, slice(None))
                    sums.add_scale_and_bias(gradient, rows)
            sums.finish_scale()
        # Each rank returns its part of the global gradient; a mean over ranks must give the sum of the parts.
        factor = grad_outputs[0] * (batch.ranks.size / (2 * batch.partition.total))
        return *sums.finished(factor * scale), sums.scale.to(scale.dtype) * factor, None, None


@dataclass(frozen=True, slots=True)
class _SoftmaxStats:
    """Holds the softmax statistics of each anchor over all candidates and, for `mil_nce`, over the positives alone."""

    candidates: ScoreStats
    positives: ScoreStats | None

    def loss_sums(self, batch: ContrastiveBatch) -> LossSums:
        partition, ids = batch.partition, batch.ids
        rows, columns = self.candidates.rows, self.candidates.columns.part(partition.own)
        if self.positives is None:
            image_losses, text_losses = rows.losses(), columns.losses()
        else:
            image_losses = rows.log_ratio(self.positives.rows)
            text_losses = columns.log_ratio(self.positives.columns.part(partition.own))
        return LossSums(
            image_loss=image_losses.sum(),
            text_loss=text_losses.sum(),
            image_positives=rows.count.double().sum(),
            text_positives=columns.count.double().sum(),
            image_hits=count_hits(self.candidates.row_best, partition, ids),
            text_hits=count_hits(self.candidates.column_best[partition.own], partition, ids),
        )

    def gradient_weights(self) -> _SoftmaxWeights:
        # The weight 1 leaves out the factor 1 / (2B) of the loss, which backward applies to the finished sums.
        weights = gradient_weights(self.candidates.rows, 1.0), gradient_weights(self.candidates.columns, 1.0)
        if self.positives is None:
            return _SoftmaxWeights(*weights)
        positives = gradient_weights(self.positives.rows, 1.0), gradient_weights(self.positives.columns, 1.0)
        return _SoftmaxWeights(*weights, *positives)


@dataclass(frozen=True, slots=True)
class _SoftmaxWeights:
    """Holds the gradient weights of all anchors, which forward computes and backward reads.

    The gradient of a tile of scores is computed from these weights, the scores, and the targets, which say which pairs
    of the tile are positives and which are excluded.
    """

    rows: GradientWeights
    columns: GradientWeights
    positive_rows: GradientWeights | None = None
    positive_columns: GradientWeights | None = None

    def gradient(self, score: Tensor, targets: Targets, rows: slice, columns: slice) -> Tensor:
        """Returns the gradient of the sum of all losses with respect to a tile of scores, [rows, columns]."""
        if self.positive_rows is None or self.positive_columns is None:
            return score_gradient(score, targets, self.rows.part(rows), self.columns.part(columns))
        # The gradient of `mil_nce` is the softmax over all candidates minus the softmax over the positives alone.
        gradient = softmax_gradient(score, targets, self.rows.part(rows), self.columns.part(columns))
        positives = self.positive_rows.part(rows), self.positive_columns.part(columns)
        return gradient.sub_(softmax_gradient(score, targets.positives_only(), *positives))


def _statistics(batch: ContrastiveBatch, tiling: Tiling) -> _SoftmaxStats:
    """Computes all tiles once and returns the statistics of all anchors.

    This is a collective: all ranks must call it.
    """
    partition = batch.partition
    candidates = RunningScoreStats(partition, partition, like=batch.scale)
    positives = None
    if isinstance(batch.objective, MilNCE):
        positives = RunningScoreStats(partition, partition, like=batch.scale)
    for block in batch.blocks():
        for rows in tiling.rows:
            cosine = matmul(batch.image[rows], block.text.T)
            targets = tiling.targets(batch, rows, block, cosine)
            # From here on the memory of the cosines holds the scores.
            score = cosine.mul_(batch.scale)
            candidates.add(score, targets, rows, block.columns)
            if positives is not None:
                positives.add(score, targets.positives_only(), rows, block.columns)
    return _SoftmaxStats(candidates.reduce(batch.ranks), None if positives is None else positives.reduce(batch.ranks))
