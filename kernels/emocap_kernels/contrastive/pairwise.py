"""Objectives that are sums over pairs, in bounded memory: the gradient is known while the scores are seen.

So forward makes the gradients of the inputs as well, where any is wanted, and backward only multiplies: three matrix
products for an objective without a teacher, with nothing made twice. A teacher's scores need a sweep before, for the
normalisers of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.contrastive.early import evaluate_early
from emocap_kernels.contrastive.gradient_sums import GradientSums
from emocap_kernels.contrastive.objectives import SumOverPairs, Taught, Tile
from emocap_kernels.contrastive.outcome import Tally, hits
from emocap_kernels.contrastive.plan import Plan
from emocap_kernels.contrastive.problem import Block, Problem
from emocap_kernels.products import product
from emocap_kernels.result import LossResult
from emocap_kernels.softmax import Both, RunningBoth, RunningTop, column_top, row_top


def evaluate(problem: Problem, objective: SumOverPairs, plan: Plan) -> LossResult:
    """The loss of a problem whose objective is a sum over pairs."""
    with torch.no_grad():
        teacher = _teacher(problem, plan) if problem.objective.has_teacher else None

    def add_up(sums: GradientSums, *, wanted: bool) -> Tally:
        tallies = _Tallies(problem, plan)
        for block in sums.blocks():
            for rows in plan.rows:
                cosine = product(problem.image[rows], block.text.T)
                targets = plan.pairs.targets(rows, block, cosine, problem.features)
                score = cosine.mul_(problem.scale).add_(problem.bias)
                tile = Tile(score, targets, None if teacher is None else teacher.of(rows, block))
                tallies.add(tile, objective.losses(tile), rows, block)
                if wanted:
                    gradient = objective.gradient(tile)
                    sums.add(gradient, rows, slice(None))
                    sums.add_numbers(gradient, rows)
        sums.follow()
        return tallies.all()

    return evaluate_early(problem, add_up)


@dataclass(frozen=True, slots=True)
class _Teacher:
    """A teacher's scores and the normalisers of student and teacher, [local] for images and [total] for texts."""

    problem: Problem
    student: _LogSums
    teacher: _LogSums

    def of(self, rows: slice, block: Block) -> Taught:
        """For the local images `rows` with the texts of `block`."""
        columns = block.columns
        return Taught(
            score=teacher_scores(self.problem, rows, block),
            image_log_sums=(self.student.images[rows, None], self.teacher.images[rows, None]),
            text_log_sums=(self.student.texts[columns], self.teacher.texts[columns]),
        )


@dataclass(frozen=True, slots=True)
class _LogSums:
    images: Tensor
    texts: Tensor


def _teacher(problem: Problem, plan: Plan) -> _Teacher:
    """Sweeps over all scores for the normalisers."""
    span = problem.span
    student, teacher = (RunningBoth(span.local, span.total, first=span.first, like=problem.scale) for _ in range(2))
    for block in problem.blocks():
        for rows in plan.rows:
            score = product(problem.image[rows], block.text.T).mul_(problem.scale)
            targets = plan.pairs.targets(rows, block, score, problem.features)
            student.add(score, targets, rows, block.columns)
            teacher.add(teacher_scores(problem, rows, block), targets, rows, block.columns)
    return _Teacher(problem, _log_sums(student.over(problem.ranks)), _log_sums(teacher.over(problem.ranks)))


def _log_sums(both: Both) -> _LogSums:
    return _LogSums(both.rows.log_sums(), both.columns.log_sums())


def teacher_scores(problem: Problem, rows: slice, block: Block) -> Tensor:
    """Of the local images `rows` with the texts of `block`, [rows, texts], in the type of the scores."""
    assert problem.features is not None
    cosine = problem.features.similarity((("image", "text"),), rows, block.every)
    return cosine.to(problem.scale.dtype).mul_(problem.guide_scale)


class _Tallies:
    """The tally of a rank, while tiles go by."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self._problem, self._ids = problem, plan.pairs.ids
        zero = torch.zeros((), dtype=torch.float64, device=problem.scale.device)
        self._image_loss, self._text_loss = zero, zero
        self._image_positives, self._text_positives = zero, zero
        self._images = RunningTop(problem.span.local, like=problem.scale)
        self._texts = RunningTop(problem.span.total, like=problem.scale)

    def add(self, tile: Tile, losses: tuple[Tensor, Tensor], rows: slice, block: Block) -> None:
        self._image_loss = self._image_loss + losses[0]
        self._text_loss = self._text_loss + losses[1]
        self._image_positives = self._image_positives + tile.targets.row_counts().double().sum()
        self._text_positives = self._text_positives + tile.targets.column_counts().double().sum()
        self._images.add(row_top(tile.score, first=block.columns.start), rows)
        self._texts.add(column_top(tile.score, first=self._problem.span.first + rows.start), block.columns)

    def all(self) -> Tally:
        span = self._problem.span
        return Tally(
            image_loss=self._image_loss,
            text_loss=self._text_loss,
            image_positives=self._image_positives,
            text_positives=self._text_positives,
            image_found=hits(self._images.all(), span, self._ids),
            text_found=hits(self._texts.over(self._problem.ranks)[span.own], span, self._ids),
        )
