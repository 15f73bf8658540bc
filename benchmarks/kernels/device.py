"""A device of torch: its name, its clock, and readings that are taken in common rounds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Protocol, TypeVar

import torch

from benchmarks.harness import rounds
from benchmarks.harness.machine import cpu_model
from benchmarks.harness.rounds import Skipped

from .outcome import attempt

Call = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)

# The packages on which the speed of every contender depends, in addition to the package of a peer.
PACKAGES = ("torch", "triton")
# Shorter calls are repeated within one reading until they fill this.
_READING_S = 0.02
_MOST_CALLS = 50


def device_name(device: torch.device) -> str:
    """Returns the model, and for a CPU the number of cores that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = torch.get_num_threads()
    return f"{cpu_model()}, {cores} core{'s' if cores > 1 else ''}"


class Clock(Protocol):
    """Measures how long calls take on a device."""

    def seconds(self, call: Call, times: int) -> float:
        """Returns the mean seconds of `times` calls in a row."""
        ...


class CpuClock:
    """Measures wall-clock time."""

    def seconds(self, call: Call, times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - start) / times


class CudaClock:
    """Measures the time of the device by events in its stream."""

    def seconds(self, call: Call, times: int) -> float:
        # One call is not measured: the contender before this one may have used the cached memory.
        call()
        torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / times


def clock_of(device: torch.device) -> Clock:
    return CudaClock() if device.type == "cuda" else CpuClock()


def in_rounds(calls: Mapping[Key, Call], clock: Clock, *, repeats: int) -> dict[Key, list[float] | Skipped]:
    """Returns the seconds of each call in each round, after a warm-up. A call that fails leaves the rounds."""
    times = {key: _warm_up(call, clock) for key, call in calls.items()}
    readings = {
        key: partial(_reading, clock, calls[key], number)
        for key, number in times.items()
        if not isinstance(number, Skipped)
    }
    taken = rounds.in_rounds(readings, rounds=repeats)
    return {key: number if isinstance(number, Skipped) else taken[key] for key, number in times.items()}


def _reading(clock: Clock, call: Call, times: int) -> float | Skipped:
    return attempt(lambda: clock.seconds(call, times))


def _warm_up(call: Call, clock: Clock) -> int | Skipped:
    """Returns how many calls form one reading, or why the call failed."""
    first = attempt(call)
    once = first if isinstance(first, Skipped) else attempt(lambda: clock.seconds(call, 1))
    if isinstance(once, Skipped):
        return once
    return max(1, min(_MOST_CALLS, math.ceil(_READING_S / max(once, 1e-6))))
