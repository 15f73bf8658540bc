"""Matrix products whose sums are float32 (or float64) whatever the vectors are.

A CUDA matrix unit multiplies half-precision vectors exactly and adds up in float32; torch reaches it by `out_dtype`.
Elsewhere the vectors are widened first, which gives the same products.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)

# Gradients of scores lie in [-2, 2]; float16 would flush the small ones, so there they travel multiplied by this.
HALF_GAIN = 2.0**14


# Those of similarities in the local loss are times the slope of the weights as well, which may reach a dozen.
HALF_SIMILARITY_GAIN = 2.0**8


def similarity_gain(dtype: torch.dtype) -> float:
    """As `gain`, for gradients of similarities of the local loss."""
    return HALF_SIMILARITY_GAIN if dtype == torch.float16 else 1.0


def gain(dtype: torch.dtype) -> float:
    """By what a gradient of scores is multiplied when it is stored as `dtype`."""
    return HALF_GAIN if dtype == torch.float16 else 1.0


def product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right`, in at least float32."""
    if left.is_cuda and left.dtype in HALVES:
        return torch.mm(left, right, out_dtype=torch.float32)  # pyright: ignore[reportCallIssue]
    wide = torch.promote_types(left.dtype, torch.float32)
    return left.to(wide) @ right.to(wide)


def add_product_(total: Tensor, gradient: Tensor, vectors: Tensor, *, stored_times: float | None = None) -> None:
    """Adds `gradient @ vectors` to `total`.

    Args:
        total: In at least float32.
        gradient: Of scores; in the type of `vectors` and multiplied by its `gain`, or as it is in that of `total`.
        vectors: In the type of the inputs.
        stored_times: By what a `gradient` in the type of `vectors` is multiplied, if not by its `gain`.
    """
    kind = vectors.dtype
    if kind not in HALVES:
        total.addmm_(gradient, vectors)
        return
    factor = gain(kind) if stored_times is None else stored_times
    if gradient.dtype != kind:
        gradient = (gradient * factor).to(kind)
    alpha = 1.0 / factor
    if total.is_cuda:
        torch.addmm(total, gradient, vectors, out_dtype=total.dtype, alpha=alpha, out=total)  # pyright: ignore[reportCallIssue]
    else:
        total.addmm_(gradient.to(total.dtype), vectors.to(total.dtype), alpha=alpha)
