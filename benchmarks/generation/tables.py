"""Formats the scores of captions as a table: one row for each metric, one column for the captioner and each floor."""

from collections.abc import Hashable, Sequence
from typing import Any

from benchmarks.harness.record import Measurement, grouped
from benchmarks.harness.tables import table

from .captions import CAPTIONER


def markdown(lines: Sequence[Measurement]) -> str:
    """Returns the table. The captioner's score has its 95 % interval, and each floor the difference from it."""
    floors = list(dict.fromkeys(line.contender for line in lines if line.contender != CAPTIONER))
    columns = ["steps", "metric", CAPTIONER, *(f"{floor} (difference)" for floor in floors)]
    return table(columns, (_row(those, floors) for those in grouped(lines, _metric).values()))


def _metric(line: Measurement) -> Hashable:
    return line.at


def _row(lines: Sequence[Measurement], floors: Sequence[str]) -> list[str]:
    found = {line.contender: line for line in lines}
    ours = found[CAPTIONER]
    about = [str(ours.setting["steps"]), ours.unit, f"{ours.median:.3f} {_interval(ours)}"]
    return [*about, *(_floor(found[floor]) if floor in found else "" for floor in floors)]


def _floor(line: Measurement) -> str:
    more: Any = line.more or {}
    return f"{line.median:.3f} ({more['captioner_minus_floor']:+.3f} {_interval(line)})"


def _interval(line: Measurement) -> str:
    more: Any = line.more or {}
    low, high = more["interval"]
    return f"[{low:.3f}, {high:.3f}]"
