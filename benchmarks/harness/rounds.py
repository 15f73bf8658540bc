"""Measures contenders (what is compared, such as libraries) in rounds: a round takes one reading of each of them.

So a slow phase of the machine affects all contenders. For the same reason, the ratio of two contenders is computed from
readings of the same round (`record.ratios`).
"""

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Reading = TypeVar("Reading")


@dataclass(frozen=True, slots=True)
class Skipped:
    """Takes the place of a result; `reason` is one line that says why there is no result."""

    reason: str


def seconds_of(call: Callable[[], object], times: int = 1) -> float:
    """Returns the mean wall-clock seconds of `times` calls in a row."""
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times


def in_rounds(
    *groups: Mapping[Key, Callable[[], Reading | Skipped]], rounds: int
) -> dict[Key, list[Reading] | Skipped]:
    """Measures contenders in rounds. Each round calls every function in `groups` once.

    A contender is what one of the functions measures. Each call of a function returns one reading. A function that
    returns `Skipped` is not called again. A round calls one group after another. Within a group, each round begins with
    another function, so that no contender is always the first.

    Returns:
        The readings of each contender by its key, or its `Skipped`.
    """
    taken: dict[Key, list[Reading] | Skipped] = {key: [] for group in groups for key in group}
    for number in range(rounds):
        for group in groups:
            keys = list(group)
            first = number % max(len(keys), 1)
            for key in keys[first:] + keys[:first]:
                readings = taken[key]
                if not isinstance(readings, Skipped):
                    reading = group[key]()
                    taken[key] = reading if isinstance(reading, Skipped) else [*readings, reading]
    return taken


def per_second(ways: Mapping[Key, Callable[[], object]], items: int, *, rounds: int) -> dict[Key, list[float]]:
    """Returns how many items per second each way handles, from `rounds` calls that handle `items` items each.

    One call before them does not count, because it allocates memory and chooses kernels.
    """
    for way in ways.values():
        way()
    return complete(in_rounds({key: _Speed(way, items) for key, way in ways.items()}, rounds=rounds))


@dataclass(frozen=True, slots=True)
class _Speed:
    way: Callable[[], object]
    items: int

    def __call__(self) -> float:
        return self.items / seconds_of(self.way)


def complete(taken: Mapping[Key, list[Reading] | Skipped]) -> dict[Key, list[Reading]]:
    """Returns the readings in `taken`, which is a result of `in_rounds`, after a check that none was skipped.

    Raises:
        ValueError: If a measurement was skipped.
    """
    found: dict[Key, list[Reading]] = {}
    for key, readings in taken.items():
        if isinstance(readings, Skipped):
            raise ValueError(f"{key}: {readings.reason}")
        found[key] = readings
    return found
