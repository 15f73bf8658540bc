"""Defines the suite of `python benchmarks cluster`: forecasts of large jobs, and measurements of small ones."""

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


def _on_a_site(measure: Callable[..., Iterator[Measurement]], *names: str) -> Measure:
    """Returns a function for `Command.measure`. It prepares a folder for the runs with `job.site`, and calls `measure`.

    The arguments of `measure` are the `Site`, the size of a run, the number of readings, the `Occasion` (fields of all
    records, such as the date), and the values of the options called `names`.
    """

    def on_a_site(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
        size = job.RunSize(options.steps, options.ranks, options.global_batch, options.width, options.depth)
        with job.site(options.work) as place:
            yield from measure(place, size, options.rounds, about, *(getattr(options, name) for name in names))

    return on_a_site


def _rank_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option for the number of ranks."""
    parser.add_argument("--ranks", type=count, default=2, help="processes of a run (2)")


def _run_options(steps: int) -> Callable[[argparse.ArgumentParser], None]:
    """Returns a function that adds the options of small runs; `steps` is the default of --steps."""

    def options(parser: argparse.ArgumentParser) -> None:
        _rank_option(parser)
        add = parser.add_argument
        add("--steps", type=count, default=steps, help=f"steps of a run ({steps})")
        add("--global-batch", type=count, default=32, help="samples in a step of a run (32)")
        add("--width", type=count, default=64, help="width of both towers of a run (64)")
        add("--depth", type=count, default=2, help="layers of both towers of a run (2)")
        work = Path(gettempdir()) / "emocap-cluster-benchmarks"
        add("--work", type=Path, default=work, help="the folder of the runs and their output")

    return options


def _recover_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that describe a small run, and the option `--by` for the command line that starts it."""
    _run_options(200)(parser)
    command = "the command that starts the job, with {config} and {port} filled in; without it the job runs on Ray"
    parser.add_argument("--by", type=shlex.split, default=[], help=command)


SUITE = Suite(
    name="cluster",
    description="Forecasts of large jobs; starts, steps, saves and restarts of small ones, measured.",
    commands={
        "simulate": Command(
            help="forecasts of weak scaling, and of goodput under failures",
            measure=lambda _, about: model.forecasts(about),
            rounds=None,
        ),
        "validate": Command(
            help="the forecast of a step beside a step of two real ranks",
            measure=lambda options, about: validate.measure(validate.CASES, options.rounds, about),
        ),
        "start": Command(
            help="time from the command to the first step", measure=_on_a_site(measured.start), options=_run_options(3)
        ),
        "overhead": Command(
            help="a step under Ray beside one under torchrun",
            measure=_on_a_site(measured.overhead),
            options=_run_options(200),
        ),
        "stall": Command(
            help="how much longer a step with a save takes",
            measure=_on_a_site(measured.stall),
            options=_run_options(120),
        ),
        "recover": Command(
            help="time from kill -9 of a rank to the next step",
            measure=_on_a_site(measured.recover, "by"),
            options=_recover_options,
        ),
        "restarts": Command(
            help="time of many restarts in one job, each after kill -9 of a rank",
            measure=lambda options, about: restarts.measure(options.ranks, options.rounds, about),
            options=_rank_option,
        ),
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
