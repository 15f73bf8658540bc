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
from emocap_kernels.contrastive.problem import Problem
from emocap_kernels.products import product
from emocap_kernels.result import LossResult
from emocap_kernels.softmax import Anchors, ColumnBest, Columns, joined, row_anchors
from emocap_kernels.targets import Targets


class Pairwise(Protocol):
    """An objective that is a sum over pairs."""

    def losses(self, score: Tensor, targets: Targets, block: slice) -> tuple[Tensor, Tensor]:
        """Sums over a block of scores, [rows, total], of the image and of the text direction, 0-dim each."""
        ...

    def gradient(self, score: Tensor, targets: Targets, block: slice) -> Tensor:
        """Of both directions together, [rows, total]."""
        ...


def evaluate(problem: Problem, plan: Plan) -> LossResult:
    """The loss of a problem whose objective is `sigmoid` or `soft`."""
    with torch.no_grad():
        objective = _Sigmoid() if problem.objective == "sigmoid" else _soft(problem, plan)

    def add_up(sums: GradientSums, *, wanted: bool) -> Tally:
        tallies = _Tallies(plan, like=problem.scale)
        for block in plan.blocks:
            cosine = product(problem.image[block], problem.text.T)
            targets = plan.pairs.targets(block, cosine)
            score = cosine.mul_(problem.scale).add_(problem.bias)
            tallies.add(score, targets, objective.losses(score, targets, block), block)
            if wanted:
                gradient = objective.gradient(score, targets, block)
                sums.add(gradient, block, slice(None))
                sums.add_numbers(gradient, block)
        return tallies.all()

    return evaluate_early(problem, add_up)


@dataclass(frozen=True, slots=True)
class _Sigmoid:
    def losses(self, score: Tensor, targets: Targets, block: slice) -> tuple[Tensor, Tensor]:
        del block
        rows, columns = targets.row_candidates(score), targets.column_candidates(score)
        image = softplus(rows).sum(1).double().sum()
        text = image if rows is columns else softplus(columns).sum(1).double().sum()
        return image - targets.row_sums(score).double().sum(), text - targets.column_sums(score).double().sum()

    def gradient(self, score: Tensor, targets: Targets, block: slice) -> Tensor:
        del block
        gradient = targets.row_candidates(score).sigmoid()
        gradient += targets.column_candidates(score).sigmoid()
        ones = score.new_ones(())
        targets.subtract_(gradient, ones.expand(score.shape[0]), ones.expand(score.shape[1]))
        return gradient


@dataclass(frozen=True, slots=True)
class _Soft:
    """The normalisers of student and teacher, natural logarithms, [local, 1] for rows and [total] for columns."""

    problem: Problem
    row_log_sum: Tensor
    column_log_sum: Tensor
    teacher_row_log_sum: Tensor
    teacher_column_log_sum: Tensor

    def losses(self, score: Tensor, targets: Targets, block: slice) -> tuple[Tensor, Tensor]:
        del targets
        teacher = teacher_scores(self.problem, block)
        sums: list[Tensor] = []
        for log_sum, teacher_log_sum in self._normalisers(block):
            target = teacher - teacher_log_sum
            difference = target - (score - log_sum)
            sums.append(difference.mul_(target.exp_()).sum(1).double().sum())
        return sums[0], sums[1]

    def gradient(self, score: Tensor, targets: Targets, block: slice) -> Tensor:
        del targets
        teacher = teacher_scores(self.problem, block)
        gradient = torch.zeros_like(score)
        for log_sum, teacher_log_sum in self._normalisers(block):
            gradient += (score - log_sum).exp_()
            gradient -= (teacher - teacher_log_sum).exp_()
        return gradient

    def _normalisers(self, block: slice) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(student, teacher) of the rows of `block`, then of all columns."""
        rows = (self.row_log_sum[block], self.teacher_row_log_sum[block])
        return rows, (self.column_log_sum, self.teacher_column_log_sum)


def _soft(problem: Problem, plan: Plan) -> _Soft:
    """A first sweep, for the normalisers."""
    student, teacher = _LogSums(problem), _LogSums(problem)
    for block in plan.blocks:
        score = product(problem.image[block], problem.text.T).mul_(problem.scale)
        targets = plan.pairs.targets(block, score)
        student.add(score, targets)
        teacher.add(teacher_scores(problem, block), targets)
    return _Soft(problem, *student.over(plan), *teacher.over(plan))


class _LogSums:
    def __init__(self, problem: Problem) -> None:
        self._like = problem.scale
        self._rows: list[Anchors] = []
        self._columns = Columns(len(problem.text), like=problem.scale)

    def add(self, score: Tensor, targets: Targets) -> None:
        self._rows.append(row_anchors(score, targets))
        self._columns.add(score, targets, first=0)

    def over(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """Of rows [local, 1] and columns [total]."""
        rows, columns = joined(self._rows, self._like), self._columns.over(plan.ranks)
        return rows.log_sums()[:, None], columns.log_sums()


def teacher_scores(problem: Problem, rows: slice) -> Tensor:
    """Of the local images `rows` with all texts, [rows, total], in the type of the scores."""
    assert problem.features is not None
    return problem.features.teacher(rows).to(problem.scale.dtype).mul_(problem.guide_scale)


class _Tallies:
    """The tally of a rank, while blocks go by."""

    def __init__(self, plan: Plan, *, like: Tensor) -> None:
        self._plan = plan
        zero = torch.zeros((), dtype=torch.float64, device=like.device)
        self._rows: list[Tensor] = []
        self._image_loss, self._text_loss = zero, zero
        self._image_positives, self._text_positives = zero, zero
        self._best = ColumnBest(plan.span.total, like=like)

    def add(self, score: Tensor, targets: Targets, losses: tuple[Tensor, Tensor], block: slice) -> None:
        self._image_loss = self._image_loss + losses[0]
        self._text_loss = self._text_loss + losses[1]
        self._image_positives = self._image_positives + targets.row_counts().double().sum()
        self._text_positives = self._text_positives + targets.column_counts().double().sum()
        first = self._plan.span.first + block.start
        self._best.add(score, first=first)
        self._rows.append(score.max(1).indices)

    def all(self) -> Tally:
        span, ids = self._plan.span, self._plan.pairs.ids
        best = torch.cat([torch.empty(0, dtype=torch.int64, device=self._image_loss.device), *self._rows])
        return Tally(
            image_loss=self._image_loss,
            text_loss=self._text_loss,
            image_positives=self._image_positives,
            text_positives=self._text_positives,
            image_found=hits(best, span, ids),
            text_found=hits(self._best.over(self._plan.ranks)[span.own], span, ids),
        )
