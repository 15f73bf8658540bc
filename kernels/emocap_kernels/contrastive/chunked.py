"""The same loss in bounded memory: a block of images against all texts, made twice and kept never.

Forward keeps a few numbers of each anchor. Backward makes each block again, in the same shapes from the same tensors,
so its scores and its masks are those of forward to the bit; then it adds the block's part to the gradients. The cost
is four matrix products of the size of the score matrix, the least for a symmetric loss of which nothing is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from emocap_kernels.blocks import BLOCK_BYTES, even_blocks
from emocap_kernels.contrastive.pairs import Pairs, pairs_of
from emocap_kernels.contrastive.problem import Problem
from emocap_kernels.distributed import Ranks, Span, sum_over
from emocap_kernels.precision import full_precision
from emocap_kernels.result import Directions, LossResult
from emocap_kernels.softmax import Anchors, Columns, joined, row_anchors, score_gradient, shares


@dataclass(frozen=True, slots=True)
class _Plan:
    pairs: Pairs
    blocks: list[slice]
    span: Span
    ranks: Ranks


def evaluate(problem: Problem, *, block_bytes: int = BLOCK_BYTES) -> LossResult:
    """The loss of a problem whose rank holds any of the rows; `block_bytes` bounds one block of scores."""
    row_bytes = problem.text.element_size() * max(1, len(problem.text))
    # Masks and guide similarities double what lives beside a block of scores.
    beside = 1 if problem.mining is None else 2
    blocks = even_blocks(problem.span.local, block_bytes // (row_bytes * beside))
    with torch.no_grad():
        plan = _Plan(pairs_of(problem, blocks), blocks, problem.span, problem.ranks)
    loss, seen = _InfoNCE.apply(problem.image, problem.text, problem.scale, plan)  # pyright: ignore[reportGeneralTypeIssues]
    image_to_text, text_to_image, positives, by_image, by_text = seen.unbind()
    return LossResult(loss, image_to_text, text_to_image, positives, Directions(by_image, by_text))


class _InfoNCE(Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
        rows, columns = _sweep(image, text, scale, plan)
        ctx.plan, ctx.rows, ctx.columns = plan, shares(rows, 1.0), shares(columns, 1.0)
        ctx.save_for_backward(image, text, scale, *plan.pairs.tensors())
        seen = _seen(rows, columns, plan).to(image.dtype)
        ctx.mark_non_differentiable(seen)
        return (seen[0] + seen[1]) / 2, seen

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, None]:
        image, text, scale = ctx.saved_tensors[:3]
        with full_precision(image.device):
            by_image, by_text, by_scale = _gradients(ctx, image, text, scale)
        # Each rank returns its part of the global gradient; a mean over ranks must give the sum of the parts.
        share = grad_outputs[0] * (ctx.plan.ranks.size / (2 * ctx.plan.span.total))
        return _times(by_image, share * scale), _times(by_text, share * scale), by_scale * share, None


def _times(gradient: Tensor | None, factor: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.mul_(factor)


def _sweep(image: Tensor, text: Tensor, scale: Tensor, plan: _Plan) -> tuple[Anchors, Anchors]:
    """Rows of this rank and columns of the whole batch."""
    parts: list[Anchors] = []
    columns = Columns(len(text), like=text)
    for block in plan.blocks:
        cosine = image[block] @ text.T
        targets = plan.pairs.targets(block, cosine)
        score = cosine.mul_(scale)
        parts.append(row_anchors(score, targets))
        columns.add(score, targets, first=plan.span.first + block.start)
    return joined(parts, text), columns.over(plan.ranks)


def _gradients(ctx: Any, image: Tensor, text: Tensor, scale: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Of 2B times the loss in image / scale, text / scale and scale, by the rows of this rank."""
    plan: _Plan = ctx.plan
    needs_image, needs_text, needs_scale, _ = ctx.needs_input_grad
    by_image = torch.empty_like(image) if needs_image or needs_scale else None
    by_text = torch.zeros_like(text) if needs_text else None
    by_scale = torch.zeros((), dtype=torch.float64, device=image.device)
    for block in plan.blocks:
        cosine = image[block] @ text.T
        targets = plan.pairs.targets(block, cosine)
        gradient = score_gradient(cosine.mul_(scale), targets, ctx.rows.part(block), ctx.columns)
        if by_image is not None:
            torch.mm(gradient, text, out=by_image[block])
            by_scale += (by_image[block] * image[block]).sum()
        if by_text is not None:
            by_text.addmm_(gradient.T, image[block])
    return by_image, by_text, by_scale.to(scale.dtype)


def _seen(rows: Anchors, columns: Anchors, plan: _Plan) -> Tensor:
    """Losses of both directions, mean number of positives, recall of both directions, float64 [5]."""
    own = plan.span.own
    sums = torch.stack(
        [
            rows.row_losses().sum(),
            columns.column_losses(own).sum(),
            (rows.count.double().sum() + columns.count[own].double().sum()) / 2,
            _hits(rows.best, plan),
            _hits(columns.best[own], plan),
        ]
    )
    return sum_over(sums, plan.ranks) / plan.span.total


def _hits(best: Tensor, plan: _Plan) -> Tensor:
    """How many of the local anchors found their own pair, or one of their id, float64."""
    own, ids = plan.span.indices(best.device), plan.pairs.ids
    found = best == own if ids is None else ids[best.clamp(max=len(ids) - 1)] == ids[own]
    return found.double().sum()
