"""Multiplies matrices, and adds up the products in float32 or float64 even if the vectors have half precision.

A CUDA matrix unit multiplies half-precision vectors exactly and adds in float32; torch offers this as `out_dtype`, from
version 2.11 on (decision 10). On other devices the vectors are converted first, which gives the same products.

`matmul` computes scores. `addmm_` multiplies the gradient of a tile of scores with vectors, and adds the product to the
gradient of the inputs. A gradient of scores may be stored in half precision. Before it is stored in float16, it is
multiplied by a power of two, so that small values are not rounded to zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALF_DTYPES = (torch.bfloat16, torch.float16)

# Gradients of scores lie in [-2, 2]. float16 would round small ones to zero, so they are multiplied by this factor
# before they are stored. The product is at most 2^15, below 65,504, the largest float16. A power of two rounds nothing.
FLOAT16_STORAGE_SCALE = 2.0**14
# Gradients of similarities in the local loss also contain the slope of the pooling weights, which may reach about 12.
# With the larger factor, float16 would overflow.
FLOAT16_SIMILARITY_STORAGE_SCALE = 2.0**8


def storage_scale(dtype: torch.dtype) -> float:
    """Returns the factor by which a gradient of scores is multiplied when it is stored as `dtype`.

    float16 needs the factor, because it would round small gradients to zero.
    """
    return FLOAT16_STORAGE_SCALE if dtype == torch.float16 else 1.0


def similarity_storage_scale(dtype: torch.dtype) -> float:
    """Returns the factor by which a gradient of patch-sentence similarities is multiplied when it is stored as `dtype`.

    The factor is smaller than `storage_scale`, because these gradients are larger than those of scores.
    """
    return FLOAT16_SIMILARITY_STORAGE_SCALE if dtype == torch.float16 else 1.0


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """Returns `left @ right`, computed and returned in at least float32."""
    if left.is_cuda and left.dtype in HALF_DTYPES:
        return torch.mm(left, right, out_dtype=torch.float32)  # pyright: ignore[reportCallIssue]
    wide = torch.promote_types(left.dtype, torch.float32)
    return left.to(wide) @ right.to(wide)


def addmm_(total: Tensor, gradient: Tensor, vectors: Tensor, *, stored_scale: float | None = None) -> None:
    """Adds `gradient @ vectors` to `total`, in place.

    Args:
        total: [n, width], in at least float32.
        gradient: [n, k], a gradient of scores. It is either in the type of `vectors`, and has been multiplied by
            `stored_scale`, or it is in the type of `total` without that factor.
        vectors: [k, width], in the type of the inputs.
        stored_scale: The factor of a half-precision `gradient`. The product is divided by it. None means the result of
            `storage_scale` for the type of `vectors`.
    """
    kind = vectors.dtype
    if kind not in HALF_DTYPES:
        total.addmm_(gradient, vectors)
        return
    factor = storage_scale(kind) if stored_scale is None else stored_scale
    if gradient.dtype != kind:
        gradient = (gradient * factor).to(kind)
    alpha = 1.0 / factor
    if total.is_cuda:
        # With `out=total` the sum is formed in place, without a copy of `total`.
        torch.addmm(total, gradient, vectors, out_dtype=total.dtype, alpha=alpha, out=total)  # pyright: ignore[reportCallIssue]
    else:
        # `gradient` has been rounded to half precision above, as on a GPU, before it is widened here.
        total.addmm_(gradient.to(total.dtype), vectors.to(total.dtype), alpha=alpha)
