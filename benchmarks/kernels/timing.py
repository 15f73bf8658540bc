"""Time and its spread: everybody once a round, so that a drift of the machine hits all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Protocol, TypeVar

import torch

from .outcome import Skipped, attempt

Call = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)

# Shorter calls are repeated within one reading until they fill this.
_READING_S = 0.02
_MOST_CALLS = 50


class Clock(Protocol):
    """Tells how long calls take on a device."""

    def seconds(self, call: Call, times: int) -> float:
        """Mean seconds of `times` calls in a row."""
        ...


class CpuClock:
    """The clock on the wall."""

    def seconds(self, call: Call, times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - start) / times


class CudaClock:
    """Events in the stream, which see the device's own time."""

    def seconds(self, call: Call, times: int) -> float:
        # One call unread: the contender before this one may have taken the cached memory.
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
    """Seconds of each call in each of `repeats` rounds, after a warm-up; who fails takes no further part.

    The order moves on by one in every round, so that nobody always follows the same neighbour.
    """
    taken: dict[Key, list[float] | Skipped] = {}
    times: dict[Key, int] = {}
    for key, call in calls.items():
        taken[key], times[key] = _warm_up(call, clock)
    for number in range(repeats):
        keys = list(calls)
        start = number % max(len(keys), 1)
        for key in keys[start:] + keys[:start]:
            readings = taken[key]
            if not isinstance(readings, Skipped):
                read = attempt(lambda key=key: clock.seconds(calls[key], times[key]))
                taken[key] = read if isinstance(read, Skipped) else [*readings, read]
    return taken


def _warm_up(call: Call, clock: Clock) -> tuple[list[float] | Skipped, int]:
    """An empty list of readings, and how many calls make one; or why it failed."""
    first = attempt(call)
    once = first if isinstance(first, Skipped) else attempt(lambda: clock.seconds(call, 1))
    if isinstance(once, Skipped):
        return once, 1
    return [], max(1, min(_MOST_CALLS, math.ceil(_READING_S / max(once, 1e-6))))
