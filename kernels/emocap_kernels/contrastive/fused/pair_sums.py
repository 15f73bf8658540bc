"""The walks of the objectives that are sums over pairs: losses, and gradients where any is wanted, at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.blocks import ceil_div
from emocap_kernels.contrastive.fused.kernels import pairwise
from emocap_kernels.contrastive.fused.kernels.pairwise import sigmoid_kernel, soft_kernel
from emocap_kernels.contrastive.fused.kernels.tiles import RULE_NONE
from emocap_kernels.contrastive.fused.launch import launch
from emocap_kernels.contrastive.fused.marks import Positives
from emocap_kernels.contrastive.fused.scores import Sides, aligned, scores_of, tiled
from emocap_kernels.contrastive.fused.shapes import Shape, panels, strips
from emocap_kernels.contrastive.fused.stats import Best, Stats
from emocap_kernels.contrastive.fused.sweep import Buffer, all_statistics, chunked
from emocap_kernels.contrastive.gradient_sums import GradientSums
from emocap_kernels.contrastive.outcome import Tally
from emocap_kernels.contrastive.problem import Problem
from emocap_kernels.products import gain


@dataclass(frozen=True, slots=True)
class PairSums:
    """One problem, and the tile of its kernels."""

    problem: Problem
    positives: Positives
    shape: Shape

    def sigmoid(self, sums: GradientSums, *, wanted: bool) -> Tally:
        """See `AddUp`."""
        problem, positives = self.problem, self.positives
        sides = Sides(aligned(problem.image), aligned(problem.text), self.shape)
        span, shape, buffer = problem.span, self.shape, Buffer(sides)
        image, text = sides.described()
        scale, bias = (number.detach().float().reshape(1) for number in (problem.scale, problem.bias))
        totals = scale.new_zeros(pairwise.ROW_LINES, dtype=torch.float64)
        columns = Best(scale.new_full((span.total,), float("-inf")), scale.new_zeros(span.total))
        for rows in panels(span.local, shape, span.total):
            height, row_tiles = rows[1] - rows[0], ceil_div(rows[1] - rows[0], shape.rows)
            ranges = chunked(sides, rows, sides.left.element_size())
            cuts = [strips(height, right - left, shape) for left, right in ranges]
            row_parts = scale.new_zeros(pairwise.ROW_LINES, sum(number for number, _ in cuts), height)
            column_parts = scale.new_empty(pairwise.COLUMN_LINES, row_tiles, span.total)
            slot = 0
            for chunk, (number, strip) in zip(ranges, cuts, strict=True):
                gradient = buffer.of(rows, chunk) if wanted else None
                launch(
                    sigmoid_kernel,
                    (row_tiles, number),
                    image,
                    text,
                    None if gradient is None else tiled(gradient, shape.rows, shape.columns),
                    scale,
                    bias,
                    positives.groups,
                    positives.marks(rows, chunk, shape),
                    row_parts,
                    column_parts,
                    positives.threshold,
                    span.first,
                    *rows,
                    *chunk,
                    strip,
                    sides.width,
                    slot,
                    row_parts.shape[1],
                    height,
                    row_tiles,
                    span.total,
                    gain(sides.left.dtype),
                    WANTED=wanted,
                    **positives.options(),
                    **shape.options(),
                )
                slot += number
                if gradient is not None:
                    sums.add(gradient[:, : chunk[1] - chunk[0]], slice(*rows), slice(*chunk))
            found = Best(row_parts[pairwise.BEST.value], row_parts[pairwise.FOUND.value]).folded().found
            totals[: pairwise.BEST.value] += row_parts[: pairwise.BEST.value].double().sum((1, 2))
            totals[pairwise.FOUND.value] += found.double().sum()
            columns = columns.then(Best(*column_parts).folded())
        sums.scale += totals[pairwise.BY_SCALE.value]
        sums.bias += totals[pairwise.BY_BIAS.value]
        return _sigmoid_tally(totals, columns.over(problem.ranks).found[span.own].double().sum(), problem, positives)

    def soft(self, sums: GradientSums, *, wanted: bool) -> Tally:
        """See `AddUp`."""
        problem, positives = self.problem, self.positives
        image_text = problem.image, problem.text
        scores = scores_of(*image_text, problem.scale, problem.span, problem.ranks, self.shape)
        assert problem.features is not None
        span, shape, buffer = problem.span, scores.shape, Buffer(scores)
        features = problem.features.own["image"], problem.features.every["text"]
        teacher = scores_of(*features, problem.guide_scale, span, problem.ranks, shape)
        student_rows, student_columns = all_statistics(scores, positives, span, problem.ranks, sum_positives=False)
        teacher_rows, teacher_columns = all_statistics(teacher, positives, span, problem.ranks, sum_positives=False)
        row_log_sums = _log_sums(student_rows, teacher_rows)
        column_log_sums = _log_sums(student_columns, teacher_columns)
        totals = scores.slope.new_zeros(pairwise.ROW_LINES, dtype=torch.float64)
        for rows in panels(span.local, shape, span.total):
            height, row_tiles = rows[1] - rows[0], ceil_div(rows[1] - rows[0], shape.rows)
            for chunk in chunked(scores, rows, scores.left.element_size()):
                gradient = buffer.of(rows, chunk) if wanted else None
                number, strip = strips(height, chunk[1] - chunk[0], shape)
                row_parts = scores.slope.new_zeros(pairwise.ROW_LINES, number, height)
                launch(
                    soft_kernel,
                    (row_tiles, number),
                    *scores.described(),
                    *teacher.described(),
                    None if gradient is None else tiled(gradient, shape.rows, shape.columns),
                    scores.slope,
                    teacher.slope,
                    row_log_sums,
                    column_log_sums,
                    row_parts,
                    *rows,
                    *chunk,
                    strip,
                    scores.width,
                    teacher.width,
                    row_log_sums.shape[1],
                    column_log_sums.shape[1],
                    0,
                    number,
                    height,
                    gain(scores.left.dtype),
                    WANTED=wanted,
                    **shape.options(),
                )
                totals += row_parts.double().sum((1, 2))
                if gradient is not None:
                    sums.add(gradient[:, : chunk[1] - chunk[0]], slice(*rows), slice(*chunk))
        sums.scale += totals[pairwise.BY_SCALE.value]
        known = positives.group_sizes[span.own].double().sum()
        return Tally(
            image_loss=totals[pairwise.IMAGE_LOSS.value],
            text_loss=totals[pairwise.TEXT_LOSS.value],
            image_positives=known,
            text_positives=known,
            image_found=student_rows.best.found.double().sum(),
            text_found=student_columns.best.found[span.own].double().sum(),
        )


def _sigmoid_tally(totals: Tensor, text_found: Tensor, problem: Problem, positives: Positives) -> Tally:
    known = positives.group_sizes[problem.span.own].double().sum()
    alike = positives.rule == RULE_NONE.value
    attract = not alike and positives.options()["ATTRACT"]
    return Tally(
        image_loss=totals[pairwise.IMAGE_LOSS.value],
        text_loss=totals[pairwise.IMAGE_LOSS.value if alike else pairwise.TEXT_LOSS.value],
        image_positives=totals[pairwise.IMAGE_COUNT.value] if attract else known,
        text_positives=totals[pairwise.TEXT_COUNT.value] if attract else known,
        image_found=totals[pairwise.FOUND.value],
        text_found=text_found,
    )


def _log_sums(student: Stats, teacher: Stats) -> Tensor:
    """The lines of the normalisers, float32 [4, anchors]."""
    sums = student.candidates, teacher.candidates
    return torch.stack([line for each in sums for line in (each.peak, each.total.log2())])
