"""Measures how many faces per second the client captions, beside the limit of a server with a fixed latency."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from os import getloadavg
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness.machine import REPOSITORY, Occasion, versions
from benchmarks.harness.record import Measurement, grouped, measured, spread
from benchmarks.harness.rounds import complete, in_rounds

from .client import ClientReading
from .server import served

WHAT = "captioned faces per second"
LIMIT = "over the limit"


@dataclass(frozen=True, slots=True)
class ThroughputPlan:
    """Holds the size of a reading. The limit of the server is `concurrency / latency_s` faces per second."""

    faces: int
    concurrency: int
    latency_s: float
    pieces: int
    pixels: int

    @property
    def limit(self) -> float:
        return self.concurrency / self.latency_s


@dataclass(frozen=True, slots=True)
class _LoadedReading:
    client: ClientReading
    load: float


def measure(plan: ThroughputPlan, rounds: int, occasion: Occasion) -> Iterator[Measurement]:
    """Yields the measurement of streamed replies and that of whole ones."""
    ways: dict[str, Callable[[], _LoadedReading]] = {
        "streamed": lambda: _read(plan, whole=False),
        "whole": lambda: _read(plan, whole=True),
    }
    for way, readings in complete(in_rounds(ways, rounds=rounds)).items():
        yield _measurement(plan, way, readings, occasion)


def _read(plan: ThroughputPlan, *, whole: bool) -> _LoadedReading:
    with TemporaryDirectory() as folder, served(Path(folder, "log"), plan.latency_s, plan.pieces) as url:
        words = ["--faces", plan.faces, "--concurrency", plan.concurrency, "--pixels", plan.pixels]
        client = run_client(url, Path(folder, "out"), [*words, *(["--whole"] if whole else [])])
        return _LoadedReading(client, getloadavg()[0])


def run_client(url: str, out: Path, words: Sequence[object]) -> ClientReading:
    """Runs the client in a process of its own, and returns its reading."""
    command = client_command(url, out, words)
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    return ClientReading(**json.loads(done.stdout))


def client_command(url: str, out: Path, words: Sequence[object]) -> list[str]:
    """Returns the command of the client."""
    return [sys.executable, "-m", "benchmarks.captioning.client", url, str(out), *map(str, words)]


def _measurement(plan: ThroughputPlan, way: str, readings: Sequence[_LoadedReading], occasion: Occasion) -> Measurement:
    clients = [each.client for each in readings]
    rates = [each.faces / each.seconds for each in clients]
    after_first = [(each.faces - 1) / each.seconds_after_first for each in clients]
    return measured(
        occasion,
        rates,
        what=WHAT,
        contender=way,
        setting=asdict(plan),
        unit="faces/s",
        ratios={
            LIMIT: [rate / plan.limit for rate in rates],
            "after the first request, over the limit": [rate / plan.limit for rate in after_first],
        },
        more={
            "cpu_ms_per_face": spread([1e3 * each.cpu_seconds / each.faces for each in clients]),
            "load_after": spread([each.load for each in readings]),
        },
        versions=versions(["aiohttp"]),
    )


def markdown(lines: Sequence[Measurement]) -> str:
    """Returns a table with a row for each measurement."""
    head = (
        "| replies | requests at a time | latency | limit, faces/s | faces/s | of the limit | after the first request "
    )
    rows = [head + "| CPU ms per face | load |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for line in (each for group in grouped(lines, lambda each: each.what).values() for each in group):
        setting, ratios = line.setting, line.ratios or {}
        limit = setting["concurrency"] / setting["latency_s"]
        whole, after = (f"{100 * each.median:.1f} %" for each in ratios.values())
        cpu, load = line.spread_of("cpu_ms_per_face"), line.spread_of("load_after")
        rows.append(
            f"| {line.contender} | {setting['concurrency']} | {setting['latency_s']:g} s | {limit:.0f} | "
            f"{line.median:.1f} | {whole} | {after} | {cpu.median:.2f} | {load.median:.1f} |"
        )
    return "\n".join(rows)
