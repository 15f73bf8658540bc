"""The measurements as JSON lines, of which all tables and plots are made."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.measurement import Spread

from .machine import Occasion


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One contender in one setting, measured, or skipped and why.

    Attributes:
        what: What is measured, such as "samples per second".
        contender: Who.
        setting: What it was measured at, such as {"store": "file", "workers": 2}.
        unit: Of `value`.
        value: None if skipped.
        ratios: Over the value of another contender in the same round.
        more: Other numbers of the same measurement, such as CPU seconds; units are in their names.
    """

    what: str
    contender: str
    setting: Mapping[str, Any]
    unit: str
    value: Spread | None = None
    repetitions: int | None = None
    ratios: Mapping[str, Spread] | None = None
    more: Mapping[str, Any] | None = None
    skipped: str | None = None
    versions: Mapping[str, str | None]
    device: str
    load_before: float
    commit: str | None
    date: str
    command: str

    @property
    def at(self) -> tuple[object, ...]:
        """What makes two lines the same measurement."""
        return self.what, self.contender, tuple(sorted(self.setting.items())), self.device


def line(occasion: Occasion, **fields: Any) -> Line:
    return Line(**fields, **asdict(occasion))


def append(path: Path, lines: Iterable[Line]) -> None:
    """A run that is cut short leaves what it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(each)) + "\n" for each in lines)


def read(path: Path) -> list[Line]:
    """The latest line of each measurement, in the order of their first."""
    kept: dict[tuple[object, ...], Line] = {}
    for each in _lines(path):
        kept[each.at] = each
    return list(kept.values())


def _lines(path: Path) -> Iterator[Line]:
    for text in path.read_text().splitlines():
        raw: dict[str, Any] = json.loads(text)
        raw["value"] = raw["value"] and Spread(**raw["value"])
        raw["ratios"] = raw["ratios"] and {name: Spread(**each) for name, each in raw["ratios"].items()}
        yield Line(**raw)
