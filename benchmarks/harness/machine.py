"""Describes where, when and with which versions a measurement was made."""

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
    """Describes where, when and how the measurements of one command were made. Every record contains these fields.

    Attributes:
        device: The model of the processor or of the GPU.
        load_before: The load average of the minute before the command began to measure. A high load means that other
            processes may have disturbed the readings. It is None in older records.
        commit: The git revision, with "+changes" if the working tree has changes; None outside of a checkout.
        date: The date in ISO format, UTC.
        command: The command line that repeats the measurement.
    """

    device: str
    load_before: float | None
    commit: str | None
    date: str
    command: str


def occasion(device: str | None = None) -> Occasion:
    """Returns the device, load, git revision, date and command line of this process, for the records of measurements.

    Without `device`, the device is the processor.
    """
    return Occasion(
        device=device or f"{cpu_model()}, {cpu_count()} cores",
        load_before=round(getloadavg()[0], 2),
        commit=commit(),
        date=datetime.now(UTC).date().isoformat(),
        command=shlex.join(["python", _program(), *sys.argv[1:]]),
    )


def _program() -> str:
    """Returns the script that was started, such as launch/gpu_first.py, or "benchmarks" for this package."""
    script = Path(sys.argv[0]).resolve()
    inside = script.is_relative_to(REPOSITORY) and script.name != "__main__.py"
    return str(script.relative_to(REPOSITORY)) if inside else "benchmarks"


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Returns the versions of Python and of `packages`, with None for a package that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """Returns the git revision of the checkout, with "+changes" if the working tree has changes; None if git fails."""
    revision = _git("rev-parse", "--short=12", "HEAD")
    return f"{revision}+changes" if revision and _git("status", "--porcelain") else revision


def _git(*words: str) -> str | None:
    """Returns the output of a git command in the repository; None if it fails."""
    try:
        done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def cpu_model() -> str:
    """Returns the model of the processor, or its architecture where the system does not report a model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
