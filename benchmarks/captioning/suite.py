"""Defines the suite of `python benchmarks captioning`: requests to the endpoint of a captioner."""

import argparse
import subprocess
from collections.abc import Iterator

from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement
from benchmarks.harness.suite import Command, Report, Suite, count
from emocap_pretrain.errors import EmocapError

from . import kills, throughput


def _throughput_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--faces", type=count, default=5120, help="faces of a reading (5120)")
    add("--concurrency", type=count, default=256, help="requests at the same time (256)")
    add("--latency-s", type=float, default=2.0, help="seconds until the server answers a request (2)")
    add("--pieces", type=count, default=50, help="events in which it streams an answer (50)")
    add("--pixels", type=count, default=224, help="side of the images (224)")


def _throughput(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    plan = throughput.ThroughputPlan(
        options.faces, options.concurrency, options.latency_s, options.pieces, options.pixels
    )
    return throughput.measure(plan, options.rounds, about)


def _kills_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--kills", type=count, default=50, help="how often the client is killed (50)")
    add("--concurrency", type=count, default=32, help="requests at the same time (32)")
    add("--latency-s", type=float, default=0.05, help="seconds until the server answers a request (0.05)")
    add("--seed", type=int, default=0, help="seed of the points (0)")


def _kills(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    plan = kills.KillPlan(options.kills, options.concurrency, options.latency_s, options.seed)
    return kills.measure(plan, about)


SUITE = Suite(
    name="captioning",
    description="Requests to the endpoint of a captioner.",
    commands={
        "throughput": Command(
            help="captioned faces per second beside the limit of a server with a fixed latency",
            measure=_throughput,
            options=_throughput_options,
            rounds=3,
        ),
        "kills": Command(
            help="requests that are repeated after the client was killed",
            measure=_kills,
            options=_kills_options,
            rounds=None,
        ),
    },
    reports=(
        Report(name="captioning", whats=(throughput.WHAT,), markdown=throughput.markdown),
        Report(name="captioning-kills", whats=(kills.WHAT,), markdown=kills.markdown),
    ),
    page="captioning.md",
    errors=(EmocapError, subprocess.CalledProcessError),
)
