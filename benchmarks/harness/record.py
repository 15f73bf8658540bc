"""Stores measurements as JSON lines, the only source of all tables and figures.

A contender is what is measured, such as a library. Two records with the same quantity, contender, setting and device
belong to the same measurement. Records are appended and never deleted; `read` returns the latest record of each
measurement (decision 27).
"""

import json
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from .machine import Occasion
from .rounds import Skipped

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Spread:
    """The minimum, the median and the quartiles of repeated readings.

    A quartile between two readings is interpolated linearly.
    """

    min: float
    median: float
    low_quartile: float
    high_quartile: float


def spread(readings: Sequence[float]) -> Spread:
    """Returns the minimum, the median and the quartiles of at least one reading."""
    if len(readings) == 1:
        return Spread(readings[0], readings[0], readings[0], readings[0])
    low, middle, high = statistics.quantiles(readings, n=4, method="inclusive")
    return Spread(min(readings), middle, low, high)


def ratios(readings: Sequence[float], base: Sequence[float]) -> list[float]:
    """Returns each reading divided by the reading with the same index in `base`."""
    return [each / other for each, other in zip(readings, base, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The measurement of one contender in one setting, or the reason why the contender was skipped.

    The fields after `versions` are those of `Occasion`.

    Attributes:
        what: The measured quantity, such as "samples per second". Each quantity belongs to one file.
        contender: The library, the implementation or the launcher that is measured.
        setting: The parameters of the measurement, such as {"store": "file", "workers": 2}.
        unit: The unit of `value`.
        value: The spread of the readings; None if the contender was skipped.
        repetitions: The number of readings in `value`.
        ratios: Ratios between these readings and others, such as those of another contender. The name of a ratio, such
            as "over torchrun" or "ours over it", says what is divided by what.
        more: Other values of the same measurement, such as CPU seconds. If a value has a unit, its name ends in it.
        skipped: The reason why there is no value.
        versions: The versions of Python and of the packages that matter.
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
        """The fields that identify the measurement: they are equal in all records of the same measurement."""
        return self.what, self.contender, self.at, self.device

    @property
    def at(self) -> tuple[tuple[str, Any], ...]:
        """The field `setting` as a hashable value, by which measurements can be looked up or grouped."""
        return tuple(sorted(self.setting.items()))

    @property
    def median(self) -> float:
        """The median of the readings; raises a ValueError if there are none, because the measurement was skipped."""
        return self.spread_of("value").median

    def spread_of(self, name: str) -> Spread:
        """Returns the spread (median and quartiles) with this name.

        It is the field `value` if `name` is "value", and otherwise the entry `name` of the field `more`.

        Raises:
            ValueError: If the measurement was skipped, or the record has no such spread.
        """
        found = self.value if name == "value" else (self.more or {}).get(name)
        if not isinstance(found, Spread):
            raise ValueError(f"{self.what}: the record of {self.contender} has no {name}.")
        return found


def measured(
    occasion: Occasion,
    readings: Sequence[float] | Skipped,
    *,
    ratios: Mapping[str, Sequence[float]] | None = None,
    **about: Any,
) -> Measurement:
    """Returns the record of a measurement. If `readings` is a `Skipped`, the record holds its reason instead of values.

    `about` holds the other fields of `Measurement`: `what`, `contender`, `setting`, `unit`, `versions`, and optionally
    `more`.
    """
    skipped = isinstance(readings, Skipped)
    return Measurement(
        value=None if skipped else spread(readings),
        repetitions=None if skipped else len(readings),
        ratios={name: spread(each) for name, each in ratios.items()} if ratios else None,
        skipped=readings.reason if skipped else None,
        **about,
        **asdict(occasion),
    )


def append(path: Path, lines: Iterable[Measurement]) -> None:
    """Appends measurements to a file as JSON lines. The folder is created if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(each)) + "\n" for each in lines)


def read(path: Path) -> list[Measurement]:
    """Returns the latest record of each measurement, in the order in which the measurements first occur in the file."""
    kept: dict[tuple[object, ...], Measurement] = {}
    for text in path.read_text().splitlines():
        raw: dict[str, Any] = json.loads(text)
        for name in ("ratios", "more"):
            raw[name] = raw[name] and {key: _restored(value) for key, value in raw[name].items()}
        each = Measurement(**raw | {"value": _restored(raw["value"])})
        kept[each.key] = each
    return list(kept.values())


def grouped(lines: Iterable[Measurement], key: Callable[[Measurement], Key]) -> dict[Key, list[Measurement]]:
    """Returns the measurements grouped by the value of `key`; the groups are in the order in which they first occur."""
    groups: dict[Key, list[Measurement]] = {}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return groups


_SPREAD = {field.name for field in fields(Spread)}


def _restored(value: Any) -> Any:
    """Returns a value that was read from JSON. A dictionary with the fields of `Spread` is converted to a `Spread`."""
    return Spread(**value) if isinstance(value, dict) and value.keys() == _SPREAD else value
