"""Chooses the floating-point types in which the losses compute.

There are two: the type in which vectors are multiplied (`product_dtype`, which may be a half precision) and the type of
scores and of all sums (`compute_dtype`, at least float32). Autocast has no influence on either.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

# Ranks compare the types of their inputs by position in this tuple.
FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Returns float64 if any tensor is float64, else float32. Sums are never formed in half precision."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def product_dtype(*tensors: Tensor) -> torch.dtype:
    """Returns the type in which vectors are multiplied on matrix units.

    If all tensors have the same half-precision type, that type is kept, because a matrix unit adds products of
    half-precision numbers in float32. In all other cases the result is that of `compute_dtype`.
    """
    kinds = {tensor.dtype for tensor in tensors}
    return kinds.pop() if kinds in ({torch.bfloat16}, {torch.float16}) else compute_dtype(*tensors)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Returns a context that disables autocast, which would compute similarities in half precision."""
    # `torch.autocast` does not accept the meta device, on which the losses give shapes.
    kind = "cpu" if device.type == "meta" else device.type
    return torch.autocast(device_type=kind, enabled=False)


def scale_tensor(scale: Tensor | float, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns `scale` as a 0-dim tensor of `dtype` on the device of `like`.

    If `scale` is a tensor, the result stays connected to its autograd graph.
    """
    if isinstance(scale, Tensor):
        return scale.reshape(()).to(device=like.device, dtype=dtype)
    # `full` fills on the device. A copy of a host number would wait for all work that is queued there.
    return torch.full((), scale, dtype=dtype, device=like.device)
