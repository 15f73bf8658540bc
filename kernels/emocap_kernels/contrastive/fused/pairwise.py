"""Runs the kernels of `sigmoid` and `soft`, which compute losses and, if needed, gradients in one pass.

The methods of `PairwiseKernels` replace the loop over tiles by which `emocap_kernels.contrastive.pairwise` computes
these objectives in torch. The autograd function of that module calls such a method in forward. In backward it
multiplies the gradients that the method has computed by the incoming gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from emocap_kernels.blocks import ceil_div
from emocap_kernels.contrastive.batch import ContrastiveBatch, TextBlock
from emocap_kernels.contrastive.fused.kernels import pairwise
from emocap_kernels.contrastive.fused.kernels.pairwise import sigmoid_kernel, soft_kernel
from emocap_kernels.contrastive.fused.kernels.tiles import RULE_NONE
from emocap_kernels.contrastive.fused.positives import BlockPositives, FusedPositives
from emocap_kernels.contrastive.fused.scores import ExponentScale, Operands, choose_exponent_scale
from emocap_kernels.contrastive.fused.softmax import GradientBuffer, KernelPlan, panel_chunks, score_statistics
from emocap_kernels.contrastive.fused.stats import Base2Stats, Best
from emocap_kernels.contrastive.sums import GradientSums, LossSums
from emocap_kernels.fused.launch import aligned, launch, tile_descriptor
from emocap_kernels.fused.tiling import panels, strips
from emocap_kernels.matmul import storage_scale


@dataclass(frozen=True, slots=True)
class PairwiseKernels:
    """Computes the losses and gradients of one batch by kernels, in the methods `sigmoid` and `soft`.

    Each of the two methods implements the protocol `PairPass`.
    """

    batch: ContrastiveBatch
    plan: KernelPlan

    def sigmoid(self, sums: GradientSums, *, with_gradient: bool) -> LossSums:
        """Returns the loss sums of the sigmoid loss, and adds the gradients to `sums` if `with_gradient` is set.

        This is a collective: all ranks must call it.
        """
        batch, left = self.batch, aligned(self.batch.image)
        scale_and_bias = [number.detach().float().reshape(1) for number in (batch.scale, batch.bias)]
        totals = scale_and_bias[0].new_zeros(pairwise.N_ROW_FIELDS, dtype=torch.float64)
        buffer = GradientBuffer(left) if with_gradient else None
        blocks: list[tuple[int, Best, Best]] = []
        for block in sums.blocks():
            operands = Operands(left, aligned(block.text), self.plan.tile)
            positives = self.plan.positives.in_block(block, batch.features)
            best = self._sigmoid_block(operands, positives, scale_and_bias, totals, buffer, sums)
            blocks.append((block.columns.start, *best))
        # Blocks are merged in the order of their columns: of equal scores the lower index wins. Each column is in one
        # block only, so the columns of all blocks are joined.
        blocks.sort(key=lambda each: each[0])
        rows = reduce(Best.merge, [each[1] for each in blocks])
        columns = Best(*(torch.cat(parts) for parts in zip(*[(b.score, b.hit) for _, _, b in blocks], strict=True)))
        sums.scale += totals[pairwise.BY_SCALE.value]
        sums.bias += totals[pairwise.BY_BIAS.value]
        text_hits = columns.reduce(batch.ranks).hit[batch.partition.own].double().sum()
        return _sigmoid_sums(totals, rows.hit.double().sum(), text_hits, self.plan.positives)

    def _sigmoid_block(
        self,
        operands: Operands,
        positives: BlockPositives,
        scale_and_bias: list[Tensor],
        totals: Tensor,
        buffer: GradientBuffer | None,
        sums: GradientSums,
    ) -> tuple[Best, Best]:
        """Adds the loss sums of one block to `totals`, and its gradients to `sums`.

        Returns the best score of each local row over the columns of the block, and the best score of each column over
        the local rows. `Best` also says whether a best score belongs to a positive without mining. `buffer` is the
        memory for the gradient of a chunk; None if no gradient is needed.
        """
        tile, scale, total = operands.tile, scale_and_bias[0], len(operands.right)
        image, text = operands.descriptors()
        # A rank without rows has no panel, and these first values are its result.
        best_rows = [Best(scale.new_empty(0), scale.new_empty(0))]
        columns = Best(scale.new_full((total,), float("-inf")), scale.new_zeros(total))
        for rows in panels(len(operands.left), tile, total):
            # All chunks of a panel write into one set of slots, and a chunk's gradient is multiplied before the next
            # one.
            height, row_tiles = rows[1] - rows[0], ceil_div(rows[1] - rows[0], tile.rows)
            ranges = panel_chunks(operands, rows, operands.left.element_size())
            cuts = [strips(height, right - left, tile) for left, right in ranges]
            row_parts = scale.new_zeros(pairwise.N_ROW_FIELDS, sum(number for number, _ in cuts), height)
            column_parts = scale.new_empty(pairwise.N_COLUMN_FIELDS, row_tiles, total)
            slot = 0
            for chunk, (number, strip) in zip(ranges, cuts, strict=True):
                gradient = None if buffer is None else buffer.chunk(rows, chunk)
                launch(
                    sigmoid_kernel,
                    (row_tiles, number),
                    image,
                    text,
                    None if gradient is None else tile_descriptor(gradient, tile.rows, tile.columns),
                    *scale_and_bias,
                    *positives.groups,
                    positives.mask(rows, chunk, tile),
                    row_parts,
                    column_parts,
                    positives.all.threshold,
                    positives.first,
                    *rows,
                    *chunk,
                    strip,
                    operands.width,
                    slot,
                    row_parts.shape[1],
                    height,
                    row_tiles,
                    total,
                    storage_scale(operands.left.dtype),
                    WITH_GRADIENT=gradient is not None,
                    **positives.all.options(),
                    **tile.options(),
                )
                slot += number
                if gradient is not None:
                    sums.add(gradient[:, : chunk[1] - chunk[0]], slice(*rows), slice(*chunk))
            # The fields before BEST are sums, which are added over all strips and rows.
            best_rows.append(Best(row_parts[pairwise.BEST.value], row_parts[pairwise.HIT.value]).merge_parts())
            totals[: pairwise.BEST.value] += row_parts[: pairwise.BEST.value].double().sum((1, 2))
            columns = columns.merge(Best(*column_parts).merge_parts())
        rows = Best(torch.cat([each.score for each in best_rows]), torch.cat([each.hit for each in best_rows]))
        return rows, columns

    def soft(self, sums: GradientSums, *, with_gradient: bool) -> LossSums:
        """Returns the loss sums of the soft loss, and adds the gradients to `sums` if `with_gradient` is set.

        Two earlier passes over the scores compute the softmax normalisers of student and teacher. This is a collective:
        all ranks must call it.
        """
        batch, plan = self.batch, self.plan
        assert batch.features is not None
        ranks, partition, features = batch.ranks, batch.partition, batch.features.own
        # 1. Both softmaxes get a shift of their own, because their scales differ.
        own = batch.text.detach().to(batch.image.dtype)
        student = choose_exponent_scale(batch.image, own, batch.scale, partition, ranks)
        teacher = choose_exponent_scale(features["image"], features["text"], batch.guide_scale, partition, ranks)
        # 2. One pass over all scores for each of them gives the normalisers.
        student_rows, student_columns = score_statistics(batch, student, plan)
        teacher_rows, teacher_columns = score_statistics(batch, teacher, plan, teacher=True)
        log_sums = _log_sums(student_rows, teacher_rows), _log_sums(student_columns, teacher_columns)
        # 3. A last pass computes losses and gradients.
        totals = student.slope.new_zeros(pairwise.N_ROW_FIELDS, dtype=torch.float64)
        buffer = GradientBuffer(batch.image) if with_gradient else None
        for block in sums.blocks():
            self._soft_block(block, (student, teacher), log_sums, totals, buffer, sums)
        sums.scale += totals[pairwise.BY_SCALE.value]
        known = plan.positives.group_sizes[partition.own].double().sum()
        return LossSums(
            image_loss=totals[pairwise.IMAGE_LOSS.value],
            text_loss=totals[pairwise.TEXT_LOSS.value],
            image_positives=known,
            text_positives=known,
            image_hits=student_rows.best.hit.double().sum(),
            text_hits=student_columns.best.hit[partition.own].double().sum(),
        )

    def _soft_block(
        self,
        block: TextBlock,
        exponents: tuple[ExponentScale, ExponentScale],
        log_sums: tuple[Tensor, Tensor],
        totals: Tensor,
        buffer: GradientBuffer | None,
        sums: GradientSums,
    ) -> None:
        """Adds the losses of one block to `totals`, and its gradients to `sums`.

        Args:
            block: The texts, and the teacher's features of them.
            exponents: The slope and the shift of the exponents, for student and teacher.
            log_sums: The softmax normalisers of the local rows and of all columns, from `_log_sums`.
            totals: The sums of the fields that the kernel writes, in float64.
            buffer: The memory for the gradient of a chunk; None if no gradient is needed.
            sums: Takes the gradients.
        """
        assert self.batch.features is not None
        tile, row_log_sums = self.plan.tile, log_sums[0]
        column_log_sums = log_sums[1][:, block.columns].contiguous()
        operands = Operands(aligned(self.batch.image), aligned(block.text), tile)
        teacher = Operands(aligned(self.batch.features.own["image"]), aligned(block.guides["text"]), tile)
        for rows in panels(len(operands.left), tile, len(operands.right)):
            height, row_tiles = rows[1] - rows[0], ceil_div(rows[1] - rows[0], tile.rows)
            for chunk in panel_chunks(operands, rows, operands.left.element_size()):
                gradient = None if buffer is None else buffer.chunk(rows, chunk)
                number, strip = strips(height, chunk[1] - chunk[0], tile)
                # The kernel writes only three of the fields, so the others must be 0.
                row_parts = totals.new_zeros(pairwise.N_ROW_FIELDS, number, height, dtype=torch.float32)
                launch(
                    soft_kernel,
                    (row_tiles, number),
                    *operands.descriptors(),
                    *teacher.descriptors(),
                    None if gradient is None else tile_descriptor(gradient, tile.rows, tile.columns),
                    *[each.slope for each in exponents],
                    row_log_sums,
                    column_log_sums,
                    row_parts,
                    *rows,
                    *chunk,
                    strip,
                    operands.width,
                    teacher.width,
                    row_log_sums.shape[1],
                    column_log_sums.shape[1],
                    0,
                    number,
                    height,
                    storage_scale(operands.left.dtype),
                    WITH_GRADIENT=gradient is not None,
                    **tile.options(),
                )
                totals += row_parts.double().sum((1, 2))
                if gradient is not None:
                    sums.add(gradient[:, : chunk[1] - chunk[0]], slice(*rows), slice(*chunk))


def _sigmoid_sums(totals: Tensor, image_hits: Tensor, text_hits: Tensor, positives: FusedPositives) -> LossSums:
    """Returns the loss sums from the totals that the kernel has written.

    Without mining both directions have equal losses, and the kernel computes only those of the images. The kernel
    counts positives only if mined pairs become positives. Otherwise the number of positives of an anchor is the number
    of samples with the same id (`group_sizes`).
    """
    known = positives.group_sizes[positives.own].double().sum()
    equal = positives.rule == RULE_NONE.value
    attract = not equal and positives.attract
    return LossSums(
        image_loss=totals[pairwise.IMAGE_LOSS.value],
        text_loss=totals[pairwise.IMAGE_LOSS.value if equal else pairwise.TEXT_LOSS.value],
        image_positives=totals[pairwise.IMAGE_COUNT.value] if attract else known,
        text_positives=totals[pairwise.TEXT_COUNT.value] if attract else known,
        image_hits=image_hits,
        text_hits=text_hits,
    )


def _log_sums(student: Base2Stats, teacher: Base2Stats) -> Tensor:
    """Returns the softmax normalisers of student and teacher in the layout that `soft_kernel` reads, [4, anchors].

    For student and for teacher, these are a peak, and log2 of the sum of 2^(score - peak).
    """
    sums = student.candidates, teacher.candidates
    return torch.stack([field for each in sums for field in (each.peak, each.sum_exp2.log2())])
