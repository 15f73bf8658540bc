"""Where and with what a measurement was made."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Occasion:
    """What all lines of one run share."""

    device: str
    commit: str | None
    date: str
    command: str


def occasion(device: torch.device) -> Occasion:
    return Occasion(
        device=device_name(device),
        commit=commit(),
        date=datetime.now(UTC).date().isoformat(),
        command=shlex.join(["python", "kernels/benchmarks", *sys.argv[1:]]),
    )


def device_name(device: torch.device) -> str:
    """The model, and for a CPU the cores that torch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = torch.get_num_threads()
    return f"{_cpu_model()}, {cores} core{'s' if cores > 1 else ''}"


def versions(package: str | None) -> dict[str, str | None]:
    """Of Python, torch, triton and, if it is one, the peer."""
    named = {name: _version(name) for name in ("triton", *([package] if package else []))}
    return {"python": platform.python_version(), "torch": str(torch.__version__), **named}


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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
