"""Where, when and with what a measurement was made."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from os import cpu_count, getloadavg
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


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
        device=f"{_cpu_model()}, {cpu_count()} cores",
        load_before=round(getloadavg()[0], 2),
        commit=_commit(),
        date=datetime.now(UTC).date().isoformat(),
        command=shlex.join(["python", "shards/benchmarks", *sys.argv[1:]]),
    )


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of this Python, and of packages in it."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _commit() -> str | None:
    """The revision, marked if the working tree has changes; None outside of a checkout."""
    revision = _git("rev-parse", "--short=12", "HEAD")
    return f"{revision}+changes" if revision and _git("status", "--porcelain") else revision


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
