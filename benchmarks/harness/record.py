"""The measurements as JSON lines, of which tables and plots are made: one form for whoever needs no other."""

import json
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from os import cpu_count, getloadavg
from pathlib import Path
from typing import Any

from benchmarks.harness.measurement import Spread, commit, cpu_model


@dataclass(frozen=True, slots=True)
class Occasion:
    """What all lines of one run share.

    Attributes:
        load_before: Processes that wanted a core in the minute before the run began, on average: what disturbs it.
    """

    device: str
    load_before: float
    commit: str | None
    date: str
    command: str


def occasion(program: str) -> Occasion:
    """Here and now; `program` is what was called, such as `shards/benchmarks`."""
    return Occasion(
        device=f"{cpu_model()}, {cpu_count()} cores",
        load_before=round(getloadavg()[0], 2),
        commit=commit(),
        date=datetime.now(UTC).date().isoformat(),
        command=shlex.join(["python", program, *sys.argv[1:]]),
    )


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of this Python, and of packages in it."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


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


def insert(text: str, name: str, table: str) -> str:
    """A document with the table between its markers <!-- NAME --> and <!-- end -->.

    Raises:
        ValueError: If it has no such markers.
    """
    before, found, rest = text.partition(f"<!-- {name} -->\n")
    _, closed, after = rest.partition("<!-- end -->")
    if not found or not closed:
        raise ValueError(f"the document has no <!-- {name} --> with an <!-- end --> behind it; add both lines.")
    return f"{before}{found}{table}\n{closed}{after}"
