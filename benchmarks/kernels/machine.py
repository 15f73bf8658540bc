"""Where and with what a measurement was made."""

from __future__ import annotations

import platform
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.harness.measurement import REPOSITORY, commit, cpu_model


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
        command=shlex.join(["python", _program(), *sys.argv[1:]]),
    )


def _program() -> str:
    """What was called: this folder, or a script of the repository that measures with it."""
    script = Path(sys.argv[0]).resolve()
    inside = script.is_relative_to(REPOSITORY) and script.name != "__main__.py"
    return str(script.relative_to(REPOSITORY)) if inside else "benchmarks"


def device_name(device: torch.device) -> str:
    """The model, and for a CPU the cores that torch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = torch.get_num_threads()
    return f"{cpu_model()}, {cores} core{'s' if cores > 1 else ''}"


def versions(package: str | None) -> dict[str, str | None]:
    """Of Python, torch, triton and, if it is one, the peer."""
    named = {name: _version(name) for name in ("triton", *([package] if package else []))}
    return {"python": platform.python_version(), "torch": str(torch.__version__), **named}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
