"""Measures many successive restarts of one job, on a Ray cluster of its own.

If the files or processes that remain after a restart slow down the next one, the times grow from restart to restart.
The ranks of this job only wait, so a restart imports and builds nothing for training. `measured.recover` measures
restarts of a training run, which imports its packages and builds the model.
"""

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
from benchmarks.harness.suite import say

from .job import LIMIT_S, JobError

WHAT = "kill to all ranks in the next attempt"
POLL_S = 0.1
# The file whose existence ends the job, in the folder where the ranks report.
DONE = "done"


@dataclass
class Progress:
    """Tells the supervisor the state of the measured job (`SupervisedRun`), and shows nothing (`ProgressDisplay`).

    `progress` returns the number of restarts instead of a step. The supervisor treats each restart as progress, and
    starts to count failures from 0 again. So the limit on failures in a row does not end the job.

    Attributes:
        folder: The folder in which the ranks report that they run.
        restarts: The seconds of each restart.
        loads: The load average after each restart.
    """

    folder: Path
    restarts: list[float] = field(default_factory=list[float])
    loads: list[float] = field(default_factory=list[float])

    def done(self) -> bool:
        return (self.folder / DONE).exists()

    def progress(self) -> int:
        return len(self.restarts)

    def failures(self) -> Sequence[Cause]:
        return ()

    def asked_to_stop(self) -> bool:
        return False

    def cause_of(self, rank: int, error: Exception) -> Cause:
        return Cause(type(error).__name__, str(error), rank)

    def say(self, line: str) -> None:
        pass

    def show_progress(self, step: int, steps: int, note: str) -> None:
        pass


def measure(ranks: int, rounds: int, about: Occasion) -> Iterator[Measurement]:
    """Kills a rank `rounds` times, and measures the seconds from each kill until all ranks run again.

    The function of the ranks only waits. `recover` measures the restart of a training run with all its imports.

    Raises:
        JobError: If a restart takes longer than `LIMIT_S`. The record of the earlier restarts is yielded first.
    """
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ranks cannot import this package.
    with TemporaryDirectory(prefix="restarts-") as name:
        progress = Progress(Path(name))
        killer = threading.Thread(target=_kill, args=(progress, ranks, rounds), daemon=True)
        job = Job(
            partial(_wait, Path(name)),
            ResourceRequest(ranks, 1, ranks, on_gpu=False),
            RestartBudget(rounds),
            60.0,
            timeout_s=60,
        )
        with connected({}) as cluster:
            killer.start()
            story = supervise(job, cluster, progress, progress)
    if progress.restarts:
        more = {
            "max_s": max(progress.restarts),
            "attempts": len(story.attempts),
            "restarts_s": [round(each, 2) for each in progress.restarts],
            "loads": progress.loads,
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


def _wait(folder: Path, runtime: RayRuntime) -> None:
    """Runs on each rank: reports the start and the process id in the name of a file, and waits for the job's end."""
    (folder / f"rank-{runtime.rank_info.rank}-{time.time_ns()}-{os.getpid()}").touch()
    while not (folder / DONE).exists():
        time.sleep(POLL_S)


def started_since(folder: Path, second: float) -> dict[int, tuple[float, int]]:
    """Returns the newest start of each rank that started after `second`: its time and process id, by rank.

    Times are in seconds since 1970.
    """
    found: dict[int, tuple[float, int]] = {}
    for path in folder.glob("rank-*"):
        _, rank, stamp, pid = path.name.split("-")
        if int(stamp) / 1e9 > second:
            found[int(rank)] = max(found.get(int(rank), (0.0, 0)), (int(stamp) / 1e9, int(pid)))
    return found


def _kill(progress: Progress, ranks: int, rounds: int) -> None:
    """Kills a random rank `rounds` times, each time after all ranks have started, and then ends the job.

    If a restart takes longer than `LIMIT_S`, ends the job without further kills.
    """
    killed: float = 0.0
    for number in range(rounds + 1):
        deadline = time.monotonic() + LIMIT_S
        while len(found := started_since(progress.folder, killed)) < ranks and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if len(found) < ranks:
            break
        if number:
            progress.restarts.append(max(at for at, _ in found.values()) - killed)
            progress.loads.append(round(os.getloadavg()[0], 1))
            say(json.dumps({"restart": number, "s": round(progress.restarts[-1], 2), "load": progress.loads[-1]}))
        if number < rounds:
            # The kill falls at any time between two checks of Ray Train.
            time.sleep(random.uniform(0.0, 1.0))
            killed = time.time()
            _, pid = random.choice([*found.values()])
            os.kill(pid, signal.SIGKILL)
    (progress.folder / DONE).touch()
