"""Formats the scores of captions as a table.

It has a row for each setting and metric, and a column for the captioner and for each floor.
"""

from collections.abc import Hashable, Sequence
from typing import Any

from benchmarks.harness.record import Measurement, grouped
from benchmarks.harness.tables import table

from .captions import CAPTIONER


def markdown(lines: Sequence[Measurement]) -> str:
    """Returns a table with a row for each setting and metric.

    The captioner's score is followed by its 95 % interval. The score of each floor is followed by the captioner's score
    minus this score, and by the paired 95 % interval of the difference.
    """
    floors = list(dict.fromkeys(line.contender for line in lines if line.contender != CAPTIONER))
    columns = ["image tower of", "steps", "metric", CAPTIONER, *(f"{floor} (difference)" for floor in floors)]
    return table(columns, (_row(those, floors) for those in grouped(lines, _metric).values()))


def _metric(line: Measurement) -> Hashable:
    return line.at


def _row(lines: Sequence[Measurement], floors: Sequence[str]) -> list[str]:
    found = {line.contender: line for line in lines}
    ours = found[CAPTIONER]
    about = [str(ours.setting["model"]), str(ours.setting["steps"]), ours.unit, f"{ours.median:.3f} {_interval(ours)}"]
    return [*about, *(_floor(found[floor]) if floor in found else "" for floor in floors)]


def _floor(line: Measurement) -> str:
    more: Any = line.more or {}
    return f"{line.median:.3f} ({more['captioner_minus_floor']:+.3f} {_interval(line)})"


def _interval(line: Measurement) -> str:
    more: Any = line.more or {}
    low, high = more["interval"]
    return f"[{low:.3f}, {high:.3f}]"
