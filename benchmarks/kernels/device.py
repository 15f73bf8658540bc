"""Measures calls on a torch device: their time, their peak memory, and whether they fail.

The times of all contenders (the implementations that are compared) are measured alternately. If a contender fails, this
is a result and not an error of the measurement: `attempt` converts the exception to a `Skipped` that contains the
reason.
"""

import gc
import math
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from emocap_kernels.errors import NotSupportedError

from benchmarks.harness import rounds
from benchmarks.harness.machine import cpu_model
from benchmarks.harness.rounds import Skipped, seconds_of

from .subject import Call

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")
# Returns the mean seconds of a number of calls in a row.
Clock = Callable[[Call, int], float]

# The packages on which the speed of every contender depends, in addition to the package of a peer.
PACKAGES = ("torch", "triton")
OUT_OF_MEMORY = "out of memory"
# A short call is repeated within one reading until the reading takes this long.
_READING_S = 0.02
_MOST_CALLS = 50


class UnableError(Exception):
    """An implementation (contender) cannot run; the message contains the reason and perhaps a remedy."""


def device_name(device: torch.device) -> str:
    """Returns the model of a device; for a CPU, followed by the number of cores that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = torch.get_num_threads()
    return f"{cpu_model()}, {cores} core{'s' if cores > 1 else ''}"


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name of a dtype for the records, such as float32."""
    return str(dtype).removeprefix("torch.")


def attempt(call: Callable[[], Result]) -> Result | Skipped:
    """Returns the result of `call`, or a `Skipped` with the reason why the call failed."""
    try:
        return call()
    except (torch.OutOfMemoryError, MemoryError):
        reason = OUT_OF_MEMORY
    except (UnableError, NotSupportedError) as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - a peer may raise any exception, and the record holds its message
        reason = _first_line(error)
    # Outside of the handler the traceback is gone, so that the tensors of its frames are freed.
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return Skipped(reason)


def _first_line(error: Exception) -> str:
    """Returns the type and the first line of an error."""
    text = str(error).strip()
    # torch has no exception type for a CPU without enough memory.
    if "can't allocate memory" in text or "not enough memory" in text:
        return OUT_OF_MEMORY
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"[:200]


def clock_of(device: torch.device) -> Clock:
    """Returns the function that times calls: with events in the stream of a GPU, or with the wall clock on a CPU."""
    return _cuda_seconds if device.type == "cuda" else seconds_of


def _cuda_seconds(call: Call, times: int) -> float:
    """Returns the mean seconds of `times` calls in a row on a GPU, after one call that is not measured."""
    # The first call is not measured, because the contender before this one may have used the cached memory.
    call()
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / times


def in_rounds(calls: Mapping[Key, Call], clock: Clock, *, repeats: int) -> dict[Key, list[float] | Skipped]:
    """Warms up all functions in `calls`, then times them in rounds: each round times every function once, by `clock`.

    `repeats` is the number of rounds. A function that has failed is not called again.

    Returns:
        The mean seconds of one call in each round, for each key; or a `Skipped` if the function failed.
    """
    times = {key: _warm_up(call, clock) for key, call in calls.items()}
    readings = {
        key: partial(attempt, partial(clock, calls[key], number))
        for key, number in times.items()
        if not isinstance(number, Skipped)
    }
    taken = rounds.in_rounds(readings, rounds=repeats)
    return {key: number if isinstance(number, Skipped) else taken[key] for key, number in times.items()}


def _warm_up(call: Call, clock: Clock) -> int | Skipped:
    """Runs the call a few times, and returns how many calls a reading should time, or why the call failed."""
    first = attempt(call)
    once = first if isinstance(first, Skipped) else attempt(lambda: clock(call, 1))
    if isinstance(once, Skipped):
        return once
    return max(1, min(_MOST_CALLS, math.ceil(_READING_S / max(once, 1e-6))))


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Returns the peak memory during `call` in bytes, less the memory that was in use before.

    The memory of the call's results is included. On a CPU the peak is that of the whole process, so nothing else must
    run in the process. Returns None if the system does not report the peak.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _bytes_of(status, "VmRSS")
    except OSError:
        call()
        return None
    call()
    return max(0, _bytes_of(status, "VmHWM") - before)


def dense_refusal(needed: float, device: torch.device) -> str | None:
    """Returns why an implementation that needs matrices of `needed` bytes must not be run, or None if it may be run.

    On a CPU it must not be run if it needs more than half of the free memory, because the machine could begin to swap.
    On a GPU it may always be run, because CUDA raises an error if the memory is too small.
    """
    available = available_bytes()
    if device.type != "cpu" or available is None or needed <= available / 2:
        return None
    return f"out of memory: needs about {needed / 1e9:.1f} GB, more than half of the {available / 1e9:.1f} GB free"


def available_bytes() -> int | None:
    """Returns the free memory of the machine, or None if the system does not report it."""
    try:
        return _bytes_of(Path("/proc/meminfo"), "MemAvailable")
    except OSError:
        return None


def _bytes_of(table: Path, name: str) -> int:
    """Returns the entry `name` of the file `table` in /proc, converted from KiB to bytes."""
    for line in table.read_text().splitlines():
        label, _, value = line.partition(":")
        if label == name:
            return int(value.split()[0]) * 1024
    raise OSError(f"{table} has no {name}")
