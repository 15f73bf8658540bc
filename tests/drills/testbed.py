"""Provides what all drills share: hosts, a real S3 and MLflow outside of them, a dataset, tiny runs, their curves."""

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from emocap_shards.errors import NotFound
from emocap_shards.store import Store, open_store
from emocap_shards.writer import write_shards
from hosts import Hosts, Process
from tiny_run import tiny
from tracking_server import MlflowServer

from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.checkpoint.manifest import committed
from emocap_pretrain.run_folder import attempts
from emocap_pretrain.run_folder.documents import AttemptDocument
from launch.local_s3 import BUCKET, LocalS3

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
FAULTS = Path(__file__).parent / "faults"
PACKAGES = ("kernels", "shards", "cluster")
HOSTS = 3
STEPS, BATCH, SAMPLES = 40, 12, 55  # The last step of an epoch has 7 samples, uneven over 3 ranks like the others.
EVERY_STEPS = 5
ELASTIC = {"ranks": "auto", "patience_s": 0}  # One rank a host; a number would share the CPUs of those that are left.
NOISE = 1e-5  # Of sums in another order, relative.
STOPPED = 75  # Exit code of what was told to end and has saved.
LIMIT_S = 300.0
Curve = list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Run:
    """Describes a run of a drill. A launcher starts it."""

    name: str
    config: Path
    url: str
    mlflow: MlflowServer

    @property
    def store(self) -> Store:
        return open_store(self.url)

    @property
    def run_id(self) -> str | None:
        """Returns MLflow's id of the run; None before it has begun."""
        try:
            return str(json.loads(self.store.read("run.json"))["run_id"])
        except NotFound:
            return None

    @property
    def status(self) -> str:
        return str(self.mlflow.run(str(self.run_id))["info"]["status"])

    @property
    def step(self) -> int:
        """Returns the newest step that MLflow has received."""
        return max((step for step, _ in self.curve()), default=0)

    @property
    def saved(self) -> int:
        """Returns the step of the newest checkpoint; 0 if there is none."""
        return max((each.step for each in committed(self.store)), default=0)

    @property
    def state(self) -> dict[str, Any]:
        """Returns the state of the loop in the newest checkpoint: cursor, ranks and the rest."""
        return committed(self.store)[0].state

    def curve(self) -> Curve:
        """Returns step and loss of every point that MLflow has; a step that was logged twice occurs twice."""
        return self.mlflow.points(self.run_id, "loss") if self.run_id else []

    def attempts(self) -> list[AttemptDocument]:
        """Returns the status that each attempt of the run has written."""
        found = (attempts.launched(self.store, number) for number in attempts.numbers(self.store))
        return [each for each in found if isinstance(each, AttemptDocument)]


@dataclass(frozen=True, slots=True)
class Unbroken:
    """Holds the curve and the last cursor of an undisturbed run on all hosts."""

    curve: Curve
    cursor: Any

    @classmethod
    def of(cls, run: Run) -> "Unbroken":
        curve = run.curve()
        assert [step for step, _ in curve] == list(range(1, STEPS + 1))
        assert curve[-1][1] < curve[0][1]
        return cls(curve, run.state["cursor"])

    def check(self, run: Run, *, same_ranks: bool = True) -> None:
        """Asserts that a run has the same curve as the unbroken one, each step once, and has read the same samples.

        Args:
            run: A finished run.
            same_ranks: Whether every attempt had as many ranks as the undisturbed run. If so, the losses must be equal
                to the bit.
        """
        curve = run.curve()
        assert [step for step, _ in curve] == [step for step, _ in self.curve]
        if same_ranks:
            assert curve == self.curve
        else:
            assert [loss for _, loss in curve] == pytest.approx([loss for _, loss in self.curve], rel=NOISE)
        assert run.status == "FINISHED"
        assert run.saved == STEPS
        assert run.state["cursor"] == self.cursor


@dataclass(frozen=True, slots=True)
class Testbed:
    __test__ = False

    folder: Path
    hosts: Hosts
    s3: LocalS3
    mlflow: MlflowServer
    env: dict[str, str]

    def new_run(
        self, name: str, *, fault: Mapping[str, Any] | None = None, cluster: Mapping[str, Any] | None = None
    ) -> Run:
        """Writes the config of a new run, and the fault that its ranks will have.

        Args:
            name: Name of the run.
            fault: The fault, as faults/sitecustomize.py reads it. In any case steps take longer, by 0.1 s if it
                does not say otherwise, so that there is time to interfere.
            cluster: Settings of the section `cluster`.
        """
        folder = self.folder / name
        folder.mkdir()
        url = f"s3://{BUCKET}/runs/{name}"
        (folder / "cfg.yaml").write_text(yaml.safe_dump(self._config(name, url, cluster or {})))
        (self.folder / "fault.json").write_text(json.dumps({"name": name, "pace_s": 0.1, **(fault or {})}))
        return Run(name, folder / "cfg.yaml", url, self.mlflow)

    def empty(self) -> None:
        """Switches all hosts off and on again."""
        for number in self.hosts.numbers:
            if self.hosts.is_on(number):
                self.hosts.power_off(number)
            self.hosts.power_on(number)

    def _config(self, name: str, url: str, cluster: Mapping[str, Any]) -> dict[str, Any]:
        data = f"s3://{BUCKET}/faces"
        # Without a cache every step reads from S3.
        settings = tiny(
            url,
            data,
            self.mlflow.uri,
            None,
            steps=STEPS,
            ranks=HOSTS,
            name=name,
            global_batch=BATCH,
            cluster={"timeout_s": 45, "silence_s": 15, **cluster},
            checkpoint={"every_steps": EVERY_STEPS},
            optimizer={"warmup_steps": 2},
        )
        settings["data"] |= {"shuffle_window": 24, "cache_gb": 0}
        return settings


@contextmanager
def laid_out(folder: Path) -> Generator[Testbed]:
    """Starts hosts, S3 and MLflow, and uploads a dataset; this process gets the credentials of the store too."""
    with ExitStack() as stack:
        hosts = stack.enter_context(Hosts(HOSTS, folder))
        mlflow = stack.enter_context(MlflowServer(folder / "mlflow", hosts.outside))
        s3 = stack.enter_context(LocalS3(folder / "s3", host=hosts.outside))
        monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in s3.environment().items():
            monkeypatch.setenv(name, value)
        write_shards(records(SAMPLES, pixels=32), f"s3://{BUCKET}/faces", samples_per_shard=7)
        mlflow.wait()
        yield Testbed(folder, hosts, s3, mlflow, _environment(folder, s3))


def _environment(folder: Path, s3: LocalS3) -> dict[str, str]:
    """Returns the environment of every process on the hosts. It inherits nothing from this process's environment."""
    return {
        "PATH": f"{folder}/bin:{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        # This checkout, whichever one the environment was made from.
        "PYTHONPATH": os.pathsep.join(str(path) for path in (FAULTS, ROOT, *(ROOT / name for name in PACKAGES))),
        "PYTHONUNBUFFERED": "1",
        "MPLCONFIGDIR": str(folder / "matplotlib"),
        "EMOCAP_DRILL": str(folder),
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": "eth0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        **s3.environment(),
    }


def until(what: str, ready: Callable[[], object], limit_s: float = LIMIT_S, hint: Callable[[], str] = str) -> float:
    """Waits until `ready` returns True, and returns the seconds of waiting. A failure shows the text from `hint`."""
    began = time.monotonic()
    while not ready():
        assert time.monotonic() - began < limit_s, f"no {what} in {limit_s:g} s\n{hint()}"
        time.sleep(0.2)
    return time.monotonic() - began


def shown(processes: list[Process]) -> str:
    """Returns the exit codes and the end of the output of some processes."""
    return "\n".join(f"--- {process.log.name}: {process.entry.poll()}\n{process.text[-3000:]}" for process in processes)
