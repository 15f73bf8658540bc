"""Selects the backend of a loss, and gives the reason if fused Triton kernels cannot run.

The `op.py` of each loss first calls `why_not_fused`, which checks what the kernels of both losses require. If this
function returns None, `op.py` checks the further limits of its own loss. Then it passes the reason, or None, to
`select_backend`. Only one choice is made in `op.py` itself: `auto` becomes `reference` for an objective of the global
loss that neither `chunked` nor `fused` implements.

The ranks compare their selected backends and raise an error if these differ, because different backends send different
messages.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, get_args

import torch
from torch import Tensor

from emocap_kernels import checks
from emocap_kernels.errors import NotSupportedError
from emocap_kernels.mining import Mining

Backend = Literal["auto", "reference", "chunked", "fused"]
# Ranks compare their backends by position in this tuple.
BACKENDS: tuple[Backend, ...] = get_args(Backend)

# The kernels compile under triton 3.6.0 and 3.7.1 for sm_80 and sm_90, and the interpreter's tests pass under both
# (docs/log.md, 2026-11-23).
MIN_TRITON = (3, 6)
MIN_CAPABILITY = (8, 0)
# The kernel that mines top_k keeps the list of each anchor in registers.
MAX_TOP_K = 8
# Below this width, most of a tile's product is padding.
MIN_WIDTH = 16


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """Holds the name of the selected backend, and one sentence that says why it was selected.

    Attributes:
        backend: `reference`, `chunked` or `fused`, never `auto`.
        reason: The sentence, for a log or an error message.
    """

    backend: Backend
    reason: str


def select_backend(backend: Backend, unsupported: str | None, like: Tensor) -> BackendChoice:
    """Returns the backend that runs. On a GPU, `auto` becomes `fused` if fused kernels can run; else it is `chunked`.

    Args:
        backend: The caller's request.
        unsupported: The reason why fused kernels cannot run, or None if they can.
        like: One of the inputs. `auto` depends on its device. If `auto` becomes `fused`, the reason names the device,
            the type and the width of this tensor.

    Raises:
        ArgumentError: If `backend` is unknown.
        NotSupportedError: If `backend` is `fused` and `unsupported` is not None.
    """
    checks.check_choice("backend", backend, BACKENDS)
    if backend == "fused" and unsupported is not None:
        raise NotSupportedError(f"backend='fused' cannot run: {unsupported}; use 'chunked', or 'auto' to choose.")
    if backend != "auto":
        return BackendChoice(backend, "it was requested.")
    if unsupported is not None:
        return BackendChoice("chunked", f"fused kernels cannot run: {unsupported}.")
    if not like.is_cuda:
        return BackendChoice("chunked", "the inputs are on the CPU, where Triton's interpreter only checks kernels.")
    dtype, device = str(like.dtype).removeprefix("torch."), torch.cuda.get_device_name(like.device)
    return BackendChoice("fused", f"{dtype} vectors of width {like.shape[-1]} on {device}.")


def why_not_fused(vectors: list[Tensor], mining: Mining | None) -> str | None:
    """Returns the reason why fused kernels cannot run on these inputs, or None if they can run.

    The answer depends on device, type, width, mining rule and the installed Triton, never on the number of rows.
    Therefore ranks with different numbers of rows get the same answer.

    Args:
        vectors: All tensors that a kernel would multiply. The first one determines device and width. In the global
            loss, guide features (vectors that only the mining compares) may have another width.
        mining: The mining rule of the loss, or None. Only its `top_k` matters here.
    """
    first = vectors[0]
    if not first.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the inputs are on {first.device.type} and the kernels need a CUDA device"
    if first.is_cuda and torch.cuda.get_device_capability(first.device) < MIN_CAPABILITY:
        device = torch.cuda.get_device_name(first.device)
        return f"{device} is older than compute capability {_dotted(MIN_CAPABILITY)}"
    return _unsupported_inputs(vectors, mining) or _unsupported_triton()


def _unsupported_inputs(vectors: list[Tensor], mining: Mining | None) -> str | None:
    if any(each.dtype == torch.float64 for each in vectors):
        return "float64 inputs are computed in float64"
    if vectors[0].shape[-1] < MIN_WIDTH:
        return f"the width {vectors[0].shape[-1]} is below {MIN_WIDTH}"
    if any(each.shape[-1] == 0 for each in vectors):
        return "guide features have width 0"
    if mining is not None and mining.top_k is not None and mining.top_k > MAX_TOP_K:
        return f"top_k={mining.top_k} is above {MAX_TOP_K}"
    return None


def _unsupported_triton() -> str | None:
    try:
        # The metadata of the package contains the version, so Triton is not imported before a kernel is needed.
        installed = version("triton")
    except PackageNotFoundError:
        return "triton is not installed"
    if tuple(int(part) for part in installed.split(".")[:2]) < MIN_TRITON:
        return f"triton {installed} is older than {_dotted(MIN_TRITON)}"
    return None


def _dotted(numbers: tuple[int, int]) -> str:
    return ".".join(str(number) for number in numbers)
