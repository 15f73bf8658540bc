"""Stores measurements as JSON lines, from which all tables and figures are made."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .machine import Occasion
from .rounds import Skipped


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread of repeated readings; quartiles are taken linearly between two of them."""

    min: float
    median: float
    low_quartile: float
    high_quartile: float


def spread(readings: Sequence[float]) -> Spread:
    if len(readings) == 1:
        return Spread(readings[0], readings[0], readings[0], readings[0])
    low, middle, high = statistics.quantiles(readings, n=4, method="inclusive")
    return Spread(min(readings), middle, low, high)


def ratios(readings: Sequence[float], base: Sequence[float]) -> list[float]:
    """Returns each reading over the reading of the same round in `base`."""
    return [each / other for each, other in zip(readings, base, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Holds the measurement of one contender in one setting, or why it was skipped.

    Attributes:
        what: What is measured, such as "samples per second"; it decides the file.
        contender: Who is measured.
        setting: What it was measured at, such as {"store": "file", "workers": 2}.
        unit: The unit of `value`.
        value: None if the contender was skipped.
        repetitions: Number of readings in `value`.
        ratios: Ratios to the readings of another contender in the same rounds, by a name that says to whose.
        more: Other values of the same measurement, such as CPU seconds; units are in their names.
        skipped: Why there is no value.
        versions: Versions of Python and of the packages that matter.
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
    load_before: float | None
    commit: str | None
    date: str
    command: str

    @property
    def key(self) -> tuple[object, ...]:
        """The value that two records of the same measurement have in common."""
        return self.what, self.contender, self.at, self.device

    @property
    def at(self) -> tuple[tuple[str, Any], ...]:
        """The setting as a value that can be a key."""
        return tuple(sorted(self.setting.items()))

    @property
    def median(self) -> float:
        return self.spread_of("value").median

    def spread_of(self, name: str) -> Spread:
        """Returns the spread of "value", or of one of `more`.

        Raises:
            ValueError: If the contender was skipped, or has no such spread.
        """
        found = self.value if name == "value" else (self.more or {}).get(name)
        if not isinstance(found, Spread):
            raise ValueError(f"{self.what}: the record of {self.contender} has no {name}.")
        return found


def measured(
    occasion: Occasion,
    readings: Sequence[float] | Skipped,
    *,
    what: str,
    contender: str,
    setting: Mapping[str, Any],
    unit: str,
    versions: Mapping[str, str | None],
    ratios: Mapping[str, Sequence[float]] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Measurement:
    """Returns the record of `readings`, or of the reason why there are none."""
    skipped = isinstance(readings, Skipped)
    return Measurement(
        what=what,
        contender=contender,
        setting=setting,
        unit=unit,
        value=None if skipped else spread(readings),
        repetitions=None if skipped else len(readings),
        ratios={name: spread(each) for name, each in ratios.items()} if ratios else None,
        more=more,
        skipped=readings.reason if skipped else None,
        versions=versions,
        **asdict(occasion),
    )


def append(path: Path, lines: Iterable[Measurement]) -> None:
    """Adds to a file, line by line, so that a run that is cut short leaves what it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(each)) + "\n" for each in lines)


def read(path: Path) -> list[Measurement]:
    """Returns the latest record of each measurement, in the order of their first."""
    kept: dict[tuple[object, ...], Measurement] = {}
    for text in path.read_text().splitlines():
        raw: dict[str, Any] = json.loads(text)
        for name in ("ratios", "more"):
            raw[name] = raw[name] and {key: _restored(value) for key, value in raw[name].items()}
        each = Measurement(**raw | {"value": _restored(raw["value"])})
        kept[each.key] = each
    return list(kept.values())


_SPREAD = {field.name for field in fields(Spread)}


def _restored(value: Any) -> Any:
    return Spread(**value) if isinstance(value, dict) and value.keys() == _SPREAD else value
