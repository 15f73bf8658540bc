"""The walks over blocks, panels and chunks: statistics on the way there, gradients on the way back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from emocap_kernels.blocks import ceil_div
from emocap_kernels.contrastive.fused.kernels import statistics
from emocap_kernels.contrastive.fused.kernels.gradient import gradient_kernel
from emocap_kernels.contrastive.fused.kernels.statistics import statistics_kernel
from emocap_kernels.contrastive.fused.kernels.tiles import RULE_MARKS, RULE_NONE
from emocap_kernels.contrastive.fused.marks import BlockPositives, Positives, Range
from emocap_kernels.contrastive.fused.scores import Exponents, Sides
from emocap_kernels.contrastive.fused.stats import Stats, joined
from emocap_kernels.contrastive.gradient_sums import GradientSums
from emocap_kernels.contrastive.problem import Problem
from emocap_kernels.fused.descriptors import ALIGNMENT, aligned, tiled
from emocap_kernels.fused.launch import launch
from emocap_kernels.fused.shapes import Shape, chunks, panels, strips
from emocap_kernels.products import gain


def chunked(sides: Sides, rows: Range, itemsize: int) -> list[Range]:
    """The chunks of a panel of rows, of `itemsize` bytes for each pair."""
    return chunks(len(sides.right), sides.shape, rows[1] - rows[0], itemsize)


@dataclass(frozen=True, slots=True)
class Walk:
    """A problem as kernels meet it, without its vectors.

    Attributes:
        positives: Of the batch.
        shape: Of the tiles.
        sum_positives: If the objective sums the probabilities of positives.
    """

    positives: Positives
    shape: Shape
    sum_positives: bool


def all_statistics(problem: Problem, exponents: Exponents, walk: Walk, *, taught: bool = False) -> tuple[Stats, Stats]:
    """Of the rows of this rank, [local], and of all columns, [total]; of a teacher's scores if `taught`."""
    blocks: list[tuple[int, Stats, Stats]] = []
    for block in problem.blocks():
        left, right = problem.image, block.text
        if taught:
            assert problem.features is not None
            left, right = problem.features.own["image"], block.every["text"]
        sides = Sides(aligned(left), aligned(right), walk.shape)
        positives = walk.positives.of(block, problem.features)
        rows, columns = _of_block(sides, exponents, positives, walk)
        blocks.append((block.columns.start, rows, columns))
    # In the order of their columns: of equal scores the lower index wins.
    blocks.sort(key=lambda block: block[0])
    rows = reduce(Stats.then, [block[1] for block in blocks])
    columns = joined([block[2] for block in blocks]).over(problem.ranks)
    if walk.positives.rule == RULE_NONE.value:
        sizes = walk.positives.group_sizes
        return replace(rows, count=sizes[walk.positives.own]), replace(columns, count=sizes)
    return rows, columns


def _of_block(sides: Sides, exponents: Exponents, positives: BlockPositives, walk: Walk) -> tuple[Stats, Stats]:
    """Of all local rows so far as this block goes, and of its columns."""
    number = len(sides.right)
    nothing = Stats.of(_unseen(exponents, number), sum_positives=walk.sum_positives).folded()
    row_stats: list[Stats] = [nothing.part(slice(0, 0))]
    columns = nothing
    for rows in panels(len(sides.left), walk.shape, number):
        of_rows, of_columns = _panel(sides, exponents, positives, rows, walk)
        row_stats.append(of_rows)
        columns = columns.then(of_columns)
    return joined(row_stats), columns


def _unseen(exponents: Exponents, number: int) -> Tensor:
    """One part of anchors that saw no candidate, [lines, 1, number]."""
    parts = exponents.slope.new_zeros(statistics.LINES, 1, number)
    for line in (statistics.PEAK, statistics.BEST, statistics.POSITIVE_PEAK):
        parts[line.value].fill_(float("-inf"))
    return parts


def _panel(
    sides: Sides, exponents: Exponents, positives: BlockPositives, rows: Range, walk: Walk
) -> tuple[Stats, Stats]:
    """Of a panel of local rows, and of the columns of the block so far as these rows go."""
    shape, sum_positives = walk.shape, walk.sum_positives
    lines = statistics.LINES if sum_positives else statistics.LINES - 1
    height, total = rows[1] - rows[0], len(sides.right)
    marked = walk.positives.rule == RULE_MARKS.value
    ranges = chunked(sides, rows, 1) if marked else [(0, total)]
    cuts = [strips(height, right - left, shape) for left, right in ranges]
    row_tiles, row_slots = ceil_div(height, shape.rows), sum(number for number, _ in cuts)
    # A slot for each strip of columns, and one for each tile of rows.
    row_parts = exponents.slope.new_empty(lines, row_slots, height)
    column_parts = exponents.slope.new_empty(lines, row_tiles, total)
    image, text = sides.described()
    slot = 0
    for (left, right), (number, strip) in zip(ranges, cuts, strict=True):
        marks = positives.marks(rows, (left, right), shape)
        for steep in (False, True):
            launch(
                statistics_kernel,
                (row_tiles, number),
                image,
                text,
                exponents.slope,
                exponents.shift,
                exponents.steep,
                *positives.groups,
                marks,
                row_parts,
                column_parts,
                walk.positives.threshold,
                positives.first,
                *rows,
                left,
                right,
                strip,
                sides.width,
                slot,
                row_slots,
                height,
                row_tiles,
                total,
                SUM_POSITIVES=sum_positives,
                STEEP=steep,
                **walk.positives.options(),
                **shape.options(),
            )
        slot += number
        del marks
    row_stats = Stats.of(row_parts, sum_positives=sum_positives).folded()
    return row_stats, Stats.of(column_parts, sum_positives=sum_positives).folded()


def add_gradients(
    sums: GradientSums, problem: Problem, exponents: Exponents, walk: Walk, shares: tuple[Tensor, Tensor]
) -> None:
    """Adds the gradients of a softmax objective; `shares` are those of the local rows and of all columns."""
    row_shares = shares[0]
    left = aligned(problem.image)
    buffer = Buffer(left)
    for block in sums.blocks():
        sides = Sides(left, aligned(block.text), walk.shape)
        positives = walk.positives.of(block, problem.features)
        column_shares = shares[1][:, block.columns].contiguous()
        for rows in panels(len(left), walk.shape, len(sides.right)):
            for columns in chunked(sides, rows, left.element_size()):
                gradient = buffer.of(rows, columns)
                by_scale = _gradient(
                    gradient, sides, exponents, positives, (row_shares, column_shares), rows, columns, walk
                )
                sums.add(gradient[:, : columns[1] - columns[0]], slice(*rows), slice(*columns))
                sums.scale += by_scale


def _gradient(
    gradient: Tensor,
    sides: Sides,
    exponents: Exponents,
    positives: BlockPositives,
    shares: tuple[Tensor, Tensor],
    rows: Range,
    columns: Range,
    walk: Walk,
) -> Tensor:
    """Fills a chunk, and returns its part of the gradient of the scale, float64."""
    shape, (row_shares, column_shares) = walk.shape, shares
    image, text = sides.described()
    row_tiles = ceil_div(rows[1] - rows[0], shape.rows)
    number, strip = strips(rows[1] - rows[0], columns[1] - columns[0], shape)
    by_scale = exponents.slope.new_zeros(row_tiles * number)
    marks = positives.marks(rows, columns, shape)
    for steep in (False, True):
        launch(
            gradient_kernel,
            (row_tiles, number),
            image,
            text,
            tiled(gradient, shape.rows, shape.columns),
            exponents.slope,
            exponents.shift,
            exponents.steep,
            *positives.groups,
            marks,
            row_shares,
            column_shares,
            by_scale,
            walk.positives.threshold,
            *rows,
            *columns,
            strip,
            sides.width,
            row_shares.shape[1],
            column_shares.shape[1],
            gain(gradient.dtype),
            SUM_POSITIVES=walk.sum_positives,
            STEEP=steep,
            RULE=walk.positives.rule,
            ATTRACT=walk.positives.attract,
            **shape.options(),
        )
    return by_scale.double().sum()


class Buffer:
    """Memory for the gradient of one chunk, in the type of the embeddings; each use overwrites the last."""

    def __init__(self, like: Tensor) -> None:
        self._memory = torch.empty(0, dtype=like.dtype, device=like.device)

    def of(self, rows: Range, columns: Range) -> Tensor:
        """[rows, columns and what aligns them]."""
        height, width = rows[1] - rows[0], columns[1] - columns[0]
        pitch = width + -width % (ALIGNMENT // self._memory.element_size())
        if self._memory.numel() < height * pitch:
            self._memory = self._memory.new_empty(height * pitch)
        return self._memory[: height * pitch].view(height, pitch)
