"""Starts hosts, each system in a process of its own Python, and hands them tasks."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.harness.machine import REPOSITORY

from .hosts.task import Pass, Task

LIMIT_S = 240.0


class HostError(Exception):
    """A system that could not do its task; the message says where its log is."""


@dataclass(frozen=True, slots=True)
class Pythons:
    """Holds the Python interpreters of this project and of the peers, and the log for their output."""

    ours: Path
    peers: Path
    log: Path

    @classmethod
    def of(cls, peer_environment: Path, log: Path) -> "Pythons":
        log.parent.mkdir(parents=True, exist_ok=True)
        return cls(Path(sys.executable), peer_environment / "bin" / "python", log)

    @property
    def has_peers(self) -> bool:
        return self.peers.exists()


@dataclass(frozen=True, slots=True)
class System:
    """Describes a system that reads a dataset: its name in the records, its module in `hosts`, its format's folder."""

    name: str
    module: str
    format: str
    packages: tuple[str, ...]
    is_peer: bool = True

    def command(self, pythons: Pythons, words: Sequence[str] = ()) -> list[str]:
        return python_command(pythons, self.module, words, of_peers=self.is_peer)


OURS = System("emocap_shards", "ours", "tars", ("torch", "numpy", "simplejpeg"), is_peer=False)
BARE = System("libjpeg-turbo alone", "bare", "tars", ("simplejpeg", "numpy"), is_peer=False)
WEB_DATASET = System("webdataset", "web_dataset", "tars", ("webdataset", "torch", "numpy", "simplejpeg"))
MOSAIC = System("mosaicml-streaming", "mosaic", "mds", ("mosaicml-streaming", "torch", "numpy", "simplejpeg"))
LIT_DATA = System("litdata", "lit_data", "lit", ("litdata", "torch", "numpy", "simplejpeg"))
PEERS = (WEB_DATASET, MOSAIC, LIT_DATA)


def systems(pythons: Pythons) -> tuple[System, ...]:
    """Returns the systems: ours, and the peers if their environment exists."""
    return (OURS, *PEERS) if pythons.has_peers else (OURS,)


def python_command(pythons: Pythons, module: str, words: Sequence[str], *, of_peers: bool) -> list[str]:
    return [str(pythons.peers if of_peers else pythons.ours), "-m", f"benchmarks.shards.hosts.{module}", *words]


def versions_of(system: System, pythons: Pythons) -> dict[str, str | None]:
    """Returns the versions of the Python that runs a system, and of its packages there."""
    return json.loads(call(python_command(pythons, "versions", system.packages, of_peers=system.is_peer), pythons))


def call(
    command: Sequence[str], pythons: Pythons, environment: Mapping[str, str] | None = None, *, text: str = ""
) -> str:
    """The standard output of a process that runs to its end.

    Raises:
        HostError: If it ends in an error, or not in time.
    """
    with pythons.log.open("a") as log:
        try:
            done = subprocess.run(
                command,
                cwd=REPOSITORY,
                env={**os.environ, **(environment or {})},
                input=text,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                timeout=LIMIT_S,
                check=True,
            )
        except subprocess.SubprocessError as error:
            raise HostError(f"{command[2]} failed ({type(error).__name__}); read {pythons.log}") from error
    return done.stdout


def once(system: System, task: Task, pythons: Pythons, environment: Mapping[str, str]) -> tuple[float, Pass]:
    """A task in a fresh process: `time.monotonic()` when it was started, and what it took."""
    text = json.dumps(asdict(task))  # by standard input: the shards of webdataset are too many words for a command line
    begin = time.monotonic()
    return begin, Pass(**json.loads(call(system.command(pythons, ["once"]), pythons, environment, text=text)))


class Host:
    """A running system; a context manager. Each task is done by a fresh fork of it."""

    def __init__(self, system: System, pythons: Pythons, environment: Mapping[str, str]) -> None:
        self.system = system
        self._log = pythons.log
        with pythons.log.open("a") as log:
            self._process = subprocess.Popen(
                system.command(pythons),
                cwd=REPOSITORY,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, task: Task) -> Pass:
        """Returns what the task took.

        Raises:
            HostError: If it failed, or was not done in time.
        """
        answer = self._answer(json.dumps(asdict(task)))
        if "error" in answer:
            raise HostError(f"{self.system.name}: {answer['error']}: {self._log}")
        return Pass(**answer)

    def _answer(self, text: str) -> dict[str, Any]:
        into, out = self._process.stdin, self._process.stdout
        assert into is not None, "it was opened with a pipe"
        assert out is not None, "it was opened with a pipe"
        try:
            into.write(text + "\n")
            into.flush()
        except BrokenPipeError:
            return {"error": "its process ended; the reason is in the log"}
        if not select.select([out], [], [], LIMIT_S)[0]:
            self._process.kill()
            return {"error": f"no answer within {LIMIT_S:.0f} s; the log may say more"}
        line = out.readline()
        return json.loads(line) if line else {"error": "its process ended; the reason is in the log"}
