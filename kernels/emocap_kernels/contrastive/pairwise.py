"""Computes objectives that are sums over pairs (`sigmoid`, `soft`), in bounded memory.

The gradient of such a loss with respect to a score follows from that score. Forward therefore also computes the
gradients of the inputs, if any are needed, and backward only multiplies them by the incoming gradient. An objective
without a teacher costs three matrix products: one for the scores, and one each for the gradients of images and texts.
`GradientSums.finish_scale` says when the gradient of the scale needs a fourth matrix product. For an objective with a
teacher, an additional pass over all scores comes first. This pass computes the softmax denominators of the student (the
trained model) and of the teacher.

`evaluate` computes the tiles with operations of torch. The fused backend uses only `evaluate_pair_pass`, and passes to
it a `PairPass` that starts kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from emocap_kernels.contrastive.batch import ContrastiveBatch, TextBlock
from emocap_kernels.contrastive.objectives import PairwiseObjective, TeacherTile, Tile
from emocap_kernels.contrastive.sums import GradientSums, LossSums, count_hits
from emocap_kernels.contrastive.tiling import Tiling
from emocap_kernels.matmul import matmul
from emocap_kernels.result import LossResult
from emocap_kernels.softmax import Argmax, RunningScoreStats, ScoreStats, column_argmax, row_argmax
from emocap_kernels.transforms import once_differentiable


class PairPass(Protocol):
    """Describes a function that sums the losses in one pass over the scores of this rank's images with all texts."""

    def __call__(self, sums: GradientSums, *, with_gradient: bool) -> LossSums:
        """Returns this rank's part of the sums of the losses.

        If `with_gradient` is set, the function also adds the gradients of the inputs to `sums`. Autograd is disabled
        during the call. This is a collective: all ranks must call it.
        """
        ...


def evaluate_pair_pass(batch: ContrastiveBatch, pair_pass: PairPass) -> LossResult:
    """Returns the loss of `batch`. `pair_pass` computes the sums of the losses, and the gradients if any are needed.

    This is a collective: all ranks must call it.
    """
    inputs = batch.image, batch.text, batch.scale, batch.bias
    # Inside the function grad mode is off and its inputs still say that they need a gradient, so the mode is passed.
    loss, means = _GradientInForward.apply(*inputs, batch, pair_pass, torch.is_grad_enabled())  # pyright: ignore[reportGeneralTypeIssues]
    return LossResult.from_means(loss, means)


class _GradientInForward(Function):
    """Computes the gradients of the inputs in forward, and multiplies them by the incoming gradient in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        batch: ContrastiveBatch,
        pair_pass: PairPass,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        needs = [grad_enabled and each for each in ctx.needs_input_grad[:4]]
        sums = GradientSums(batch, needs)
        means = pair_pass(sums, with_gradient=any(needs)).means(batch.partition, batch.ranks).to(scale.dtype)
        if any(needs):
            ctx.ranks_over_anchors = batch.ranks.size / (2 * batch.partition.total)
            ctx.dtypes = image.dtype, text.dtype
            ctx.by_scale, ctx.by_bias = sums.scale.to(scale.dtype), sums.bias.to(bias.dtype)
            # Backward does not read image, text and bias, but `once_differentiable` needs the inputs.
            ctx.save_for_backward(sums.image, sums.text(), scale, image, text, bias)
        ctx.mark_non_differentiable(means)
        return (means[0] + means[1]) / 2, means

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor, None, None, None]:
        by_image, by_text, scale, *_ = ctx.saved_tensors
        # Each rank returns its part of the global gradient; a mean over ranks must give the sum of the parts.
        factor = grad_outputs[0] * ctx.ranks_over_anchors
        image, text = (
            None if gradient is None else (gradient * (factor * scale)).to(dtype)
            for gradient, dtype in zip((by_image, by_text), ctx.dtypes, strict=True)
        )
        return image, text, ctx.by_scale * factor, ctx.by_bias * factor, None, None, None


def evaluate(batch: ContrastiveBatch, objective: PairwiseObjective, tiling: Tiling) -> LossResult:
    """Returns the loss of the global batch. The tiles are computed one by one with operations of torch.

    This is a collective: all ranks must call it.
    """
    with torch.no_grad():
        teacher = _teacher(batch, tiling) if batch.objective.has_teacher else None

    def pair_pass(sums: GradientSums, *, with_gradient: bool) -> LossSums:
        running = _RunningLossSums(batch)
        for block in sums.blocks():
            for rows in tiling.rows:
                cosine = matmul(batch.image[rows], block.text.T)
                targets = tiling.targets(batch, rows, block, cosine)
                score = cosine.mul_(batch.scale).add_(batch.bias)
                tile = Tile(score, targets, None if teacher is None else teacher.tile(rows, block))
                running.add(tile, objective.losses(tile), rows, block)
                if with_gradient:
                    gradient = objective.gradient(tile)
                    sums.add(gradient, rows, slice(None))
                    sums.add_scale_and_bias(gradient, rows)
        sums.finish_scale()
        return running.result()

    return evaluate_pair_pass(batch, pair_pass)


@dataclass(frozen=True, slots=True)
class _LogSumExps:
    """Holds the logarithms of the softmax denominators of the local images, [local], and of all texts, [total]."""

    images: Tensor
    texts: Tensor

    @staticmethod
    def of(stats: ScoreStats) -> _LogSumExps:
        return _LogSumExps(stats.rows.log_sum_exp(), stats.columns.log_sum_exp())


@dataclass(frozen=True, slots=True)
class _Teacher:
    """Computes a teacher's scores from its features, and holds the log-sum-exps of student and teacher.

    The student is the model that is trained. The features of the teacher are `batch.features`.
    """

    batch: ContrastiveBatch
    student: _LogSumExps
    teacher: _LogSumExps

    def tile(self, rows: slice, block: TextBlock) -> TeacherTile:
        """Returns the teacher's scores of the local images `rows` with the texts of `block`, and the log-sum-exps.

        The log-sum-exps are those of student and teacher, for these images and these texts as anchors.
        """
        columns = block.columns
        return TeacherTile(
            score=_teacher_scores(self.batch, rows, block),
            image_log_sums=(self.student.images[rows, None], self.teacher.images[rows, None]),
            text_log_sums=(self.student.texts[columns], self.teacher.texts[columns]),
        )


def _teacher(batch: ContrastiveBatch, tiling: Tiling) -> _Teacher:
    """Computes all scores of student and teacher once, and returns a `_Teacher` that holds the log-sum-exps of both.

    This is a collective: all ranks must call it.
    """
    student, teacher = (RunningScoreStats(batch.partition, batch.partition, like=batch.scale) for _ in range(2))
    for block in batch.blocks():
        for rows in tiling.rows:
            score = matmul(batch.image[rows], block.text.T).mul_(batch.scale)
            # Nothing is mined with a teacher, so `targets` does not read the values of its last argument.
            targets = tiling.targets(batch, rows, block, score)
            student.add(score, targets, rows, block.columns)
            teacher.add(_teacher_scores(batch, rows, block), targets, rows, block.columns)
    student_sums, teacher_sums = (_LogSumExps.of(each.reduce(batch.ranks)) for each in (student, teacher))
    return _Teacher(batch, student_sums, teacher_sums)


def _teacher_scores(batch: ContrastiveBatch, rows: slice, block: TextBlock) -> Tensor:
    """Returns the teacher's scores of the local images `rows` with the texts of `block`, [rows, texts]."""
    assert batch.features is not None
    cosine = batch.features.similarity((("image", "text"),), rows, block.guides)
    return cosine.to(batch.scale.dtype).mul_(batch.guide_scale)


class _RunningLossSums:
    """Adds up losses and numbers of positives over tiles, and keeps the best candidate of each anchor."""

    def __init__(self, batch: ContrastiveBatch) -> None:
        self._batch = batch
        zero = torch.zeros((), dtype=torch.float64, device=batch.scale.device)
        self._image_loss, self._text_loss = zero, zero
        self._image_positives, self._text_positives = zero, zero
        self._images = Argmax.empty(batch.partition.local, like=batch.scale)
        self._texts = Argmax.empty(batch.partition.total, like=batch.scale)

    def add(self, tile: Tile, losses: tuple[Tensor, Tensor], rows: slice, block: TextBlock) -> None:
        self._image_loss = self._image_loss + losses[0]
        self._text_loss = self._text_loss + losses[1]
        self._image_positives = self._image_positives + tile.targets.row_counts().double().sum()
        self._text_positives = self._text_positives + tile.targets.column_counts().double().sum()
        self._images.add_(row_argmax(tile.score, first=block.columns.start), rows)
        self._texts.add_(column_argmax(tile.score, first=self._batch.partition.first + rows.start), block.columns)

    def result(self) -> LossSums:
        """Returns this rank's part of the sums of losses, numbers of positives and hits (`LossSums` explains them).

        This is a collective, because the best image of a text may be on any rank: all ranks must call it.
        """
        partition, ids = self._batch.partition, self._batch.ids
        return LossSums(
            image_loss=self._image_loss,
            text_loss=self._text_loss,
            image_positives=self._image_positives,
            text_positives=self._text_positives,
            image_hits=count_hits(self._images.index, partition, ids),
            text_hits=count_hits(self._texts.reduce(self._batch.ranks)[partition.own], partition, ids),
        )
