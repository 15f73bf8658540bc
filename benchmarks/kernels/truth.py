"""Compares a contender with the loss in float64: in full at a small size, in sampled rows at a large one."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness.rounds import Skipped

from .outcome import attempt
from .passes import forward, forward_backward
from .subject import Batch, Contender, Loss, Subject
from .variants import Variant

# Relative tolerance. Half precision rounds logits of size 14 to 0.03, and float32 on tensor cores keeps 10 bits.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-2, torch.bfloat16: 0.1, torch.float16: 0.1}


@dataclass(frozen=True, slots=True)
class Agreement:
    """Relative distances of the loss, and of the image (or patch) gradient in the Frobenius norm, from float64."""

    loss_error: float
    gradient_error: float
    right: bool


@dataclass(frozen=True, slots=True)
class Sampled:
    """Relative distances from float64 at full size. Those of gradients are over `rows` sampled images and texts."""

    rows: int
    loss_error: float
    image_gradient_error: float
    text_gradient_error: float


def agreement(
    subject: Subject, contender: Contender, width: int, dtype: torch.dtype, device: torch.device
) -> Agreement | Skipped | None:
    """Compares `contender` with our reference in float64 on a small batch.

    Returns:
        The distances. None if we have no such loss, and Skipped if the contender itself does not run.
    """
    variant = contender.variant
    batch = subject.draw(subject.small(width), dtype, device)
    true = attempt(lambda: _values(subject.reference(variant), batch.to(torch.float64), variant))
    if isinstance(true, Skipped):
        ran = attempt(lambda: forward(contender.build(), batch))
        return ran if isinstance(ran, Skipped) else None
    got = attempt(lambda: _values(contender.build(), batch, variant))
    if isinstance(got, Skipped):
        return got
    loss_error, gradient_error = _distance(got[0], true[0]), _distance(got[1], true[1])
    return Agreement(loss_error, gradient_error, max(loss_error, gradient_error) <= _TOLERANCE[dtype])


def sampled(subject: Subject, loss: Loss, batch: Batch, variant: Variant, count: int) -> Sampled:
    """Compares the plain loss, and `count` rows of both gradients, with float64 at any size."""
    value, image_gradient, text_gradient, *_ = forward_backward(loss, batch, variant)
    true = subject.exact(batch, count)
    return Sampled(
        rows=len(true.images),
        loss_error=_distance(value, true.loss),
        image_gradient_error=_distance(image_gradient[true.images], true.image_gradient),
        text_gradient_error=_distance(text_gradient[true.texts], true.text_gradient),
    )


def _values(loss: Loss, batch: Batch, variant: Variant) -> tuple[Tensor, Tensor]:
    value, image_gradient, *_ = forward_backward(loss, batch, variant)
    return value, image_gradient


def _distance(got: Tensor, true: Tensor) -> float:
    size = true.double().norm().clamp_min(1e-300)
    distance = float((got.double() - true.double()).norm() / size)
    # JSON has no NaN, and comparisons with NaN would not report an error.
    return distance if math.isfinite(distance) else sys.float_info.max
