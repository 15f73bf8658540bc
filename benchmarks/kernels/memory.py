"""Peak memory of one call, above what was there before."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from .device import Call


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Bytes that `call` needs at its worst moment, its results counted; None where the system does not tell."""
    gc.collect()
    return _cuda_peak(call) if device.type == "cuda" else _cpu_peak(call)


def dense_refusal(needed: float, device: torch.device) -> str | None:
    """Returns why matrices of `needed` bytes should not even be tried; CUDA refuses by itself, a CPU starts to swap."""
    available = available_bytes()
    if device.type != "cpu" or available is None:
        return None
    if needed <= available / 2:
        return None
    return f"out of memory: needs about {needed / 1e9:.1f} GB, more than half of the {available / 1e9:.1f} GB free"


def available_bytes() -> int | None:
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
    """The high-water mark of this process, set back first; honest if nothing else runs in it."""
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
    """The entry `name` in bytes."""
    for line in table.read_text().splitlines():
        label, _, value = line.partition(":")
        if label == name:
            return int(value.split()[0]) * 1024
    raise OSError(f"{table} has no {name}")
