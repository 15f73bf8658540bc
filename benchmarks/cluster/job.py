"""Starts small training runs as a user starts them, and reads from MLflow when each step was logged.

`site` prepares a folder, a dataset and environment variables for the runs. The variables ensure that a run does not
find a job or cluster that others have started. `started` runs a command with these variables. At the end it kills the
command with all of its descendants.
"""

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
VOCABULARY, LENGTH, PIXELS, PATCH = 300, 16, 32, 8
# Variables of an outer job or cluster, which the started runs must not see.
_OUTSIDE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "RAY_", "SLURM_", "TORCHELASTIC_")


class JobError(Exception):
    """A job failed or hangs, or cannot be measured.

    If a method of `RunningJob` raises the error, the message contains the last lines of the job's output.
    """


@dataclass(frozen=True, slots=True)
class RunSize:
    """The size of a run. Both towers have the same `width` and `depth`."""

    steps: int
    ranks: int = 2
    global_batch: int = 32
    width: int = 64
    depth: int = 2


@dataclass(frozen=True, slots=True)
class Site:
    """The folder, the dataset and the environment variables that all started runs share.

    Attributes:
        folder: The folder in which each run has a folder of its own.
        faces: The dataset of all runs.
        env: Environment variables of every run. With them a run cannot find a job or cluster that others have started.
    """

    folder: Path
    faces: str
    env: Mapping[str, str]

    @property
    def tracking(self) -> str:
        """The URI of MLflow's database, which all runs share."""
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def config(self, name: str, size: RunSize, *, every_steps: int = 1, **sections: Any) -> Path:
        """Makes a new folder for a run, writes the config of the run to `cfg.yaml` there, and returns the file's path.

        Every `every_steps`-th step is logged. `sections` replace whole sections of the usual config.
        """
        path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder)) / "cfg.yaml"
        path.write_text(yaml.safe_dump(_tree(name, size, self, every_steps) | sections))
        return path

    def logged(self, config: Path) -> list[tuple[int, float]]:
        """Returns each logged step of a run, with the time at which rank 0 logged it, in seconds since 1970."""
        return [(point.step, point.timestamp / 1000) for point in self.history(config, "loss")]

    def history(self, config: Path, name: str) -> list[Metric]:
        """Returns the points of the metric `name` in the order of their steps.

        The list is empty before rank 0 has created the MLflow run.
        """
        try:
            run_id = json.loads((config.parent / "run" / "run.json").read_text())["run_id"]
        except (FileNotFoundError, ValueError):
            return []
        return sorted(MlflowClient(self.tracking).get_metric_history(run_id, name), key=lambda point: point.step)


def _tree(name: str, size: RunSize, site: Site, every_steps: int) -> dict[str, Any]:
    """Returns the config of a run as nested dictionaries."""
    return {
        "name": name,
        "url": "run",
        "steps": size.steps,
        "global_batch": size.global_batch,
        "data": {"url": site.faces, "workers": 0},
        "model": model_section(size.width, size.depth, embedding=64, summary_length=24),
        "optimizer": {"warmup_steps": 2},
        "cluster": {"ranks": size.ranks, "device": "cpu", "threads_per_rank": 1, "timeout_s": 60},
        "checkpoint": {"every_steps": size.steps},
        "tracking": {"uri": site.tracking, "artifacts": "artifacts", "every_steps": every_steps},
    }


def model_section(width: int, depth: int, *, embedding: int, summary_length: int) -> dict[str, Any]:
    """Returns the section `model` of a config whose towers both have this width and depth."""
    return {
        "embedding": embedding,
        "image": {
            "name": "vit_tiny_patch16_224",
            "pixels": PIXELS,
            "options": {"patch_size": PATCH, "embed_dim": width, "depth": depth, "num_heads": 2},
        },
        "text": {
            "architecture": {"width": width, "layers": depth, "heads": 2},
            "vocabulary": VOCABULARY,
            "lengths": {"global": LENGTH, "local": LENGTH, "summary": summary_length},
        },
    }


@contextmanager
def site(folder: Path) -> Generator[Site]:
    """Makes a new folder below `folder` with a dataset for the runs, and yields a `Site` that describes them.

    When the `with` block ends, the sockets and logs of Ray are deleted. The new folder is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Ray puts its sockets into this folder, and the path of a socket must be short.
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


def torchrun(config: Path, size: RunSize) -> list[str]:
    """Returns the command that starts a run by torchrun."""
    return ["torchrun", "--nproc_per_node", str(size.ranks), "--master_port", free_port(), *RUN, str(config)]


def on_ray(config: Path, _size: RunSize) -> list[str]:
    """Returns the command that starts a run on a Ray cluster of its own."""
    return ["python", *RUN, str(config)]


WAYS: Mapping[str, Callable[[Path, RunSize], list[str]]] = {"torchrun": torchrun, "ray": on_ray}


def free_port() -> str:
    """Returns a TCP port that no process of this machine uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A command that was started.

    Attributes:
        process: The process of the command.
        log: The file that contains the output.
        began: The time of the start, in seconds since 1970.
    """

    process: subprocess.Popen[bytes]
    log: Path
    began: float

    def wait(self) -> None:
        """Waits until the job has ended with status 0.

        Raises:
            JobError: If the job ends with another status, or does not end within LIMIT_S.
        """
        try:
            code = self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            raise JobError(f"{'hangs' if code is None else f'exit {code}'}: {self._end()}")

    def wait_for(self, what: str, ready: Callable[[], bool], *, pause_s: float = 0.2) -> None:
        """Waits until `ready` returns true; `what` is the awaited event in the message of an error.

        Raises:
            JobError: If the job ends first, or `ready` stays false for LIMIT_S.
        """
        deadline = time.monotonic() + LIMIT_S
        while not ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise JobError(f"no {what}: {self._end()}")
            time.sleep(pause_s)

    def _end(self) -> str:
        """Returns the last lines of the output."""
        return " / ".join(self.log.read_text(errors="replace").strip().splitlines()[-5:])[-1500:]

    def family(self) -> list[psutil.Process]:
        """Returns all descendants of the process; none if it has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []


@contextmanager
def started(command: Sequence[str], place: Site, folder: Path) -> Generator[RunningJob]:
    """Starts a command in `folder`, and kills it with all its descendants when the block ends.

    The command has the environment variables of `place`, and its output is written to a file in the folder of `place`.
    A program of this Python environment is preferred to one of the same name on PATH.
    """
    log = place.folder / f"{time.monotonic_ns()}.log"
    program = str(BIN / command[0]) if (BIN / command[0]).exists() else command[0]
    with log.open("wb") as out:
        began = time.time()
        process = subprocess.Popen(
            [program, *command[1:]], cwd=folder, env=dict(place.env), stdout=out, stderr=subprocess.STDOUT
        )
        job = RunningJob(process, log, began)
        try:
            yield job
        finally:
            _kill(job)


def _kill(job: RunningJob) -> None:
    """Kills a job and its descendants, and waits for their end."""
    members = job.family()
    if job.process.poll() is None:
        job.process.kill()
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    job.process.wait(20)
    psutil.wait_procs(members, timeout=20)
