"""Whether a contender computes the loss: against float64, whole at a small size and in sampled rows at a large one."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import torch
from batches import Batch, draw
from contenders import Contender, Loss, ours
from outcome import Skipped, attempt
from passes import forward_backward
from torch import Tensor
from variants import Variant

_SMALL_ROWS = 256
# Relative; half precision rounds logits of size 14 to 0.03, float32 on tensor cores keeps 10 bits.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-2, torch.bfloat16: 0.1, torch.float16: 0.1}
_BLOCK_NUMBERS = 1 << 25


@dataclass(frozen=True, slots=True)
class Agreement:
    """Relative distances from float64: of the loss, and of the image gradient in the Frobenius norm."""

    loss_error: float
    gradient_error: float
    right: bool


@dataclass(frozen=True, slots=True)
class Sampled:
    """Relative distances from float64 at full size; the gradients in `rows` sampled images and texts."""

    rows: int
    loss_error: float
    image_gradient_error: float
    text_gradient_error: float


def agreement(contender: Contender, width: int, dtype: torch.dtype, device: torch.device) -> Agreement | Skipped | None:
    """How far `contender` is from our reference in float64 on a small batch; None if ours has no such loss.

    Returns:
        Skipped if the contender itself does not run.
    """
    variant = contender.variant
    batch = draw(_SMALL_ROWS, width, dtype, device)
    got = attempt(lambda: _values(contender.build(), batch, variant))
    if isinstance(got, Skipped):
        return got
    true = attempt(lambda: _values(ours("reference", variant), batch.to(torch.float64), variant))
    if isinstance(true, Skipped):
        return None
    loss_error, gradient_error = _distance(got[0], true[0]), _distance(got[1], true[1])
    return Agreement(loss_error, gradient_error, max(loss_error, gradient_error) <= _TOLERANCE[dtype])


def sampled(loss: Loss, batch: Batch, variant: Variant, count: int) -> Sampled:
    """Plain InfoNCE at any size: `count` rows of both gradients computed densely in float64."""
    value, image_gradient, text_gradient, _ = forward_backward(loss, batch, variant)
    chosen = torch.randperm(len(batch.image), generator=torch.Generator().manual_seed(0))[:count]
    chosen = chosen.to(batch.image.device)
    with torch.no_grad():
        image, text, scale = batch.image.detach(), batch.text.detach(), batch.scale.detach().double()
        of_images, of_texts = _log_sums(image, text, scale), _log_sums(text, image, scale)
        own = scale * (image.double() * text.double()).sum(1)
        true = ((of_images + of_texts) / 2 - own).mean()
        true_image = _gradient_rows(image, text, scale, of_images, of_texts, chosen)
        true_text = _gradient_rows(text, image, scale, of_texts, of_images, chosen)
    return Sampled(
        rows=len(chosen),
        loss_error=_distance(value, true),
        image_gradient_error=_distance(image_gradient[chosen], true_image),
        text_gradient_error=_distance(text_gradient[chosen], true_text),
    )


def _log_sums(anchors: Tensor, candidates: Tensor, scale: Tensor) -> Tensor:
    """float64 [rows]: the log-sum-exp of each anchor's scores, in blocks of both sides."""
    side = int(_BLOCK_NUMBERS**0.5)
    parts: list[Tensor] = []
    for block in anchors.split(side):
        total = torch.full((len(block),), float("-inf"), dtype=torch.float64, device=block.device)
        wide = scale * block.double()
        for others in candidates.split(side):
            total = torch.logaddexp(total, torch.logsumexp(wide @ others.double().T, 1))
        parts.append(total)
    return torch.cat(parts)


def _gradient_rows(
    anchors: Tensor, candidates: Tensor, scale: Tensor, rows: Tensor, columns: Tensor, chosen: Tensor
) -> Tensor:
    """float64 [count, width]: scale / 2B times the sum over j of (p_ij + q_ij) u_j, less 2 u_i.

    Args:
        anchors: [B, width], the side whose gradient is wanted.
        candidates: [B, width], the other side.
        scale: 0-dim.
        rows: [B], log-sums of the anchors' scores, which normalise p.
        columns: [B], log-sums of the candidates' scores, which normalise q.
        chosen: int64 [count].
    """
    some = anchors[chosen].double()
    gradient = -2 * candidates[chosen].double()
    for others, theirs in zip(candidates.split(1 << 16), columns.split(1 << 16), strict=True):
        scores = scale * some @ others.double().T
        weights = (scores - rows[chosen, None]).exp() + (scores - theirs).exp()
        gradient += weights @ others.double()
    return scale * gradient / (2 * len(anchors))


def _values(loss: Loss, batch: Batch, variant: Variant) -> tuple[Tensor, Tensor]:
    value, image_gradient, *_ = forward_backward(loss, batch, variant)
    return value, image_gradient


def _distance(got: Tensor, true: Tensor) -> float:
    size = true.double().norm().clamp_min(1e-300)
    distance = float((got.double() - true.double()).norm() / size)
    # JSON has no NaN, and a NaN would pass for small in a comparison.
    return distance if math.isfinite(distance) else sys.float_info.max
