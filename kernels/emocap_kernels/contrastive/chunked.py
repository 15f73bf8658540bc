"""The global loss in bounded memory: a block of images against all texts, made twice and kept never.

Here are the objectives with positives in a softmax, `infonce` and `mil_nce`. Forward keeps a few numbers of each
anchor. Backward makes each block again, in the same shapes from the same tensors, so its scores and its masks are those
of forward to the bit; then it adds the block's part to the gradients. The cost is four matrix products of the size of
the score matrix, the least for a symmetric loss of which nothing is stored. The other objectives know their gradient
while they see the scores: `pairwise`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from emocap_kernels.contrastive import pairwise
from emocap_kernels.contrastive.gradient_sums import GradientSums
from emocap_kernels.contrastive.outcome import Tally, hits, outcome
from emocap_kernels.contrastive.plan import Plan, planned
from emocap_kernels.contrastive.problem import Objective, Problem
from emocap_kernels.precision import full_precision
from emocap_kernels.products import product
from emocap_kernels.result import LossResult
from emocap_kernels.softmax import (
    Anchors,
    Columns,
    Shares,
    joined,
    row_anchors,
    score_gradient,
    shares,
    softmax_gradient,
)
from emocap_kernels.targets import Targets


def evaluate(problem: Problem, *, block_bytes: int | None = None) -> LossResult:
    """The loss of a problem whose rank holds any of the rows.

    Args:
        problem: Embeddings of any type; half precision is multiplied as it is on a GPU.
        block_bytes: Bounds one block of scores; None is the default of the device.
    """
    plan = planned(problem, block_bytes)
    if problem.objective in ("sigmoid", "soft"):
        return pairwise.evaluate(problem, plan)
    loss, seen = _Softmax.apply(problem.image, problem.text, problem.scale, problem.objective, plan)  # pyright: ignore[reportGeneralTypeIssues]
    return outcome(loss, seen)


class _Softmax(Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, objective: Objective, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        anchors = _sweep(image, text, scale, plan, objective)
        ctx.plan, ctx.shares = plan, anchors.shares()
        ctx.save_for_backward(image, text, scale, *plan.pairs.tensors())
        seen = anchors.tally(plan).means(plan.span, plan.ranks).to(scale.dtype)
        ctx.mark_non_differentiable(seen)
        return (seen[0] + seen[1]) / 2, seen

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, None, None]:
        image, text, scale = ctx.saved_tensors[:3]
        sums = GradientSums(image, text, (*ctx.needs_input_grad[:3], False))
        with full_precision(image.device):
            for block in ctx.plan.blocks:
                cosine = product(image[block], text.T)
                targets = ctx.plan.pairs.targets(block, cosine)
                gradient = ctx.shares.gradient(cosine.mul_(scale), targets, block)
                sums.add(gradient, block, slice(None))
                sums.add_numbers(gradient, block)
        # Each rank returns its part of the global gradient; a mean over ranks must give the sum of the parts.
        share = grad_outputs[0] * (ctx.plan.ranks.size / (2 * ctx.plan.span.total))
        return *sums.finished(share * scale), sums.scale.to(scale.dtype) * share, None, None


@dataclass(frozen=True, slots=True)
class _SoftmaxAnchors:
    """All anchors of this rank's rows and of all columns; `attracting` sums over positives alone, in `mil_nce`."""

    rows: Anchors
    columns: Anchors
    attracting_rows: Anchors | None = None
    attracting_columns: Anchors | None = None

    def tally(self, plan: Plan) -> Tally:
        own, ids = plan.span.own, plan.pairs.ids
        rows, columns = self.rows.row_losses(), self.columns.column_losses(own)
        if self.attracting_rows is not None and self.attracting_columns is not None:
            rows = self.rows.log_sums_above(self.attracting_rows, slice(None))
            columns = self.columns.log_sums_above(self.attracting_columns, own)
        return Tally(
            image_loss=rows.sum(),
            text_loss=columns.sum(),
            image_positives=self.rows.count.double().sum(),
            text_positives=self.columns.count[own].double().sum(),
            image_found=hits(self.rows.best, plan.span, ids),
            text_found=hits(self.columns.best[own], plan.span, ids),
        )

    def shares(self) -> _SoftmaxShares:
        rows, columns = shares(self.rows, 1.0), shares(self.columns, 1.0)
        if self.attracting_rows is None or self.attracting_columns is None:
            return _SoftmaxShares(rows, columns)
        return _SoftmaxShares(rows, columns, shares(self.attracting_rows, 1.0), shares(self.attracting_columns, 1.0))


@dataclass(frozen=True, slots=True)
class _SoftmaxShares:
    """What `_SoftmaxAnchors` leave for the way back."""

    rows: Shares
    columns: Shares
    attracting_rows: Shares | None = None
    attracting_columns: Shares | None = None

    def gradient(self, score: Tensor, targets: Targets, block: slice) -> Tensor:
        """Of both directions together, [rows, total]."""
        rows = self.rows.part(block)
        if self.attracting_rows is None or self.attracting_columns is None:
            return score_gradient(score, targets, rows, self.columns)
        gradient = softmax_gradient(score, targets, rows, self.columns)
        attracting = self.attracting_rows.part(block)
        return gradient.sub_(softmax_gradient(score, targets.positives_alone(), attracting, self.attracting_columns))


def _sweep(image: Tensor, text: Tensor, scale: Tensor, plan: Plan, objective: Objective) -> _SoftmaxAnchors:
    """Rows of this rank and columns of the whole batch."""
    rows: list[Anchors] = []
    attracting_rows: list[Anchors] = []
    columns, attracting_columns = Columns(len(text), like=scale), Columns(len(text), like=scale)
    for block in plan.blocks:
        cosine = product(image[block], text.T)
        targets = plan.pairs.targets(block, cosine)
        score = cosine.mul_(scale)
        first = plan.span.first + block.start
        rows.append(row_anchors(score, targets))
        columns.add(score, targets, first=first)
        if objective == "mil_nce":
            positives = targets.positives_alone()
            attracting_rows.append(row_anchors(score, positives))
            attracting_columns.add(score, positives, first=first)
    seen = _SoftmaxAnchors(joined(rows, scale), columns.over(plan.ranks))
    if objective != "mil_nce":
        return seen
    return _SoftmaxAnchors(seen.rows, seen.columns, joined(attracting_rows, scale), attracting_columns.over(plan.ranks))
