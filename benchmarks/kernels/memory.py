"""The peak memory of one call, above what was allocated before it."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from .device import Call


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Returns the most bytes that `call` holds, results included; None if the system does not report it."""
    gc.collect()
    return _cuda_peak(call) if device.type == "cuda" else _cpu_peak(call)


def dense_refusal(needed: float, device: torch.device) -> str | None:
    """Returns why matrices of `needed` bytes must not be tried, or None.

    CUDA raises an error if there is too little memory; a CPU would begin to swap.
    """
    available = available_bytes()
    if device.type != "cpu" or available is None:
        return None
    if needed <= available / 2:
        return None
    return f"out of memory: needs about {needed / 1e9:.1f} GB, more than half of the {available / 1e9:.1f} GB free"


def available_bytes() -> int | None:
    """Returns the free memory of the machine, or None if the system does not report it."""
    try:
        return _kibibytes(Path("/proc/meminfo"), "MemAvailable")
    except OSError:
        return None


def _cuda_peak(call: Call) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(call: Call) -> int | None:
    """Returns the peak of this process after a reset. It is only right if nothing else runs in the process."""
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _kibibytes(status, "VmRSS")
    except OSError:
        call()
        return None
    call()
    return max(0, _kibibytes(status, "VmHWM") - before)


def _kibibytes(table: Path, name: str) -> int:
    """Returns the entry `name` of a table of /proc, in bytes."""
    for line in table.read_text().splitlines():
        label, _, value = line.partition(":")
        if label == name:
            return int(value.split()[0]) * 1024
    raise OSError(f"{table} has no {name}")
