r"""Objectives whose gradient is known while their scores are seen: `sigmoid` at once, `soft` with its normalisers.

With \(t_{ij} = S_{ij} + \mathrm{bias}\), a direction of `sigmoid` is
\(\sum_j \log(1 + e^{t_{ij}}) - \sum_{j \in P_i} t_{ij}\), and its gradient \(\sigma(t_{ij}) - [j \in P_i]\). A
direction of `soft` is \(\sum_j T_{ij} (\log T_{ij} - \log p_{ij})\), and its gradient \(p_{ij} - T_{ij}\). So forward
makes the gradients of the inputs as well, where any is wanted, and backward only multiplies: three matrix products for
`sigmoid`, with nothing made twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from emocap_kernels.contrastive.early import evaluate_early
from emocap_kernels.contrastive.gradient_sums import GradientSums
from emocap_kernels.contrastive.outcome import Tally, hits
from emocap_kernels.contrastive.plan import Plan
from emocap_kernels.contrastive.problem import Block, Problem
from emocap_kernels.products import product
from emocap_kernels.result import LossResult
from emocap_kernels.softmax import Both, RunningBoth, RunningTop, column_top, row_top
from emocap_kernels.targets import Targets


class Pairwise(Protocol):
    """An objective that is a sum over pairs."""

    def losses(self, score: Tensor, targets: Targets, rows: slice, block: Block) -> tuple[Tensor, Tensor]:
        """Sums over a tile of scores, [rows, texts of block], of the image and of the text direction, 0-dim each."""
        ...

    def gradient(self, score: Tensor, targets: Targets, rows: slice, block: Block) -> Tensor:
        """Of both directions together, [rows, texts of block]."""
        ...


def evaluate(problem: Problem, plan: Plan) -> LossResult:
    """The loss of a problem whose objective is `sigmoid` or `soft`."""
    with torch.no_grad():
        objective = _Sigmoid() if problem.objective == "sigmoid" else _soft(problem, plan)

    def add_up(sums: GradientSums, *, wanted: bool) -> Tally:
        tallies = _Tallies(problem, plan)
        for block in sums.blocks():
            for rows in plan.rows:
                cosine = product(problem.image[rows], block.text.T)
                targets = plan.pairs.targets(rows, block, cosine, problem.features)
                score = cosine.mul_(problem.scale).add_(problem.bias)
                tallies.add(score, targets, objective.losses(score, targets, rows, block), rows, block)
                if wanted:
                    gradient = objective.gradient(score, targets, rows, block)
                    sums.add(gradient, rows, slice(None))
                    sums.add_numbers(gradient, rows)
        sums.follow()
        return tallies.all()

    return evaluate_early(problem, add_up)


@dataclass(frozen=True, slots=True)
class _Sigmoid:
    def losses(self, score: Tensor, targets: Targets, rows: slice, block: Block) -> tuple[Tensor, Tensor]:
        del rows, block
        by_row, by_column = targets.row_candidates(score), targets.column_candidates(score)
        image = softplus(by_row).sum(1).double().sum()
        text = image if by_row is by_column else softplus(by_column).sum(1).double().sum()
        return image - targets.row_sums(score).double().sum(), text - targets.column_sums(score).double().sum()

    def gradient(self, score: Tensor, targets: Targets, rows: slice, block: Block) -> Tensor:
        del rows, block
        gradient = targets.row_candidates(score).sigmoid()
        gradient += targets.column_candidates(score).sigmoid()
        ones = score.new_ones(())
        targets.subtract_(gradient, ones.expand(score.shape[0]), ones.expand(score.shape[1]))
        return gradient


@dataclass(frozen=True, slots=True)
class _Soft:
    """The normalisers of student and teacher, natural logarithms, [local] for images and [total] for texts."""

    problem: Problem
    student: _LogSums
    teacher: _LogSums

    def losses(self, score: Tensor, targets: Targets, rows: slice, block: Block) -> tuple[Tensor, Tensor]:
        del targets
        teacher = teacher_scores(self.problem, rows, block)
        sums: list[Tensor] = []
        for log_sum, teacher_log_sum in self._normalisers(rows, block.columns):
            target = teacher - teacher_log_sum
            difference = target - (score - log_sum)
            sums.append(difference.mul_(target.exp_()).sum(1).double().sum())
        return sums[0], sums[1]

    def gradient(self, score: Tensor, targets: Targets, rows: slice, block: Block) -> Tensor:
        del targets
        teacher = teacher_scores(self.problem, rows, block)
        gradient = torch.zeros_like(score)
        for log_sum, teacher_log_sum in self._normalisers(rows, block.columns):
            gradient += (score - log_sum).exp_()
            gradient -= (teacher - teacher_log_sum).exp_()
        return gradient

    def _normalisers(self, rows: slice, columns: slice) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(student, teacher) of the images of a tile, then of its texts."""
        images = (self.student.images[rows, None], self.teacher.images[rows, None])
        return images, (self.student.texts[columns], self.teacher.texts[columns])


@dataclass(frozen=True, slots=True)
class _LogSums:
    images: Tensor
    texts: Tensor


def _soft(problem: Problem, plan: Plan) -> _Soft:
    """A first sweep, for the normalisers."""
    span = problem.span
    student, teacher = (RunningBoth(span.local, span.total, first=span.first, like=problem.scale) for _ in range(2))
    for block in problem.blocks():
        for rows in plan.rows:
            score = product(problem.image[rows], block.text.T).mul_(problem.scale)
            targets = plan.pairs.targets(rows, block, score, problem.features)
            student.add(score, targets, rows, block.columns)
            teacher.add(teacher_scores(problem, rows, block), targets, rows, block.columns)
    return _Soft(problem, _log_sums(student.over(problem.ranks)), _log_sums(teacher.over(problem.ranks)))


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

    def add(self, score: Tensor, targets: Targets, losses: tuple[Tensor, Tensor], rows: slice, block: Block) -> None:
        self._image_loss = self._image_loss + losses[0]
        self._text_loss = self._text_loss + losses[1]
        self._image_positives = self._image_positives + targets.row_counts().double().sum()
        self._text_positives = self._text_positives + targets.column_counts().double().sum()
        self._images.add(row_top(score, first=block.columns.start), rows)
        self._texts.add(column_top(score, first=self._problem.span.first + rows.start), block.columns)

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
