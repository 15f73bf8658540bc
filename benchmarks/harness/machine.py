"""The occasion of a measurement: device, load, commit, date, command, and the versions of packages."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from os import cpu_count, getloadavg
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Occasion:
    """The facts that all measurements of one call of the command share.

    Attributes:
        device: The model of the processor or of the GPU.
        load_before: Processes that wanted a core in the minute before, on average; they disturb what is measured.
            None in records that were made before it was noted.
        commit: The revision, marked if the working tree has changes; None outside of a checkout.
        date: In ISO format, UTC.
        command: What was called, to call it again.
    """

    device: str
    load_before: float | None
    commit: str | None
    date: str
    command: str


def occasion(device: str | None = None) -> Occasion:
    """Returns the occasion of this process; `device` is the processor unless it is named."""
    return Occasion(
        device=device or f"{cpu_model()}, {cpu_count()} cores",
        load_before=round(getloadavg()[0], 2),
        commit=commit(),
        date=datetime.now(UTC).date().isoformat(),
        command=shlex.join(["python", _program(), *sys.argv[1:]]),
    )


def _program() -> str:
    """Returns the script of the repository that measures, such as launch/gpu_first.py, or this package."""
    script = Path(sys.argv[0]).resolve()
    inside = script.is_relative_to(REPOSITORY) and script.name != "__main__.py"
    return str(script.relative_to(REPOSITORY)) if inside else "benchmarks"


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Returns the versions of this Python and of packages in it; None for a package that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    revision = _git("rev-parse", "--short=12", "HEAD")
    return f"{revision}+changes" if revision and _git("status", "--porcelain") else revision


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
