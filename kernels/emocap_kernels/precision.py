"""In what precision the losses compute."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any input is, else float32: half-precision inputs are widened, never added up as they are."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def product_dtype(*tensors: Tensor) -> torch.dtype:
    """As `compute_dtype`, but a half precision that all share stays: a matrix unit adds its products in float32."""
    kinds = {tensor.dtype for tensor in tensors}
    return kinds.pop() if kinds in ({torch.bfloat16}, {torch.float16}) else compute_dtype(*tensors)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Shuts out autocast, which would run the similarities of a loss in half precision."""
    kind = "cpu" if device.type == "meta" else device.type
    return torch.autocast(device_type=kind, enabled=False)


def scale_tensor(scale: Tensor | float, like: Tensor, dtype: torch.dtype) -> Tensor:
    """`scale` as a 0-dim tensor beside `like`, still connected to its graph."""
    if isinstance(scale, Tensor):
        return scale.reshape(()).to(device=like.device, dtype=dtype)
    # Filled on the device: a copy of a number from the host would wait for all that is under way.
    return torch.full((), scale, dtype=dtype, device=like.device)
