"""Describes the environment of a run: commit, versions and machine.

Environment variables are left out, because they may be secret. The description is sent to MLflow as params when the
MLflow run is created, so it describes the first attempt of the run.
"""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

PACKAGES = (
    "emocap-pretrain",
    "torch",
    "deepspeed",
    "ray",
    "transformers",
    "timm",
    "triton",
    "xformers",
    "numpy",
    "mlflow",
    "webdataset",
)


def git_commit() -> str:
    """Returns the commit of the git checkout that contains this file; an empty text if there is none.

    The commit ends in `-dirty` if tracked files have changes.
    """
    here = Path(__file__).parent
    try:
        commit = _git("rev-parse", "HEAD", at=here)
        return f"{commit}-dirty" if _git("status", "--porcelain", "--untracked-files=no", at=here) else commit
    except (OSError, subprocess.SubprocessError):
        return ""


def versions() -> dict[str, str]:
    """Returns the installed versions of Python and of the packages that influence the results of a run."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, str]:
    """Returns the name, platform, cores, memory and GPUs of this host. Only rank 0 calls it, for its own host."""
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu_cores": str(psutil.cpu_count()),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
        "cuda_devices": ", ".join(devices) or "none",
    }


def _git(*arguments: str, at: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=at, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
