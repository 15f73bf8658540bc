"""What every benchmark of this repository says of its measurements: their spread, and where and when they were made."""

import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Spread:
    """Of repeated readings; the quartiles are those of the readings themselves, linearly between two."""

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
    """Each reading over the one of the same round."""
    return [each / other for each, other in zip(readings, base, strict=True)]


def commit() -> str | None:
    """The revision, marked if the working tree has changes; None outside of a checkout."""
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
