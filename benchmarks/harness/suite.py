"""A suite of measurements as a value, and the command line of every suite."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import record, tables
from .machine import REPOSITORY, Occasion, occasion
from .record import Measurement

RECORDS = REPOSITORY / "docs" / "benchmarks"


def _nothing(_: argparse.ArgumentParser) -> None:
    pass


def _no_note(_: Measurement) -> str:
    return ""


def _no_figures(_lines: Sequence[Measurement], _folder: Path) -> Iterable[Path]:
    return ()


def _here(_: argparse.Namespace) -> Occasion:
    return occasion()


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Defines one kind of measurement.

    Attributes:
        help: One line.
        measure: Yields measurements as they are made, so that a run that is cut short leaves what it had.
        options: Adds the options that `measure` reads, beside --rounds and --out.
        rounds: The default of --rounds; with None, `measure` decides.
    """

    help: str
    measure: Callable[[argparse.Namespace, Occasion], Iterable[Measurement]]
    options: Callable[[argparse.ArgumentParser], None] = _nothing
    rounds: int | None = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Defines one file of records, and what is made from it.

    Attributes:
        name: Name of the file without its ending, and of the markers in the suite's page.
        whats: The measurements that the file has.
        markdown: Its tables.
        draw: Draws its figures into a folder and yields their paths.
    """

    name: str
    whats: Sequence[str]
    markdown: Callable[[Sequence[Measurement]], str] = tables.plain
    draw: Callable[[Sequence[Measurement], Path], Iterable[Path]] = _no_figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Defines everything with which one package is measured.

    Attributes:
        name: The word on the command line.
        description: One line.
        commands: By their words on the command line.
        reports: In the order in which they are printed.
        page: The page in docs that has the tables; None if there is none.
        errors: What ends a command with one line instead of a traceback, beside OSError and ValueError.
        occasion: Says where a command with these options measures.
        note: What a line of progress says of a measurement beside its value and its first ratio.
    """

    name: str
    description: str
    commands: Mapping[str, Command]
    reports: Sequence[Report]
    page: str | None = None
    errors: tuple[type[Exception], ...] = ()
    occasion: Callable[[argparse.Namespace], Occasion] = _here
    note: Callable[[Measurement], str] = _no_note

    def report_of(self, line: Measurement) -> Report:
        return next(report for report in self.reports if line.what in report.whats)

    def records(self, folder: Path) -> Iterator[tuple[Report, list[Measurement]]]:
        """Yields the reports whose files exist, each with its records."""
        for report in self.reports:
            path = folder / f"{report.name}.jsonl"
            if path.exists():
                yield report, record.read(path)

    def refreshed(self, text: str, folder: Path) -> str:
        """Returns the text of the suite's page with the tables of the records in `folder`."""
        for report, lines in self.records(folder):
            text = tables.insert(text, report.name, report.markdown(lines))
        return text


def run(suite: Suite, words: Sequence[str]) -> int:
    """Runs the command line of a suite and returns its exit code."""
    options = _parser(suite).parse_args(words)
    try:
        options.act(options)
    except (OSError, ValueError, *suite.errors) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _parser(suite: Suite) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python benchmarks {suite.name}", description=suite.description)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, help_: str, act: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help_, description=help_)
        made.set_defaults(act=act)
        made.add_argument("--out", type=Path, default=RECORDS, help="the folder of the records (docs/benchmarks)")
        return made

    for name, command in suite.commands.items():
        made = add(name, command.help, lambda options, command=command: _measure(suite, command, options))
        usual = "" if command.rounds is None else f" ({command.rounds})"
        made.add_argument("--rounds", type=count, default=command.rounds, help=f"readings of each contender{usual}")
        command.options(made)
    plot = add("plot", "draws the figures of the records", lambda options: _plot(suite, options))
    plot.add_argument("--figures", type=Path, help="the folder of the figures; by default that of the records")
    table = add("table", "prints the tables of the records", lambda options: _tables(suite, options))
    if suite.page:
        table.add_argument("--write", action="store_true", help=f"writes them into docs/{suite.page}")
    return parser


def _measure(suite: Suite, command: Command, options: argparse.Namespace) -> None:
    about = suite.occasion(options)
    say(f"{about.device}; load {about.load_before} before; records go to {options.out}")
    found: dict[str, list[Measurement]] = {}
    for line in command.measure(options, about):
        name = suite.report_of(line).name
        record.append(options.out / f"{name}.jsonl", [line])
        found.setdefault(name, []).append(line)
        say(tables.progress(line, suite.note(line)))
    for report in suite.reports:
        if report.name in found:
            say("\n" + report.markdown(found[report.name]))


def _plot(suite: Suite, options: argparse.Namespace) -> None:
    for report, lines in suite.records(options.out):
        for path in report.draw(lines, options.figures or options.out):
            say(str(path))


def _tables(suite: Suite, options: argparse.Namespace) -> None:
    if suite.page and options.write:
        page = REPOSITORY / "docs" / suite.page
        page.write_text(suite.refreshed(page.read_text(), options.out))
        say(str(page))
        return
    for report, lines in suite.records(options.out):
        say(f"## {report.name}\n\n{report.markdown(lines)}")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def count(text: str) -> int:
    """Reads a number of at least 1 from the command line."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


def counts(text: str) -> tuple[int, ...]:
    return tuple(count(word) for word in text.split(","))


def words_of(*known: str) -> Callable[[str], tuple[str, ...]]:
    """Returns a reader of words that are separated by commas, each of which must be known."""

    def read(text: str) -> tuple[str, ...]:
        for word in (words := tuple(text.split(","))):
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word} must be one of {', '.join(known)}")
        return words

    return read
