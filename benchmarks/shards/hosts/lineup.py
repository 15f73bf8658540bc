"""Measures several ways to make pixels on one core, in common rounds, and their difference from Pillow's."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch

from benchmarks.harness.rounds import complete, in_rounds

Item = TypeVar("Item")
Make = Callable[[Item], np.ndarray]
READING_S = 0.2


@dataclass(frozen=True, slots=True)
class Way(Generic[Item]):
    """Describes a contender: its name, a factory (since its package may be missing), and its distribution."""

    name: str
    build: Callable[[], Make[Item]]
    package: str


@dataclass(slots=True)
class Entry:
    """Holds the seconds of each round for one item, or why there are none."""

    contender: str
    pixels: int
    versions: dict[str, str] = field(default_factory=dict[str, str])
    skipped: str | None = None
    greatest_difference: int = 0
    mean_difference: float = 0.0
    seconds: list[float] = field(default_factory=list[float])


def answer(ways: Sequence[Way[Item]], load: Callable[[Path], list[Item]]) -> None:
    """Prints the entries of all sizes as JSON; the command line has a folder of SIZE/*.jpg and the number of rounds."""
    torch.set_num_threads(1)
    folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
    entries: list[Entry] = []
    for size in sorted(folder.iterdir(), key=lambda path: int(path.name)):
        entries += _in_rounds(ways, load(size), int(size.name), rounds)
    sys.stdout.write(json.dumps([asdict(each) for each in entries]))


def _in_rounds(ways: Sequence[Way[Item]], items: Sequence[Item], pixels: int, rounds: int) -> list[Entry]:
    """The first of the ways is the one that differences are to."""
    truth = [ways[0].build()(each) for each in items]
    entries = [_probed(way, pixels, items, truth) for way in ways]
    calls = {
        number: partial(_seconds_each, ways[number].build(), items)
        for number, entry in enumerate(entries)
        if entry.skipped is None
    }
    for number, readings in complete(in_rounds(calls, rounds=rounds)).items():
        entries[number].seconds = readings
    return entries


def _probed(way: Way[Item], pixels: int, items: Sequence[Item], truth: Sequence[np.ndarray]) -> Entry:
    entry = Entry(way.name, pixels)
    try:
        entry.versions = {way.package: version(way.package)}
        apart = list(_apart(way.build(), items, truth))
    except Exception as error:  # noqa: BLE001 - a peer may raise anything; the record says what
        entry.skipped = f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
        return entry
    entry.greatest_difference = int(max(each.max() for each in apart))
    entry.mean_difference = float(np.mean([each.mean() for each in apart]))
    return entry


def _apart(make: Make[Item], items: Sequence[Item], truth: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    for item, right in zip(items, truth, strict=True):
        yield np.abs(make(item).astype(int) - right)


def _seconds_each(make: Make[Item], items: Sequence[Item]) -> float:
    """Runs the function on one item after another, and keeps no result."""
    make(items[0])
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < READING_S:
        for each in items:
            make(each)
        count += len(items)
    return (time.perf_counter() - begin) / count
