"""Runs a loss once, either forward alone or with its gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .subject import Batch, Loss
from .variants import FORWARD, Pass, Variant


def forward(loss: Loss, batch: Batch) -> Tensor:
    """Returns the loss, computed without a graph."""
    with torch.no_grad():
        return loss(batch)


def forward_backward(loss: Loss, batch: Batch, variant: Variant) -> tuple[Tensor, ...]:
    """Returns the loss, then the gradients of `batch.leaves`, which are not accumulated anywhere."""
    value = loss(batch)
    return (value.detach(), *torch.autograd.grad(value, batch.leaves(variant)))


def call_of(loss: Loss, batch: Batch, variant: Variant, pass_: Pass) -> Callable[[], object]:
    """Returns a function that runs one pass."""
    if pass_ == FORWARD:
        return lambda: forward(loss, batch)
    return lambda: forward_backward(loss, batch, variant)
