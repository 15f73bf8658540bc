"""The autograd of losses whose gradient is known while their scores are seen: forward makes it, backward multiplies."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from emocap_kernels.contrastive.gradient_sums import GradientSums
from emocap_kernels.contrastive.outcome import Tally, outcome
from emocap_kernels.contrastive.problem import Problem
from emocap_kernels.result import LossResult
from emocap_kernels.transforms import first_order


class AddUp(Protocol):
    """One pass over the scores of this rank's images."""

    def __call__(self, sums: GradientSums, *, wanted: bool) -> Tally:
        """The tally; the gradients go into `sums` if any is `wanted`."""
        ...


def evaluate_early(problem: Problem, add_up: AddUp) -> LossResult:
    """The loss that `add_up` tallies for `problem`."""
    inputs = problem.image, problem.text, problem.scale, problem.bias
    # Within the function grad mode is off, and its inputs still say that they need a gradient.
    loss, seen = _Early.apply(*inputs, problem, add_up, torch.is_grad_enabled())  # pyright: ignore[reportGeneralTypeIssues]
    return outcome(loss, seen)


class _Early(Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        problem: Problem,
        add_up: AddUp,
        recording: bool,
    ) -> tuple[Tensor, Tensor]:
        needs = [recording and each for each in ctx.needs_input_grad[:4]]
        sums = GradientSums(problem, needs)
        seen = add_up(sums, wanted=any(needs)).means(problem.span, problem.ranks).to(scale.dtype)
        if any(needs):
            ctx.ranks_over_anchors = problem.ranks.size / (2 * problem.span.total)
            ctx.dtypes = image.dtype, text.dtype
            ctx.by_scale, ctx.by_bias = sums.scale.to(scale.dtype), sums.bias.to(bias.dtype)
            ctx.save_for_backward(sums.image, sums.text(), scale, image, text)
        ctx.mark_non_differentiable(seen)
        return (seen[0] + seen[1]) / 2, seen

    @staticmethod
    @first_order
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor, None, None, None]:
        by_image, by_text, scale, *_ = ctx.saved_tensors
        # Each rank returns its part of the global gradient; a mean over ranks must give the sum of the parts.
        share = grad_outputs[0] * ctx.ranks_over_anchors
        rows, columns = (
            None if side is None else (side * (share * scale)).to(dtype)
            for side, dtype in zip((by_image, by_text), ctx.dtypes, strict=True)
        )
        return rows, columns, ctx.by_scale * share, ctx.by_bias * share, None, None, None
