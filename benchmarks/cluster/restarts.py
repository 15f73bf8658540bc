"""Measures many restarts in a row in one job on a separate Ray: leftovers of one must not slow the next down."""

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from emocap_cluster.cluster import connected
from emocap_cluster.placement import ResourceRequest
from emocap_cluster.restarts import Cause, RestartBudget
from emocap_cluster.runtime import RayRuntime
from emocap_cluster.supervise import Job, supervise
from ray import cloudpickle

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured

from .job import LIMIT_S, JobError

WHAT = "kill to all ranks in the next attempt"
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Entries:
    """A folder in which each rank of each attempt leaves when it began and its process; a file `done` ends the job."""

    folder: Path

    def enter(self, rank: int) -> None:
        (self.folder / f"rank-{rank}-{time.time_ns()}-{os.getpid()}").touch()

    def since(self, second: float) -> dict[int, tuple[float, int]]:
        """Returns for each rank the second of its newest entry, if that is after `second`, and its process."""
        found: dict[int, tuple[float, int]] = {}
        for path in self.folder.glob("rank-*"):
            _, rank, stamp, pid = path.name.split("-")
            if int(stamp) / 1e9 > second:
                found[int(rank)] = max(found.get(int(rank), (0.0, 0)), (int(stamp) / 1e9, int(pid)))
        return found

    @property
    def done(self) -> Path:
        return self.folder / "done"


@dataclass
class Progress:
    """The job's record: each restart counts as progress, so that the failures are not in a row."""

    entries: Entries
    restarts: list[float] = field(default_factory=list[float])

    def done(self) -> bool:
        return self.entries.done.exists()

    def progress(self) -> int:
        return len(self.restarts)

    def failures(self) -> Sequence[Cause]:
        return ()

    def asked_to_stop(self) -> bool:
        return False

    def cause_of(self, rank: int, error: Exception) -> Cause:
        return Cause(type(error).__name__, str(error), rank)


class Silent:
    """A screen that prints nothing."""

    def say(self, line: str) -> None:
        pass

    def beat(self, step: int, steps: int, note: str) -> None:
        pass


def measure(ranks: int, rounds: int, about: Occasion) -> Iterator[Measurement]:
    """Measures the seconds from SIGKILL of a rank until all ranks have entered their function again, repeatedly.

    The function waits and does nothing else: imports of a training run are in `recover`.

    Raises:
        JobError: If a restart takes longer than `LIMIT_S`; the line of those before it is yielded first.
    """
    loads: list[float] = []
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ranks cannot import this package.
    with TemporaryDirectory(prefix="restarts-") as name:
        entries = Entries(Path(name))
        progress = Progress(entries)
        killer = threading.Thread(target=_kill, args=(entries, progress.restarts, loads, ranks, rounds), daemon=True)
        job = Job(
            partial(_wait, entries),
            ResourceRequest(ranks, 1, ranks, on_gpu=False),
            RestartBudget(rounds),
            60.0,
            timeout_s=60,
        )
        with connected({}) as cluster:
            killer.start()
            story = supervise(job, cluster, progress, Silent())
    if progress.restarts:
        more = {
            "max_s": max(progress.restarts),
            "attempts": len(story.attempts),
            "restarts_s": [round(each, 2) for each in progress.restarts],
            "loads": loads,
        }
        yield measured(
            about,
            progress.restarts,
            what=WHAT,
            contender="ray",
            setting={"ranks": ranks},
            unit="s",
            more=more,
            versions=versions(("torch", "ray")),
        )
    if len(progress.restarts) < rounds:
        raise JobError(f"restart {len(progress.restarts) + 1} of {rounds} took longer than {LIMIT_S:.0f} s.")


def _wait(entries: Entries, runtime: RayRuntime) -> None:
    entries.enter(runtime.rank_info.rank)
    while not entries.done.exists():
        time.sleep(POLL_S)


def _kill(entries: Entries, restarts: list[float], loads: list[float], ranks: int, rounds: int) -> None:
    """Kills one rank after the other; asks the job to end after the last, or if a rank does not come back."""
    killed: float = 0.0
    for number in range(rounds + 1):
        deadline = time.monotonic() + LIMIT_S
        while len(found := entries.since(killed)) < ranks and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if len(found) < ranks:
            break
        if number:
            restarts.append(max(at for at, _ in found.values()) - killed)
            loads.append(round(os.getloadavg()[0], 1))
            facts = {"restart": number, "s": round(restarts[-1], 2), "load": loads[-1]}
            sys.stdout.write(json.dumps(facts) + "\n")
            sys.stdout.flush()
        if number < rounds:
            time.sleep(random.uniform(0.0, 1.0))  # Anywhere between two looks of Ray Train.
            killed = time.time()
            _, pid = random.choice([*found.values()])
            os.kill(pid, signal.SIGKILL)
    entries.done.touch()
