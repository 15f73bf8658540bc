"""Running a loss once, forward alone or with its gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .subject import Batch, Loss
from .variants import FORWARD, Pass, Variant


def forward(loss: Loss, batch: Batch) -> Tensor:
    with torch.no_grad():
        return loss(batch)


def forward_backward(loss: Loss, batch: Batch, variant: Variant) -> tuple[Tensor, ...]:
    """The loss, then the gradients of `batch.leaves`, in new memory and not added to anything."""
    value = loss(batch)
    return (value.detach(), *torch.autograd.grad(value, batch.leaves(variant)))


def call_of(loss: Loss, batch: Batch, variant: Variant, pass_: Pass) -> Callable[[], object]:
    if pass_ == FORWARD:
        return lambda: forward(loss, batch)
    return lambda: forward_backward(loss, batch, variant)
