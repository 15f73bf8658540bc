"""Controls how the losses behave under torch.compile and under a second differentiation.

The backends `chunked` and `fused` have no second derivative. The only exception is the module `region.within`, the
backend `chunked` of the local loss within each image, whose gradients autograd computes. If a caller differentiates
twice where there is no second derivative, an error must be raised. Otherwise autograd would treat the first gradient as
a constant, and the second derivative would lack a term.

torch has a decorator `once_differentiable` for this purpose. It raises an error only if the incoming gradient requires
a gradient, and the incoming gradient of a loss never requires one. Therefore this module has its own decorator of the
same name.
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


def run_uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function so that torch.compile breaks its graph at each call and runs the function uncompiled.

    A loss exchanges metadata with other ranks, selects a backend and loops over tiles. A compiled graph would not make
    this faster. torch has a decorator that excludes a function from compilation, but it imports the compiler when the
    function is called, which takes seconds. Therefore torch's decorator is used only if the compiler has been imported
    already. Otherwise nothing is being compiled, and the function is called directly.

    With `fullgraph=True`, a graph must not break, so torch.compile raises an error at the loss.
    """
    uncompiled = torch._disable_dynamo(function)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return uncompiled(*args, **kwargs) if "torch._dynamo" in sys.modules else function(*args, **kwargs)

    return call


def once_differentiable(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Decorates the backward of an autograd function whose gradients cannot be differentiated again.

    A second differentiation then raises a NotSupportedError. The docstring of this module explains why torch's
    decorator of the same name is not sufficient.

    The forward of the autograd function must pass all inputs that have a gradient to `save_for_backward`, even if the
    backward does not read them. Otherwise a second differentiation with respect to such an input raises no
    NotSupportedError.
    """

    @wraps(backward)
    def once(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        # With create_graph=True torch enables gradients here. `backward` computes in place and must not be recorded.
        with torch.no_grad():
            gradients = backward(ctx, *upstream)
        if not torch.is_grad_enabled():  # Without create_graph nobody can differentiate again.
            return gradients
        # Saved inputs are connected to their autograd graph. With them as inputs, the error is raised for whichever
        # input is differentiated again.
        history = [tensor for tensor in ctx.saved_tensors if tensor is not None and tensor.requires_grad]
        return tuple(_refuse_gradient(each, history) if isinstance(each, Tensor) else each for each in gradients)

    return once


def _refuse_gradient(gradient: Tensor, history: list[Tensor]) -> Tensor:
    return cast("Tensor", _NoSecondDerivative.apply(gradient.detach().requires_grad_(), *history))


# Returns its first argument unchanged, and raises an error if the result is differentiated. The other arguments connect
# the result to the graphs of the inputs, so that autograd reaches this backward from each of them.
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
            "which has one and holds every matrix in full."
        )
