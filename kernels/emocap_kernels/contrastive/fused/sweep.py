"""The walks over panels of rows and chunks of columns: statistics on the way there, gradients on the way back."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from emocap_kernels.blocks import ceil_div
from emocap_kernels.contrastive.fused.kernels import statistics
from emocap_kernels.contrastive.fused.kernels.gradient import gradient_kernel
from emocap_kernels.contrastive.fused.kernels.statistics import statistics_kernel
from emocap_kernels.contrastive.fused.kernels.tiles import RULE_MARKS, RULE_NONE
from emocap_kernels.contrastive.fused.launch import launch
from emocap_kernels.contrastive.fused.marks import Positives, Range
from emocap_kernels.contrastive.fused.scores import ALIGNMENT, Scores, Sides, tiled
from emocap_kernels.contrastive.fused.shapes import chunks, panels, strips
from emocap_kernels.contrastive.fused.stats import Stats, joined
from emocap_kernels.contrastive.gradient_sums import GradientSums
from emocap_kernels.distributed import Ranks, Span
from emocap_kernels.products import gain


def chunked(sides: Sides, rows: Range, itemsize: int) -> list[Range]:
    """The chunks of a panel of rows, of `itemsize` bytes for each pair."""
    return chunks(len(sides.right), sides.shape, rows[1] - rows[0], itemsize)


def all_statistics(
    scores: Scores, positives: Positives, span: Span, ranks: Ranks, *, sum_positives: bool
) -> tuple[Stats, Stats]:
    """Of the rows of this rank, [local], and of all columns, [total]."""
    nothing = Stats.of(_unseen(scores, span.total), sum_positives=sum_positives).folded()
    row_stats: list[Stats] = [nothing.part(slice(0, 0))]
    columns = nothing
    for rows in panels(span.local, scores.shape, span.total):
        of_rows, of_columns = _panel(scores, positives, rows, span, sum_positives=sum_positives)
        row_stats.append(of_rows)
        columns = columns.then(of_columns)
    rows, columns = joined(row_stats), columns.over(ranks)
    if positives.rule == RULE_NONE.value:
        sizes = positives.group_sizes
        return replace(rows, count=sizes[span.own]), replace(columns, count=sizes)
    return rows, columns


def _unseen(scores: Scores, number: int) -> Tensor:
    """One part of anchors that saw no candidate, [lines, 1, number]."""
    parts = scores.slope.new_zeros(statistics.LINES, 1, number)
    for line in (statistics.PEAK, statistics.BEST, statistics.POSITIVE_PEAK):
        parts[line.value].fill_(float("-inf"))
    return parts


def _panel(
    scores: Scores, positives: Positives, rows: Range, span: Span, *, sum_positives: bool
) -> tuple[Stats, Stats]:
    """Of a panel of local rows, and of all columns so far as these rows go."""
    shape, lines = scores.shape, statistics.LINES if sum_positives else statistics.LINES - 1
    height = rows[1] - rows[0]
    marked = positives.rule == RULE_MARKS.value
    ranges = chunked(scores, rows, 1) if marked else [(0, span.total)]
    cuts = [strips(height, right - left, shape) for left, right in ranges]
    row_tiles, row_slots = ceil_div(height, shape.rows), sum(number for number, _ in cuts)
    # A slot for each strip of columns, and one for each tile of rows.
    row_parts = scores.slope.new_empty(lines, row_slots, height)
    column_parts = scores.slope.new_empty(lines, row_tiles, span.total)
    image, text = scores.described()
    slot = 0
    for (left, right), (number, strip) in zip(ranges, cuts, strict=True):
        marks = positives.marks(rows, (left, right), shape)
        for steep in (False, True):
            launch(
                statistics_kernel,
                (row_tiles, number),
                image,
                text,
                scores.slope,
                scores.shift,
                scores.steep,
                positives.groups,
                marks,
                row_parts,
                column_parts,
                positives.threshold,
                span.first,
                *rows,
                left,
                right,
                strip,
                scores.width,
                slot,
                row_slots,
                height,
                row_tiles,
                span.total,
                SUM_POSITIVES=sum_positives,
                STEEP=steep,
                **positives.options(),
                **shape.options(),
            )
        slot += number
        del marks
    row_stats = Stats.of(row_parts, sum_positives=sum_positives).folded()
    return row_stats, Stats.of(column_parts, sum_positives=sum_positives).folded()


def add_gradients(
    sums: GradientSums,
    scores: Scores,
    positives: Positives,
    shares: tuple[Tensor, Tensor],
    span: Span,
    *,
    sum_positives: bool,
) -> None:
    """Adds the gradients of a softmax objective; `shares` are those of the local rows and of all columns."""
    shape = scores.shape
    image, text = scores.described()
    row_shares, column_shares = shares
    buffer = Buffer(scores)
    ranges = [
        (rows, columns)
        for rows in panels(span.local, shape, span.total)
        for columns in chunked(scores, rows, scores.left.element_size())
    ]
    for rows, columns in ranges:
        gradient = buffer.of(rows, columns)
        row_tiles = ceil_div(rows[1] - rows[0], shape.rows)
        number, strip = strips(rows[1] - rows[0], columns[1] - columns[0], shape)
        by_scale = scores.slope.new_zeros(row_tiles * number)
        marks = positives.marks(rows, columns, shape)
        for steep in (False, True):
            launch(
                gradient_kernel,
                (row_tiles, number),
                image,
                text,
                tiled(gradient, shape.rows, shape.columns),
                scores.slope,
                scores.shift,
                scores.steep,
                positives.groups,
                marks,
                row_shares,
                column_shares,
                by_scale,
                positives.threshold,
                span.first,
                *rows,
                *columns,
                strip,
                scores.width,
                row_shares.shape[1],
                column_shares.shape[1],
                gain(gradient.dtype),
                SUM_POSITIVES=sum_positives,
                STEEP=steep,
                RULE=positives.rule,
                ATTRACT=positives.attract,
                **shape.options(),
            )
        del marks
        sums.add(gradient[:, : columns[1] - columns[0]], slice(*rows), slice(*columns))
        sums.scale += by_scale.double().sum()


class Buffer:
    """Memory for the gradient of one chunk, in the type of the embeddings; each use overwrites the last."""

    def __init__(self, sides: Sides) -> None:
        self._memory = sides.left.new_empty(0)

    def of(self, rows: Range, columns: Range) -> Tensor:
        """[rows, columns and what aligns them]."""
        height, width = rows[1] - rows[0], columns[1] - columns[0]
        pitch = width + -width % (ALIGNMENT // self._memory.element_size())
        if self._memory.numel() < height * pitch:
            self._memory = self._memory.new_empty(height * pitch)
        return self._memory[: height * pitch].view(height, pitch)
