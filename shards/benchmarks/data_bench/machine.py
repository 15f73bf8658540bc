"""Where, when and with what a measurement was made."""

import platform
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from os import cpu_count, getloadavg

from launch.measurement import commit, cpu_model


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


def occasion() -> Occasion:
    return Occasion(
        device=f"{cpu_model()}, {cpu_count()} cores",
        load_before=round(getloadavg()[0], 2),
        commit=commit(),
        date=datetime.now(UTC).date().isoformat(),
        command=shlex.join(["python", "shards/benchmarks", *sys.argv[1:]]),
    )


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of this Python, and of packages in it."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
