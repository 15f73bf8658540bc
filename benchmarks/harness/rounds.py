"""Takes readings in common rounds, each contender once in each, so that a drift of the machine affects all alike."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Reading = TypeVar("Reading")


@dataclass(frozen=True, slots=True)
class Skipped:
    """The reason why there is no result, in one line."""

    reason: str


def in_rounds(
    *groups: Mapping[Key, Callable[[], Reading | Skipped]], rounds: int
) -> dict[Key, list[Reading] | Skipped]:
    """Takes one reading of each contender in each round; one that returns `Skipped` takes no further part.

    A round visits the groups in turn. Within a group the order moves on by one in every round, so that nobody is always
    the first.
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


def complete(taken: Mapping[Key, list[Reading] | Skipped]) -> dict[Key, list[Reading]]:
    """Returns the readings of rounds that nobody may miss.

    Raises:
        ValueError: If somebody was skipped.
    """
    found: dict[Key, list[Reading]] = {}
    for key, readings in taken.items():
        if isinstance(readings, Skipped):
            raise ValueError(f"{key}: {readings.reason}")
        found[key] = readings
    return found
