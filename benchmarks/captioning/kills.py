"""Kills the client at random points, and counts the requests that are repeated by the next start."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness.machine import REPOSITORY, Occasion, versions
from benchmarks.harness.record import Measurement, measured
from benchmarks.harness.suite import say
from emocap_pretrain.captioning.journal import open_journal

from .server import asked, served
from .throughput import client_command, run_client

WHAT = "requests repeated after a kill"
_POLL_S = 0.002


@dataclass(frozen=True, slots=True)
class KillPlan:
    """Holds how often a client is killed, and how many requests it makes at a time."""

    kills: int
    concurrency: int
    latency_s: float
    seed: int


@dataclass(frozen=True, slots=True)
class _Killed:
    """Holds what a kill left.

    Attributes:
        received: Number of requests that the server had received.
        stored: The requests whose answers were in the journal.
        under_way: Number of requests that were sent and had no answer in the journal.
    """

    received: int
    stored: frozenset[str]
    under_way: int


def measure(plan: KillPlan, occasion: Occasion) -> Iterator[Measurement]:
    """Kills the client `plan.kills` times in one output, lets it finish, and yields the measurement.

    Raises:
        ValueError: If a stored answer was asked for again, more requests were repeated than were under way, or a face
            has no answer in the end.
    """
    draw = random.Random(plan.seed)
    # Before each kill, the server receives between one request and three for each request at a time.
    points = [draw.randint(1, 3 * plan.concurrency) for _ in range(plan.kills)]
    faces = sum(points) + plan.concurrency
    words = ["--faces", faces, "--concurrency", plan.concurrency, "--pixels", 64]
    with TemporaryDirectory() as folder:
        log, out = Path(folder, "log"), Path(folder, "out")
        with served(log, plan.latency_s, 5) as url:
            killed: list[_Killed] = []
            for point in points:
                killed.append(_kill(client_command(url, out, words), log, out, point))
                say(f"kill {len(killed)}: {len(killed[-1].stored)} stored, {killed[-1].under_way} under way")
            run_client(url, out, words)
            received, done = asked(log), _left(out, len(asked(log)))
    if len(done.stored) != faces or done.under_way:
        raise ValueError(f"{len(done.stored)} of {faces} faces have an answer, and {done.under_way} are under way.")
    yield measured(
        occasion,
        [float(each) for each in _repeated(killed, received, plan)],
        what=WHAT,
        contender="SIGKILL",
        setting={"kills": plan.kills, "concurrency": plan.concurrency, "latency_s": plan.latency_s, "seed": plan.seed},
        unit="requests",
        more={"faces": faces, "requests": len(received), "most_under_way": max(each.under_way for each in killed)},
        versions=versions(["aiohttp"]),
    )


def _kill(command: Sequence[str], log: Path, out: Path, point: int) -> _Killed:
    """Starts the client, and kills it after the server has received `point` requests of it."""
    before = len(asked(log))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=REPOSITORY) as client:
        while len(asked(log)) < before + point:
            if client.poll() is not None:
                raise ValueError(f"the client ended with {client.returncode} before it was killed.")
            time.sleep(_POLL_S)
        os.kill(client.pid, signal.SIGKILL)
    return _left(out, len(asked(log)))


def _left(out: Path, received: int) -> _Killed:
    journal = open_journal(out / "answers.journal")
    try:
        states = journal.states.items()
        stored = frozenset(f"{request}-{state.asks}" for request, state in states if state.asks)
        return _Killed(received, stored, sum(state.is_under_way for _, state in states))
    finally:
        journal.close()


def _repeated(killed: Sequence[_Killed], received: Sequence[str], plan: KillPlan) -> Iterator[int]:
    """Yields for each kill how many of the requests before it were received again before the next kill."""
    ends = [each.received for each in killed[1:]] + [len(received)]
    for each, end in zip(killed, ends, strict=True):
        later = received[each.received : end]
        if again := each.stored & set(later):
            raise ValueError(f"{len(again)} stored answers were asked for again.")
        repeated = len(set(later) & set(received[: each.received]))
        if repeated > each.under_way or each.under_way > plan.concurrency:
            raise ValueError(f"{repeated} requests were repeated, and {each.under_way} were under way.")
        yield repeated


def markdown(lines: Sequence[Measurement]) -> str:
    """Returns a table with a row for each measurement."""
    rows = ["| kills | requests at a time | stored answers asked for again | repeated, median | most under way |"]
    rows += ["| ---: | ---: | ---: | ---: | ---: |"]
    for line in lines:
        most = (line.more or {})["most_under_way"]
        setting = line.setting
        rows.append(f"| {setting['kills']} | {setting['concurrency']} | 0 | {line.median:g} | {most} |")
    return "\n".join(rows)
