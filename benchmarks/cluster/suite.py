"""Defines `python benchmarks cluster`: forecasts of large jobs; starts, steps, saves and restarts of small ones."""

import argparse
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import gettempdir

from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement
from benchmarks.harness.suite import Command, Report, Suite, count
from emocap_pretrain.errors import EmocapError

from . import job, measured, model, plots, restarts, tables, validate

Measure = Callable[[argparse.Namespace, Occasion], Iterator[Measurement]]
Options = Callable[[argparse.ArgumentParser], None]


def _simulate(_: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    nowhere = model.nowhere(about)
    yield from model.scaling(nowhere)
    yield from model.failing(nowhere)


def _validate(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    yield from validate.measure(validate.CASES, options.rounds, about)


def _restarts(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    yield from restarts.measure(options.ranks, options.rounds, about)


def _recover(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    with job.site(options.work) as place:
        yield from measured.recover(place, _size(options), options.rounds, about, shlex.split(options.by))


def _on_a_site(measure: Callable[[job.Site, job.Size, int, Occasion], Iterator[Measurement]]) -> Measure:
    def on_a_site(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
        with job.site(options.work) as place:
            yield from measure(place, _size(options), options.rounds, about)

    return on_a_site


def _size(options: argparse.Namespace) -> job.Size:
    return job.Size(options.steps, options.ranks, options.global_batch, options.width, options.depth)


def _rank_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=count, default=2, help="processes of a run (2)")


def _run_options(steps: int) -> Options:
    """The options of a measurement whose runs have so many steps by default."""

    def options(parser: argparse.ArgumentParser) -> None:
        _rank_option(parser)
        add = parser.add_argument
        add("--steps", type=count, default=steps, help=f"of a run ({steps})")
        add("--global-batch", type=count, default=32, help="of a run (32)")
        add("--width", type=count, default=64, help="of both towers of a run (64)")
        add("--depth", type=count, default=2, help="of both towers of a run (2)")
        work = Path(gettempdir()) / "emocap-cluster-benchmarks"
        add("--work", type=Path, default=work, help="runs and their output")

    return options


def _recover_options(parser: argparse.ArgumentParser) -> None:
    _run_options(200)(parser)
    parser.add_argument("--by", default="", help="what starts the job, with {config} and {port}; by default Ray's way")


SUITE = Suite(
    name="cluster",
    description="Forecasts of large jobs; starts, steps, saves and restarts of small ones, measured.",
    commands={
        "simulate": Command(help="the model of a step, and jobs under failures", measure=_simulate, rounds=None),
        "validate": Command(help="the model of a step against two real ranks", measure=_validate),
        "start": Command(
            help="from the command to the first step", measure=_on_a_site(measured.start), options=_run_options(3)
        ),
        "overhead": Command(
            help="a step under Ray beside one under torchrun",
            measure=_on_a_site(measured.overhead),
            options=_run_options(200),
        ),
        "stall": Command(
            help="how much longer a step takes that saves",
            measure=_on_a_site(measured.stall),
            options=_run_options(120),
        ),
        "recover": Command(help="kill -9 of a rank to the next step", measure=_recover, options=_recover_options),
        "restarts": Command(help="kill -9 of a rank, many times in one job", measure=_restarts, options=_rank_option),
    },
    reports=(
        Report(name="scaling", whats=(model.SCALING,), markdown=tables.scaling, draw=plots.scaling),
        Report(name="goodput", whats=(model.GOODPUT,), markdown=tables.goodput, draw=plots.goodput),
        Report(name="cluster-model", whats=(validate.WHAT,), markdown=tables.validation),
        Report(
            name="cluster",
            whats=(measured.START, measured.OVERHEAD, measured.STALL, measured.RECOVER, restarts.WHAT),
            markdown=tables.small_jobs,
        ),
    ),
    page="cluster-benchmarks.md",
    errors=(job.JobError, EmocapError),
)
