"""Which backend computes a loss, and what may stand in the way of fused kernels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch
from torch import Tensor

from emocap_kernels import checks
from emocap_kernels.errors import NotSupportedError
from emocap_kernels.mining import Mining

Backend = Literal["auto", "reference", "chunked", "fused"]

OLDEST_TRITON = (3, 6)
OLDEST_CAPABILITY = (8, 0)
# The nearest candidates of an anchor stay in registers while the others go by.
MOST_NEAREST = 8
# Below, a tile's products are mostly padding.
LEAST_WIDTH = 16


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend by name, and one sentence that says why it is this one."""

    backend: Backend
    reason: str


def chosen(backend: Backend, obstacle: str | None, like: Tensor) -> Choice:
    """`auto` is `fused` wherever that can run, else `chunked`; `like` is one of the inputs.

    Raises:
        ArgumentError: If `backend` is unknown.
        NotSupportedError: If `backend` is `fused` and there is an obstacle.
    """
    checks.check_choice("backend", backend, checks.BACKENDS)
    if backend in ("reference", "chunked"):
        return Choice(backend, "it was asked for.")
    if backend == "fused":
        if obstacle is not None:
            raise NotSupportedError(f"backend='fused' cannot run: {obstacle}; use 'chunked', or 'auto' to choose.")
        return Choice(backend, "it was asked for.")
    if obstacle is not None:
        return Choice("chunked", f"fused kernels cannot run: {obstacle}.")
    if not like.is_cuda:
        return Choice("chunked", "the inputs are on the CPU, where Triton's interpreter only checks kernels.")
    return Choice("fused", f"{_short(like.dtype)} vectors of width {like.shape[-1]} on {_device_name(like.device)}.")


def obstacle(vectors: list[Tensor], mining: Mining | None) -> str | None:
    """Why fused kernels cannot run on these inputs, or None."""
    first = vectors[0]
    if not first.is_cuda and not _interpreted():
        return f"the inputs are on {first.device.type} and the kernels need a CUDA device"
    if first.is_cuda and torch.cuda.get_device_capability(first.device) < OLDEST_CAPABILITY:
        return f"{_device_name(first.device)} is older than compute capability {_dotted(OLDEST_CAPABILITY)}"
    return _shape_obstacle(vectors, mining) or _triton_obstacle()


def _shape_obstacle(vectors: list[Tensor], mining: Mining | None) -> str | None:
    if any(each.dtype == torch.float64 for each in vectors):
        return "float64 inputs are computed in float64"
    if vectors[0].shape[-1] < LEAST_WIDTH:
        return f"the width {vectors[0].shape[-1]} is below {LEAST_WIDTH}"
    if any(each.shape[-1] == 0 for each in vectors):
        return "a guide has no width"
    if mining is not None and mining.top_k is not None and mining.top_k > MOST_NEAREST:
        return f"top_k={mining.top_k} is above {MOST_NEAREST}"
    return None


def _triton_obstacle() -> str | None:
    try:
        installed = version("triton")
    except PackageNotFoundError:
        return "triton is not installed"
    if tuple(int(part) for part in installed.split(".")[:2]) < OLDEST_TRITON:
        return f"triton {installed} is older than {_dotted(OLDEST_TRITON)}"
    return None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dotted(numbers: tuple[int, int]) -> str:
    return ".".join(str(number) for number in numbers)
