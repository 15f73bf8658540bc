"""What becomes of the losses under torch.compile, and where their gradient is differentiated again.

The chunked and the fused losses have no second derivative. torch's `once_differentiable` notices that only where the
gradient that arrives depends on a parameter, which that of a loss never does: the first gradient then passes for a
constant, and the second one lacks its part without a word.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import Function

from emocap_kernels.errors import NotSupportedError

P = ParamSpec("P")
R = TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """The function, at which torch.compile breaks its graph: it runs as it is written, and all around it is compiled.

    A loss exchanges facts with other ranks, chooses a backend and makes its tiles in loops: nothing that a compiled
    graph would make faster. torch's decorator imports the compiler, which takes seconds; where nobody has imported it,
    nothing is compiled.
    """
    apart = torch._disable_dynamo(function)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return apart(*args, **kwargs) if "torch._dynamo" in sys.modules else function(*args, **kwargs)

    return call


def first_order(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """A backward pass of an autograd function whose result cannot be differentiated: trying to raises an error."""

    @wraps(backward)
    def once(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        with torch.no_grad():
            gradients = backward(ctx, *upstream)
        if not torch.is_grad_enabled():  # Without create_graph nobody can ask for more.
            return gradients
        # Saved inputs have their history: through them the error is met from whatever is differentiated.
        history = [tensor for tensor in ctx.saved_tensors if tensor is not None and tensor.requires_grad]
        return tuple(_refusing(each, history) if isinstance(each, Tensor) else each for each in gradients)

    return once


def _refusing(gradient: Tensor, history: list[Tensor]) -> Tensor:
    return cast("Tensor", _NoSecondDerivative.apply(gradient.detach().requires_grad_(), *history))


class _NoSecondDerivative(Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *history: Tensor) -> Tensor:
        del ctx, history
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        del ctx, grad_outputs
        raise NotSupportedError(
            "the loss has no second derivative with the backends 'chunked' and 'fused'; pass backend='reference', "
            "which has one and holds every matrix in whole."
        )
