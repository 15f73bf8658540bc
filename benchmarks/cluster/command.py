"""The command line."""

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import gettempdir

from benchmarks.harness import record
from benchmarks.harness.measurement import REPOSITORY
from benchmarks.harness.record import Line, Occasion, occasion
from emocap_pretrain.errors import EmocapError

from . import measured, model, plots, restarts, tables, validate
from .job import JobError, Size, site

_RECORDS = REPOSITORY / "docs" / "benchmarks"
_PAGE = REPOSITORY / "docs" / "cluster-benchmarks.md"
_STEPS = {"start": 3, "overhead": 200, "stall": 120, "recover": 200}


def main(words: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(words)
    try:
        _run(options)
    except (OSError, ValueError, JobError, EmocapError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.command == "table":
        _tables(options)
    elif options.command == "plot":
        for name, lines in _records(options.out).items():
            for path in plots.draw(name, lines, options.out):
                _say(str(path))
    elif options.command == "simulate":
        about = model.nowhere(occasion("benchmarks"))
        for name, lines in (("scaling", model.scaling(about)), ("goodput", model.failing(about))):
            _keep(options.out / f"{name}.jsonl", lines)
    else:
        about = occasion("benchmarks")
        _say(f"{about.device}; load {about.load_before:.2f} before")
        _keep(options.out / f"{tables.FILES[options.command]}.jsonl", _measure(options, about))


def _measure(options: argparse.Namespace, about: Occasion) -> Iterator[Line]:
    if options.command == "validate":
        yield from validate.measure(validate.CASES, options.rounds, about)
        return
    if options.command == "restarts":
        yield from restarts.measure(options.ranks, options.rounds, about)
        return
    steps = options.steps or _STEPS[options.command]
    size = Size(steps, options.ranks, options.global_batch, options.width, options.depth)
    with site(options.work) as place:
        if options.command == "recover":
            yield from measured.recover(place, size, options.rounds, about, shlex.split(options.by))
        else:
            measures = {"start": measured.start, "overhead": measured.overhead, "stall": measured.stall}
            yield from measures[options.command](place, size, options.rounds, about)


def _keep(path: Path, lines: Iterator[Line]) -> None:
    _say(f"records go to {path}")
    for each in lines:
        record.append(path, [each])
        _say(tables.progress(each))


def _records(folder: Path) -> dict[str, list[Line]]:
    paths = {name: folder / f"{name}.jsonl" for name in tables.NAMES}
    return {name: record.read(path) for name, path in paths.items() if path.exists()}


def _tables(options: argparse.Namespace) -> None:
    records = _records(options.out)
    if options.write:
        tables.refresh(_PAGE, records)
        _say(str(_PAGE))
        return
    for name, lines in records.items():
        _say(f"## {name}\n\n{tables.markdown(name, lines)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks cluster",
        description="Forecasts of large jobs; starts, steps, saves and restarts of small ones, measured.",
    )
    add = parser.add_argument
    add("command", choices=("simulate", "validate", "restarts", *_STEPS, "plot", "table"))
    add("--rounds", type=_count, default=5, help="of which median and spread are taken (5)")
    add("--steps", type=_count, help="of a run; by default what its measurement needs")
    add("--ranks", type=_count, default=2, help="processes of a run (2)")
    add("--global-batch", type=_count, default=32, help="of a run (32)")
    add("--width", type=_count, default=64, help="of both towers of a run (64)")
    add("--depth", type=_count, default=2, help="of both towers of a run (2)")
    add("--by", default="", help="recover: what starts the job, with {config} and {port}; by default Ray's way")
    add("--work", type=Path, default=Path(gettempdir()) / "emocap-cluster-benchmarks", help="runs and their output")
    add("--out", type=Path, default=_RECORDS, help="the folder of the records and figures")
    add("--write", action="store_true", help="table: into docs/cluster-benchmarks.md")
    return parser


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
