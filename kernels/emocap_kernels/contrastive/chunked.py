"""The global loss in bounded memory: a tile of images by texts, made twice and kept never.

Here are the objectives with positives in a softmax, `infonce` and `mil_nce`. Forward keeps a few numbers of each
anchor. Backward makes each tile again, in the same shapes from the same tensors, so its scores and its masks are those
of forward to the bit; then it adds the tile's part to the gradients. The cost is four matrix products of the size of
the score matrix, the least for a symmetric loss of which nothing is stored. Objectives that are sums over pairs know
their gradient while they see the scores: `pairwise`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd import Function

from emocap_kernels.contrastive import pairwise
from emocap_kernels.contrastive.gradient_sums import GradientSums
from emocap_kernels.contrastive.objectives import InfoNCE, MilNCE, SumOverPairs
from emocap_kernels.contrastive.outcome import Tally, hits, outcome
from emocap_kernels.contrastive.plan import Plan, planned
from emocap_kernels.contrastive.problem import Problem
from emocap_kernels.errors import NotSupportedError
from emocap_kernels.precision import full_precision
from emocap_kernels.products import product
from emocap_kernels.result import LossResult
from emocap_kernels.softmax import (
    Both,
    RunningBoth,
    Shares,
    score_gradient,
    shares,
    softmax_gradient,
)
from emocap_kernels.targets import Targets
from emocap_kernels.transforms import first_order


def evaluate(problem: Problem, *, block_bytes: int | None = None) -> LossResult:
    """The loss of a problem whose rank holds any of the rows.

    Args:
        problem: Embeddings of any type; half precision is multiplied as it is on a GPU.
        block_bytes: Bounds one tile of scores; None is the default of the device.

    Raises:
        NotSupportedError: If the objective has only a formula.
    """
    plan = planned(problem, block_bytes)
    if isinstance(problem.objective, SumOverPairs):
        return pairwise.evaluate(problem, problem.objective, plan)
    if not isinstance(problem.objective, InfoNCE | MilNCE):
        raise NotSupportedError(
            f"backend='chunked' cannot run the objective {problem.objective.name!r}, which has no losses and gradient "
            "of a tile; use backend='reference'."
        )
    loss, seen = _Softmax.apply(problem.image, problem.text, problem.scale, problem, plan)  # pyright: ignore[reportGeneralTypeIssues]
    return outcome(loss, seen)


class _Softmax(Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, problem: Problem, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        # What autograd differentiates; the problem holds it.
        del image, text
        anchors = _sweep(problem, plan)
        ctx.plan, ctx.shares = plan, anchors.shares()
        ctx.problem, vectors = problem.put_away()
        ctx.save_for_backward(scale, problem.ids, *vectors)
        seen = anchors.tally(problem, plan).means(problem.span, problem.ranks).to(scale.dtype)
        ctx.mark_non_differentiable(seen)
        return (seen[0] + seen[1]) / 2, seen

    @staticmethod
    @first_order
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, None, None]:
        scale, _, *vectors = ctx.saved_tensors
        problem: Problem = ctx.problem.taken_out(vectors)
        sums = GradientSums(problem, (*ctx.needs_input_grad[:3], False))
        with full_precision(scale.device):
            for block in sums.blocks():
                for rows in ctx.plan.rows:
                    cosine = product(problem.image[rows], block.text.T)
                    targets = ctx.plan.pairs.targets(rows, block, cosine, problem.features)
                    gradient = ctx.shares.gradient(cosine.mul_(scale), targets, rows, block.columns)
                    sums.add(gradient, rows, slice(None))
                    sums.add_numbers(gradient, rows)
            sums.follow()
        # Each rank returns its part of the global gradient; a mean over ranks must give the sum of the parts.
        share = grad_outputs[0] * (problem.ranks.size / (2 * problem.span.total))
        return *sums.finished(share * scale), sums.scale.to(scale.dtype) * share, None, None


@dataclass(frozen=True, slots=True)
class _Seen:
    """All sums of a sweep; those over positives alone in `mil_nce` only."""

    every: Both
    positives: Both | None

    def tally(self, problem: Problem, plan: Plan) -> Tally:
        span, ids = problem.span, plan.pairs.ids
        rows, columns = self.every.rows, self.every.columns.part(span.own)
        if self.positives is None:
            image_losses, text_losses = rows.losses(), columns.losses()
        else:
            image_losses = rows.log_sums_above(self.positives.rows)
            text_losses = columns.log_sums_above(self.positives.columns.part(span.own))
        return Tally(
            image_loss=image_losses.sum(),
            text_loss=text_losses.sum(),
            image_positives=rows.count.double().sum(),
            text_positives=columns.count.double().sum(),
            image_found=hits(self.every.row_best, span, ids),
            text_found=hits(self.every.column_best[span.own], span, ids),
        )

    def shares(self) -> _SoftmaxShares:
        every = shares(self.every.rows, 1.0), shares(self.every.columns, 1.0)
        if self.positives is None:
            return _SoftmaxShares(*every)
        return _SoftmaxShares(*every, shares(self.positives.rows, 1.0), shares(self.positives.columns, 1.0))


@dataclass(frozen=True, slots=True)
class _SoftmaxShares:
    """What a sweep leaves for the way back."""

    rows: Shares
    columns: Shares
    positive_rows: Shares | None = None
    positive_columns: Shares | None = None

    def gradient(self, score: Tensor, targets: Targets, rows: slice, columns: slice) -> Tensor:
        """Of both directions together, in a tile of scores."""
        if self.positive_rows is None or self.positive_columns is None:
            return score_gradient(score, targets, self.rows.part(rows), self.columns.part(columns))
        gradient = softmax_gradient(score, targets, self.rows.part(rows), self.columns.part(columns))
        attracting = self.positive_rows.part(rows), self.positive_columns.part(columns)
        return gradient.sub_(softmax_gradient(score, targets.positives_alone(), *attracting))


def _sweep(problem: Problem, plan: Plan) -> _Seen:
    every = _running(problem)
    positives = _running(problem) if isinstance(problem.objective, MilNCE) else None
    for block in problem.blocks():
        for rows in plan.rows:
            cosine = product(problem.image[rows], block.text.T)
            targets = plan.pairs.targets(rows, block, cosine, problem.features)
            score = cosine.mul_(problem.scale)
            every.add(score, targets, rows, block.columns)
            if positives is not None:
                positives.add(score, targets.positives_alone(), rows, block.columns)
    return _Seen(every.over(problem.ranks), None if positives is None else positives.over(problem.ranks))


def _running(problem: Problem) -> RunningBoth:
    return RunningBoth(problem.span.local, problem.span.total, first=problem.span.first, like=problem.scale)
