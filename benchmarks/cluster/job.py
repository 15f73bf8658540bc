"""A small training run as a user starts it, and when each of its steps was logged."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from emocap_shards.writer import write_shards
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from emocap_pretrain.captions.rendered.dataset import records

BIN = Path(sys.executable).parent
RUN = ("-m", "emocap_pretrain.run")
LIMIT_S = 400.0
_OUTSIDE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "RAY_", "SLURM_", "TORCHELASTIC_")


class JobError(Exception):
    """A job that ended or hung; the message holds the end of its output."""


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a run; `width` and `depth` are those of both towers."""

    steps: int
    ranks: int = 2
    global_batch: int = 32
    width: int = 64
    depth: int = 2


@dataclass(frozen=True, slots=True)
class Site:
    """A folder for runs, the faces that they share, and an environment in which no other cluster is found."""

    folder: Path
    faces: str
    env: Mapping[str, str]

    @property
    def tracking(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def config(self, name: str, size: Size, *, every_steps: int = 1, **sections: Any) -> Path:
        """Writes `cfg.yaml` of a run into a new folder; `sections` replace settings of the recipe."""
        folder = self.folder / name
        folder.mkdir()
        path = folder / "cfg.yaml"
        path.write_text(yaml.safe_dump(_tree(name, size, self, every_steps) | sections))
        return path

    def logged(self, config: Path) -> list[tuple[int, float]]:
        """Returns the step of every point that MLflow has, and when rank 0 logged it, in seconds since 1970."""
        return [(point.step, point.timestamp / 1000) for point in self._history(config, "loss")]

    def metric(self, config: Path, name: str) -> list[float]:
        """Returns the values of a metric by step."""
        return [point.value for point in self._history(config, name)]

    def _history(self, config: Path, name: str) -> list[Metric]:
        try:
            run_id = json.loads((config.parent / "run" / "run.json").read_text())["run_id"]
        except (FileNotFoundError, ValueError):
            return []
        return sorted(MlflowClient(self.tracking).get_metric_history(run_id, name), key=lambda point: point.step)


def _tree(name: str, size: Size, site: Site, every_steps: int) -> dict[str, Any]:
    tower = {"patch_size": 8, "embed_dim": size.width, "depth": size.depth, "num_heads": 2}
    return {
        "name": name,
        "url": "run",
        "steps": size.steps,
        "global_batch": size.global_batch,
        "data": {"url": site.faces, "workers": 0},
        "model": {
            "embedding": 64,
            "image": {"name": "vit_tiny_patch16_224", "pixels": 32, "options": tower},
            "text": {
                "architecture": {"width": size.width, "layers": size.depth, "heads": 2},
                "vocabulary": 300,
                "lengths": {"global": 16, "local": 16, "summary": 24},
            },
        },
        "optimizer": {"warmup_steps": 2},
        "cluster": {"ranks": size.ranks, "device": "cpu", "threads_per_rank": 1, "timeout_s": 60},
        "checkpoint": {"every_steps": size.steps},
        "tracking": {"uri": site.tracking, "artifacts": "artifacts", "every_steps": every_steps},
    }


@contextmanager
def site(folder: Path) -> Generator[Site]:
    """A folder made ready; Ray's own files go when the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    # Sockets lie below Ray's folder and their paths are short.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as ray:
        work = Path(tempfile.mkdtemp(prefix="cluster-", dir=folder))
        write_shards(records(64, pixels=32), str(work / "faces"), samples_per_shard=16)
        env = {name: value for name, value in os.environ.items() if not name.startswith(_OUTSIDE)} | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "DS_ACCELERATOR": "cpu",
            "XDG_CACHE_HOME": str(work / "cache"),
            "RAY_TMPDIR": ray,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        yield Site(work, str(work / "faces"), env)


def torchrun(config: Path, size: Size) -> list[str]:
    return ["torchrun", "--nproc_per_node", str(size.ranks), "--master_port", free_port(), *RUN, str(config)]


def on_ray(config: Path, _size: Size) -> list[str]:
    return ["python", *RUN, str(config)]


WAYS: Mapping[str, Callable[[Path, Size], list[str]]] = {"torchrun": torchrun, "ray": on_ray}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Job:
    """A command that runs."""

    process: subprocess.Popen[bytes]
    log: Path
    began: float  # Seconds of the epoch.

    def wait(self) -> None:
        """Waits until the job has ended successfully.

        Raises:
            JobError: If it did not, or not in time.
        """
        try:
            code = self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            raise JobError(f"{'hangs' if code is None else f'exit {code}'}: {self._end()}")

    def wait_for(self, what: str, ready: Callable[[], bool], *, pause_s: float = 0.2) -> None:
        """Waits until `ready` returns true.

        Raises:
            JobError: If the job ends before, or it takes too long.
        """
        deadline = time.monotonic() + LIMIT_S
        while not ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise JobError(f"no {what}: {self._end()}")
            time.sleep(pause_s)

    def _end(self) -> str:
        return " / ".join(self.log.read_text(errors="replace").strip().splitlines()[-5:])[-1500:]

    def family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []


@contextmanager
def started(command: Sequence[str], place: Site, folder: Path) -> Generator[Job]:
    """A command of this environment, its output in a file; it and its children are gone afterwards."""
    log = place.folder / f"{time.monotonic_ns()}.log"
    program = str(BIN / command[0]) if (BIN / command[0]).exists() else command[0]
    with log.open("wb") as out:
        began = time.time()
        process = subprocess.Popen(
            [program, *command[1:]], cwd=folder, env=dict(place.env), stdout=out, stderr=subprocess.STDOUT
        )
        job = Job(process, log, began)
        try:
            yield job
        finally:
            _kill(job)


def _kill(job: Job) -> None:
    members = job.family()
    if job.process.poll() is None:
        job.process.kill()
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    job.process.wait(20)
    psutil.wait_procs(members, timeout=20)
