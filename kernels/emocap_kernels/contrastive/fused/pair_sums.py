"""The walks of the objectives that are sums over pairs: losses, and gradients where any is wanted, at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from emocap_kernels.blocks import ceil_div
from emocap_kernels.contrastive.fused.kernels import pairwise
from emocap_kernels.contrastive.fused.kernels.pairwise import sigmoid_kernel, soft_kernel
from emocap_kernels.contrastive.fused.kernels.tiles import RULE_NONE
from emocap_kernels.contrastive.fused.marks import BlockPositives, Positives
from emocap_kernels.contrastive.fused.scores import Exponents, Sides, exponents_of
from emocap_kernels.contrastive.fused.stats import Best, Stats
from emocap_kernels.contrastive.fused.sweep import Buffer, Walk, all_statistics, chunked
from emocap_kernels.contrastive.gradient_sums import GradientSums
from emocap_kernels.contrastive.outcome import Tally
from emocap_kernels.contrastive.problem import Block, Problem
from emocap_kernels.fused.descriptors import aligned, tiled
from emocap_kernels.fused.launch import launch
from emocap_kernels.fused.shapes import panels, strips
from emocap_kernels.products import gain


@dataclass(frozen=True, slots=True)
class PairSums:
    """One problem, and how kernels walk over it."""

    problem: Problem
    walk: Walk

    def sigmoid(self, sums: GradientSums, *, wanted: bool) -> Tally:
        """See `AddUp`."""
        problem, left = self.problem, aligned(self.problem.image)
        numbers = [number.detach().float().reshape(1) for number in (problem.scale, problem.bias)]
        totals = numbers[0].new_zeros(pairwise.ROW_LINES, dtype=torch.float64)
        buffer = Buffer(left) if wanted else None
        blocks: list[tuple[int, Best, Best]] = []
        for block in sums.blocks():
            sides = Sides(left, aligned(block.text), self.walk.shape)
            positives = self.walk.positives.of(block, problem.features)
            blocks.append((block.columns.start, *self._sigmoid(sides, positives, numbers, totals, buffer, sums)))
        blocks.sort(key=lambda each: each[0])
        rows = reduce(Best.then, [each[1] for each in blocks])
        columns = Best(*(torch.cat(parts) for parts in zip(*[(b.score, b.found) for _, _, b in blocks], strict=True)))
        sums.scale += totals[pairwise.BY_SCALE.value]
        sums.bias += totals[pairwise.BY_BIAS.value]
        text_found = columns.over(problem.ranks).found[problem.span.own].double().sum()
        return _sigmoid_tally(totals, rows.found.double().sum(), text_found, self.walk.positives)

    def _sigmoid(
        self,
        sides: Sides,
        positives: BlockPositives,
        numbers: list[Tensor],
        totals: Tensor,
        buffer: Buffer | None,
        sums: GradientSums,
    ) -> tuple[Best, Best]:
        """The best of the local rows in one block, and of its columns; the sums go into `totals`."""
        shape, scale, total = sides.shape, numbers[0], len(sides.right)
        image, text = sides.described()
        found = [Best(scale.new_empty(0), scale.new_empty(0))]
        columns = Best(scale.new_full((total,), float("-inf")), scale.new_zeros(total))
        for rows in panels(len(sides.left), shape, total):
            height, row_tiles = rows[1] - rows[0], ceil_div(rows[1] - rows[0], shape.rows)
            ranges = chunked(sides, rows, sides.left.element_size())
            cuts = [strips(height, right - left, shape) for left, right in ranges]
            row_parts = scale.new_zeros(pairwise.ROW_LINES, sum(number for number, _ in cuts), height)
            column_parts = scale.new_empty(pairwise.COLUMN_LINES, row_tiles, total)
            slot = 0
            for chunk, (number, strip) in zip(ranges, cuts, strict=True):
                gradient = None if buffer is None else buffer.of(rows, chunk)
                launch(
                    sigmoid_kernel,
                    (row_tiles, number),
                    image,
                    text,
                    None if gradient is None else tiled(gradient, shape.rows, shape.columns),
                    *numbers,
                    *positives.groups,
                    positives.marks(rows, chunk, shape),
                    row_parts,
                    column_parts,
                    positives.all.threshold,
                    positives.first,
                    *rows,
                    *chunk,
                    strip,
                    sides.width,
                    slot,
                    row_parts.shape[1],
                    height,
                    row_tiles,
                    total,
                    gain(sides.left.dtype),
                    WANTED=gradient is not None,
                    **positives.all.options(),
                    **shape.options(),
                )
                slot += number
                if gradient is not None:
                    sums.add(gradient[:, : chunk[1] - chunk[0]], slice(*rows), slice(*chunk))
            found.append(Best(row_parts[pairwise.BEST.value], row_parts[pairwise.FOUND.value]).folded())
            totals[: pairwise.BEST.value] += row_parts[: pairwise.BEST.value].double().sum((1, 2))
            columns = columns.then(Best(*column_parts).folded())
        return Best(torch.cat([each.score for each in found]), torch.cat([each.found for each in found])), columns

    def soft(self, sums: GradientSums, *, wanted: bool) -> Tally:
        """See `AddUp`."""
        problem, walk = self.problem, self.walk
        assert problem.features is not None
        ranks, span, taught = problem.ranks, problem.span, problem.features.own
        own = problem.text.detach().to(problem.image.dtype)
        student = exponents_of(problem.image, own, problem.scale, span, ranks)
        teacher = exponents_of(taught["image"], taught["text"], problem.guide_scale, span, ranks)
        student_rows, student_columns = all_statistics(problem, student, walk)
        teacher_rows, teacher_columns = all_statistics(problem, teacher, walk, taught=True)
        log_sums = _log_sums(student_rows, teacher_rows), _log_sums(student_columns, teacher_columns)
        totals = student.slope.new_zeros(pairwise.ROW_LINES, dtype=torch.float64)
        buffer = Buffer(problem.image) if wanted else None
        for block in sums.blocks():
            self._soft(block, (student, teacher), log_sums, totals, buffer, sums)
        sums.scale += totals[pairwise.BY_SCALE.value]
        known = walk.positives.group_sizes[span.own].double().sum()
        return Tally(
            image_loss=totals[pairwise.IMAGE_LOSS.value],
            text_loss=totals[pairwise.TEXT_LOSS.value],
            image_positives=known,
            text_positives=known,
            image_found=student_rows.best.found.double().sum(),
            text_found=student_columns.best.found[span.own].double().sum(),
        )

    def _soft(
        self,
        block: Block,
        exponents: tuple[Exponents, Exponents],
        log_sums: tuple[Tensor, Tensor],
        totals: Tensor,
        buffer: Buffer | None,
        sums: GradientSums,
    ) -> None:
        """Losses of one block into `totals`, and its gradients."""
        assert self.problem.features is not None
        shape, row_log_sums = self.walk.shape, log_sums[0]
        column_log_sums = log_sums[1][:, block.columns].contiguous()
        sides = Sides(aligned(self.problem.image), aligned(block.text), shape)
        taught = Sides(aligned(self.problem.features.own["image"]), aligned(block.every["text"]), shape)
        for rows in panels(len(sides.left), shape, len(sides.right)):
            height, row_tiles = rows[1] - rows[0], ceil_div(rows[1] - rows[0], shape.rows)
            for chunk in chunked(sides, rows, sides.left.element_size()):
                gradient = None if buffer is None else buffer.of(rows, chunk)
                number, strip = strips(height, chunk[1] - chunk[0], shape)
                row_parts = totals.new_zeros(pairwise.ROW_LINES, number, height, dtype=torch.float32)
                launch(
                    soft_kernel,
                    (row_tiles, number),
                    *sides.described(),
                    *taught.described(),
                    None if gradient is None else tiled(gradient, shape.rows, shape.columns),
                    *[each.slope for each in exponents],
                    row_log_sums,
                    column_log_sums,
                    row_parts,
                    *rows,
                    *chunk,
                    strip,
                    sides.width,
                    taught.width,
                    row_log_sums.shape[1],
                    column_log_sums.shape[1],
                    0,
                    number,
                    height,
                    gain(sides.left.dtype),
                    WANTED=gradient is not None,
                    **shape.options(),
                )
                totals += row_parts.double().sum((1, 2))
                if gradient is not None:
                    sums.add(gradient[:, : chunk[1] - chunk[0]], slice(*rows), slice(*chunk))


def _sigmoid_tally(totals: Tensor, image_found: Tensor, text_found: Tensor, positives: Positives) -> Tally:
    known = positives.group_sizes[positives.own].double().sum()
    alike = positives.rule == RULE_NONE.value
    attract = not alike and positives.attract
    return Tally(
        image_loss=totals[pairwise.IMAGE_LOSS.value],
        text_loss=totals[pairwise.IMAGE_LOSS.value if alike else pairwise.TEXT_LOSS.value],
        image_positives=totals[pairwise.IMAGE_COUNT.value] if attract else known,
        text_positives=totals[pairwise.TEXT_COUNT.value] if attract else known,
        image_found=image_found,
        text_found=text_found,
    )


def _log_sums(student: Stats, teacher: Stats) -> Tensor:
    """The lines of the normalisers, float32 [4, anchors]."""
    sums = student.candidates, teacher.candidates
    return torch.stack([line for each in sums for line in (each.peak, each.total.log2())])
