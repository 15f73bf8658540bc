"""Starts, steps, saves and restarts of a small run, from outside: by the command line and by what MLflow has."""

import http.client
import itertools
import statistics
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured, ratios, spread
from benchmarks.harness.rounds import complete, in_rounds

from . import floor
from .job import BIN, RUN, WAYS, Job, JobError, Site, Size, free_port, started

START, OVERHEAD, STALL, RECOVER = "start to first step", "step time", "stall of a save", "kill to next step"
PACKAGES = ("torch", "ray", "deepspeed", "mlflow")
HELD = "time/saving_s_slowest"
WARM_UP, BLOCK = 10, 10
RANK_WORDS = ("RayTrainWorker", RUN[1])  # A rank by its command line: Ray names its workers.


def start(place: Site, size: Size, rounds: int, about: Occasion) -> Iterator[Measurement]:
    """Measures the seconds from the command to the first step: a job submitted to a running cluster, and torchrun."""
    numbers = {who: itertools.count() for who in ("ray job", "torchrun")}

    def started_s(who: str, address: str) -> float:
        config = place.config(f"start-{who.split(maxsplit=1)[0]}-{next(numbers[who])}", size)
        command = _submitted(config, address) if who == "ray job" else WAYS[who](config, size)
        with started(command, place, config.parent) as job:
            job.wait()
        return place.logged(config)[0][1] - job.began

    with _head(place) as address:
        found = complete(in_rounds({who: partial(started_s, who, address) for who in numbers}, rounds=rounds))
    for who, readings in found.items():
        yield measured_line(about, START, who, size, readings)


def overhead(place: Site, size: Size, rounds: int, about: Occasion) -> Iterator[Measurement]:
    """Measures the seconds of a step in steady state under Ray and under torchrun, in turn, with default logging.

    And the cores that the job's other processes take meanwhile, which a noisy machine does not hide.
    """
    numbers = {who: itertools.count() for who in ("torchrun", "ray")}

    def step_and_cores(who: str) -> tuple[float, float]:
        config = place.config(f"overhead-{who}-{next(numbers[who])}", size, every_steps=BLOCK)
        with started(WAYS[who](config, size), place, config.parent) as job:
            cores = _cores_beside(job, place, config, size)
            job.wait()
        return steady_s(place.logged(config)), cores

    taken = complete(in_rounds({who: partial(step_and_cores, who) for who in numbers}, rounds=rounds))
    steps = {who: [step for step, _ in each] for who, each in taken.items()}
    for who, each in taken.items():
        over = {"over torchrun": ratios(steps[who], steps["torchrun"])} if who == "ray" else None
        more = {"cores_beside_ranks": spread([cores for _, cores in each])}
        yield measured_line(about, OVERHEAD, who, size, steps[who], ratios=over, more=more)


def _cores_beside(job: Job, place: Site, config: Path, size: Size) -> float:
    """Returns the CPU seconds of the job's processes other than its ranks, in a second of training."""
    job.wait_for("steady state", lambda: len(place.logged(config)) >= 2, pause_s=2)
    began, before = time.time(), _cpu_s(job)
    job.wait_for("last steps", lambda: len(place.logged(config)) >= size.steps // BLOCK - 1, pause_s=2)
    seconds, after = time.time() - began, _cpu_s(job)
    return sum(after[pid] - before[pid] for pid in before.keys() & after.keys()) / seconds


def _cpu_s(job: Job) -> dict[int, float]:
    """Returns the CPU seconds of each process of the job that is not a rank."""
    family = [psutil.Process(job.process.pid), *job.family()]
    ranks = set(ranks_of(family))
    found: dict[int, float] = {}
    for each in family:
        with suppress(psutil.NoSuchProcess):
            found[each.pid] = sum(each.cpu_times()[:2])
    return {pid: seconds for pid, seconds in found.items() if pid not in {rank.pid for rank in ranks}}


def stall(place: Site, size: Size, rounds: int, about: Occasion) -> Iterator[Measurement]:
    """Measures how long a save delays training, and how much longer steps during a save are, as shares of a step.

    The second holds the first, and what the saving thread takes from the cores that train.
    """
    held: list[float] = []
    longer: list[float] = []
    usual: list[float] = []
    for number in range(rounds):
        config = place.config(f"stall-{number}", size, checkpoint={"every_steps": BLOCK})
        with started(WAYS["torchrun"](config, size), place, config.parent) as job:
            job.wait()
        saving, others = split_by_saves(place.logged(config), every_steps=BLOCK)
        usual.append(statistics.median(others))
        longer.append(statistics.median(saving) - usual[-1])
        held.append(statistics.median(value for value in place.metric(config, HELD) if value))
    for who, readings in (("training held up", held), ("step and save beside it", longer)):
        share = {"share of a step": ratios(readings, usual)}
        yield measured_line(about, STALL, who, size, readings, ratios=share, more={"step_s": spread(usual)})


def recover(place: Site, size: Size, rounds: int, about: Occasion, command: Sequence[str]) -> Iterator[Measurement]:
    """Measures the seconds from the death of a rank to the next new step, and their lower bound.

    `command` starts the job, `{config}` and `{port}` filled in; by default it is Ray's way.
    """
    readings: list[float] = []
    last = place.config("none", size)
    for number in range(rounds):
        last = place.config(f"recover-{number}", size, checkpoint={"every_steps": BLOCK})
        words = [word.format(config=last, port=free_port()) for word in command] or WAYS["ray"](last, size)
        with started(words, place, last.parent) as job:
            readings.append(_killed_s(job, place, last))
            job.wait()
    parts = floor.parts(last, place, size)
    launcher = " ".join(takewhile(lambda word: word == "--" or not word.startswith("-"), command)) or "ray"
    yield measured_line(about, RECOVER, launcher, size, readings, more=parts)


def _killed_s(job: Job, place: Site, config: Path) -> float:
    """Kills one rank once there is a checkpoint; returns the seconds until the next new step."""
    job.wait_for("checkpoint", lambda: any((config.parent / "run" / "checkpoints").glob("*/manifest.json")))
    rank = ranks_of(job.family())[-1]
    rank.kill()
    killed = time.time()
    # Rows on their way when the rank died may still arrive.
    seen = [step for step, at in place.logged(config) if at <= killed]
    done = max(seen, default=0)
    job.wait_for("step after the kill", lambda: any(step > done for step, _ in place.logged(config)))
    return next(at for _, at in place.logged(config) if at > killed) - killed


def ranks_of(family: Sequence[psutil.Process]) -> list[psutil.Process]:
    """The processes that are ranks: leaves of the family by the words of their command lines.

    Raises:
        JobError: If there are none.
    """
    found = [each for each in family if any(word in _command(each) for word in RANK_WORDS)]
    parents = {each.ppid() for each in found}
    leaves = [each for each in found if each.pid not in parents]
    if not leaves:
        raise JobError("no process of the job looks like a rank.")
    return leaves


def _command(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):  # Zombies too.
        return " ".join(process.cmdline())
    return ""


def steady_s(logged: Sequence[tuple[int, float]]) -> float:
    """Returns the median seconds of a step between rows, after the first steps."""
    rows = [(step, at) for step, at in logged if step >= WARM_UP]
    if len(rows) < 2:
        raise JobError(f"{len(logged)} rows are too few: give at least {WARM_UP + BLOCK} steps.")
    return statistics.median((late - early) / (last - first) for (first, early), (last, late) in pairwise(rows))


def split_by_saves(logged: Sequence[tuple[int, float]], *, every_steps: int) -> tuple[list[float], list[float]]:
    """Returns the seconds from the row of a step to the next: of steps that save after their row, and of others."""
    saving: list[float] = []
    others: list[float] = []
    for (step, early), (_, late) in zip(logged[WARM_UP - 1 :], logged[WARM_UP:], strict=False):
        (others if step % every_steps else saving).append(late - early)
    if not saving or not others:
        raise JobError(f"{len(logged)} steps hold no save after the first {WARM_UP}: give more steps.")
    return saving, others


@contextmanager
def _head(place: Site) -> Generator[str]:
    """A Ray cluster of one node, and the address of its jobs."""
    port = free_port()
    command = ["ray", "start", "--head", "--block", "--port", free_port(), "--dashboard-host", "127.0.0.1"]
    command += ["--dashboard-port", port, "--dashboard-agent-listen-port", free_port()]
    command += ["--ray-client-server-port", free_port(), "--num-cpus", "2", "--object-store-memory", "150000000"]
    command += ["--temp-dir", place.env["RAY_TMPDIR"], "--disable-usage-stats"]
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        asked = http.client.HTTPConnection("127.0.0.1", int(port), timeout=5)
        try:
            asked.request("GET", "/api/jobs/")
            return asked.getresponse().status in {200, 401}  # 401: it is there, and asks for the token.
        except (OSError, http.client.HTTPException):
            return False
        finally:
            asked.close()

    with started(command, place, place.folder) as job:
        job.wait_for("dashboard", answers)
        yield address


def _submitted(config: Path, address: str) -> list[str]:
    # A job runs in the folder where the head was started, so its paths are absolute.
    run = (str(BIN / "python"), *RUN, str(config), f"url={config.parent / 'run'}")
    return ["ray", "job", "submit", "--address", address, "--", *run]


def measured_line(
    about: Occasion, what: str, who: str, size: Size, seconds: Sequence[float], **rest: Any
) -> Measurement:
    return measured(
        about,
        seconds,
        what=what,
        contender=who,
        setting={"ranks": size.ranks, "steps": size.steps, "width": size.width, "depth": size.depth},
        unit="s",
        versions=versions(PACKAGES),
        **rest,
    )
