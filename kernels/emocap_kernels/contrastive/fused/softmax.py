"""Runs the kernels of `infonce` and `mil_nce`: statistics in forward, and the gradient of the scores in backward.

Forward and backward each make one pass over the scores, in three nested loops: over blocks of columns, over panels of
rows in a block, and over chunks of columns in a panel (`emocap_kernels.fused.tiling` explains these pieces). The host
only starts kernels and matrix products, and never reads a value from the device.

Each kernel has two variants. The first variant subtracts the same shift from all scores before the exponential, and the
second variant keeps a running maximum for each sum. The host always starts both. Both read a flag on the device: one
variant does the work, and the other one returns at once (decision 9).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from emocap_kernels.blocks import ceil_div
from emocap_kernels.contrastive.batch import ContrastiveBatch
from emocap_kernels.contrastive.fused.kernels import statistics
from emocap_kernels.contrastive.fused.kernels.gradient import gradient_kernel
from emocap_kernels.contrastive.fused.kernels.statistics import statistics_kernel
from emocap_kernels.contrastive.fused.kernels.tiles import RULE_MASK, RULE_NONE
from emocap_kernels.contrastive.fused.positives import BlockPositives, FusedPositives
from emocap_kernels.contrastive.fused.scores import ExponentScale, Operands
from emocap_kernels.contrastive.fused.stats import Base2Stats, concatenate
from emocap_kernels.contrastive.sums import GradientSums
from emocap_kernels.fused.launch import ALIGNMENT_BYTES, aligned, launch, tile_descriptor
from emocap_kernels.fused.tiling import Range, TileConfig, chunks, panels, strips
from emocap_kernels.matmul import storage_scale


def panel_chunks(operands: Operands, rows: Range, itemsize: int) -> list[Range]:
    """Returns the ranges of columns that cut the scores of the local `rows` into chunks of bounded size.

    `itemsize` is the number of bytes that a chunk stores for each pair of a row and a column.
    """
    return chunks(len(operands.right), operands.tile, rows[1] - rows[0], itemsize)


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """Holds the settings with which kernels compute a batch.

    Attributes:
        positives: The positives of the batch.
        tile: The tile size of the kernels that compute scores.
        sum_positives: Whether kernels sum 2^score over the positives of an anchor. `mil_nce` needs this sum if an
            anchor may have several positives. If False, kernels sum the scores of the positives.
    """

    positives: FusedPositives
    tile: TileConfig
    sum_positives: bool


def score_statistics(
    batch: ContrastiveBatch, exponents: ExponentScale, plan: KernelPlan, *, teacher: bool = False
) -> tuple[Base2Stats, Base2Stats]:
    """Returns the softmax statistics of this rank's rows, [local], and those of all columns, [total].

    The statistics of the columns are taken over the rows of all ranks. With `teacher`, the scores are those of the
    teacher. This is a collective: all ranks must call it.
    """
    blocks: list[tuple[int, Base2Stats, Base2Stats]] = []
    for block in batch.blocks():
        left, right = batch.image, block.text
        if teacher:
            assert batch.features is not None
            left, right = batch.features.own["image"], block.guides["text"]
        operands = Operands(aligned(left), aligned(right), plan.tile)
        positives = plan.positives.in_block(block, batch.features)
        rows, columns = _block_statistics(operands, exponents, positives, plan)
        blocks.append((block.columns.start, rows, columns))
    # Blocks are merged in the order of their columns: of equal scores the lower index wins.
    blocks.sort(key=lambda block: block[0])
    rows = reduce(Base2Stats.merge, [block[1] for block in blocks])
    columns = concatenate([block[2] for block in blocks]).reduce(batch.ranks)
    # Without mining, an anchor has as many positives as its group has samples, and the kernel does not count them.
    if plan.positives.rule == RULE_NONE.value:
        sizes = plan.positives.group_sizes
        return replace(rows, count=sizes[plan.positives.own]), replace(columns, count=sizes)
    return rows, columns


def _block_statistics(
    operands: Operands, exponents: ExponentScale, positives: BlockPositives, plan: KernelPlan
) -> tuple[Base2Stats, Base2Stats]:
    """Returns the statistics of each local row over the columns of a block, and of each column over the local rows."""
    number = len(operands.right)
    # A rank without rows has no panel. Its columns still need statistics for the sums over ranks.
    nothing = _empty_statistics(exponents, number, sum_positives=plan.sum_positives)
    row_stats: list[Base2Stats] = [nothing.part(slice(0, 0))]
    columns = nothing
    for rows in panels(len(operands.left), plan.tile, number):
        # Panels are merged in the order of their rows: of equal scores the lower index wins.
        panel_rows, panel_columns = _panel_statistics(operands, exponents, positives, rows, plan)
        row_stats.append(panel_rows)
        columns = columns.merge(panel_columns)
    return concatenate(row_stats), columns


def _empty_statistics(exponents: ExponentScale, number: int, *, sum_positives: bool) -> Base2Stats:
    """Returns the statistics of `number` anchors without any candidate."""
    parts = exponents.slope.new_zeros(statistics.N_FIELDS, 1, number)
    for field in (statistics.PEAK, statistics.BEST, statistics.POSITIVE_PEAK):
        parts[field.value].fill_(float("-inf"))
    return Base2Stats.from_fields(parts, sum_positives=sum_positives).merge_parts()


def _panel_statistics(
    operands: Operands, exponents: ExponentScale, positives: BlockPositives, rows: Range, plan: KernelPlan
) -> tuple[Base2Stats, Base2Stats]:
    """Returns the statistics of each row of a panel over the columns of one block, and of each column over these rows.

    The panel consists of the local rows `rows`.
    """
    tile, sum_positives = plan.tile, plan.sum_positives
    # The last field, POSITIVE_PEAK, is written for `mil_nce` only.
    fields = statistics.N_FIELDS if sum_positives else statistics.N_FIELDS - 1
    height, total = rows[1] - rows[0], len(operands.right)
    has_mask = plan.positives.rule == RULE_MASK.value
    # Only a mask, with one byte for each pair, must be cut into chunks. Scores are never written.
    ranges = panel_chunks(operands, rows, 1) if has_mask else [(0, total)]
    cuts = [strips(height, right - left, tile) for left, right in ranges]
    row_tiles, row_slots = ceil_div(height, tile.rows), sum(number for number, _ in cuts)
    # Row statistics have a slot for each strip of columns, column statistics one for each tile of rows. The programs
    # fill all slots, so the memory need not be initialised.
    row_parts = exponents.slope.new_empty(fields, row_slots, height)
    column_parts = exponents.slope.new_empty(fields, row_tiles, total)
    image, text = operands.descriptors()
    slot = 0
    for (left, right), (number, strip) in zip(ranges, cuts, strict=True):
        mask = positives.mask(rows, (left, right), tile)
        # Both variants are started; each reads `needs_running_max` on the device, and one of them returns at once.
        for running_max in (False, True):
            launch(
                statistics_kernel,
                (row_tiles, number),
                image,
                text,
                exponents.slope,
                exponents.shift,
                exponents.needs_running_max,
                *positives.groups,
                mask,
                row_parts,
                column_parts,
                plan.positives.threshold,
                positives.first,
                *rows,
                left,
                right,
                strip,
                operands.width,
                slot,
                row_slots,
                height,
                row_tiles,
                total,
                SUM_POSITIVES=sum_positives,
                RUNNING_MAX=running_max,
                **plan.positives.options(),
                **tile.options(),
            )
        slot += number
        # The memory of this mask serves the next one.
        del mask
    row_stats = Base2Stats.from_fields(row_parts, sum_positives=sum_positives).merge_parts()
    return row_stats, Base2Stats.from_fields(column_parts, sum_positives=sum_positives).merge_parts()


def add_gradients(
    sums: GradientSums,
    batch: ContrastiveBatch,
    exponents: ExponentScale,
    plan: KernelPlan,
    weights: tuple[Tensor, Tensor],
) -> None:
    """Adds the gradients of a softmax objective to `sums`.

    This is a collective: all ranks must call it.

    Args:
        sums: The sums to which the gradients are added.
        batch: The batch.
        exponents: The slope and the shift of the exponents, as in forward.
        plan: The settings of the kernels, as in forward.
        weights: The results of `Base2Stats.gradient_weights` for the local rows and for all columns, [fields, anchors]
            each.
    """
    row_weights = weights[0]
    left = aligned(batch.image)
    buffer = GradientBuffer(left)
    for block in sums.blocks():
        operands = Operands(left, aligned(block.text), plan.tile)
        positives = plan.positives.in_block(block, batch.features)
        # Kernels read the fields at a fixed distance, the number of columns of the block.
        column_weights = weights[1][:, block.columns].contiguous()
        for rows in panels(len(left), plan.tile, len(operands.right)):
            for columns in panel_chunks(operands, rows, left.element_size()):
                gradient = buffer.chunk(rows, columns)
                by_scale = _fill_gradient(
                    gradient, operands, exponents, positives, (row_weights, column_weights), rows, columns, plan
                )
                # The columns from `columns[1]` on only fill the rows up to an aligned length.
                sums.add(gradient[:, : columns[1] - columns[0]], slice(*rows), slice(*columns))
                sums.scale += by_scale


def _fill_gradient(
    gradient: Tensor,
    operands: Operands,
    exponents: ExponentScale,
    positives: BlockPositives,
    weights: tuple[Tensor, Tensor],
    rows: Range,
    columns: Range,
    plan: KernelPlan,
) -> Tensor:
    """Writes the gradient with respect to the scores of one chunk (`rows` by `columns`) to `gradient`.

    Returns what the chunk contributes to the gradient of the scale, 0-dim float64.
    """
    tile, (row_weights, column_weights) = plan.tile, weights
    image, text = operands.descriptors()
    row_tiles = ceil_div(rows[1] - rows[0], tile.rows)
    number, strip = strips(rows[1] - rows[0], columns[1] - columns[0], tile)
    # One number for each program. They are added in a fixed order afterwards, without atomics.
    by_scale = exponents.slope.new_zeros(row_tiles * number)
    mask = positives.mask(rows, columns, tile)
    for running_max in (False, True):
        launch(
            gradient_kernel,
            (row_tiles, number),
            image,
            text,
            tile_descriptor(gradient, tile.rows, tile.columns),
            exponents.slope,
            exponents.shift,
            exponents.needs_running_max,
            *positives.groups,
            mask,
            row_weights,
            column_weights,
            by_scale,
            plan.positives.threshold,
            *rows,
            *columns,
            strip,
            operands.width,
            row_weights.shape[1],
            column_weights.shape[1],
            storage_scale(gradient.dtype),
            SUM_POSITIVES=plan.sum_positives,
            RUNNING_MAX=running_max,
            RULE=plan.positives.rule,
            ATTRACT=plan.positives.attract,
            **tile.options(),
        )
    return by_scale.double().sum()


class GradientBuffer:
    """Holds memory for the gradient of one chunk, in the type of the embeddings. All chunks use the same memory.

    A chunk is some rows by some columns of the score matrix. A result of `chunk` is valid until the next call. The
    device runs kernels and matrix products in the order in which the host starts them. Therefore the kernel of the next
    chunk overwrites the memory only after the previous chunk has been multiplied.
    """

    def __init__(self, like: Tensor) -> None:
        self._memory = torch.empty(0, dtype=like.dtype, device=like.device)

    def chunk(self, rows: Range, columns: Range) -> Tensor:
        """Returns uninitialised memory for the gradient of a chunk, [rows, pitch].

        `pitch` is the number of columns, rounded up so that each row begins at an aligned address.
        """
        height, width = rows[1] - rows[0], columns[1] - columns[0]
        pitch = width + -width % (ALIGNMENT_BYTES // self._memory.element_size())
        if self._memory.numel() < height * pitch:
            self._memory = self._memory.new_empty(height * pitch)
        return self._memory[: height * pitch].view(height, pitch)
