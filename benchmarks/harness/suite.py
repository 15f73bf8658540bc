"""Defines what a suite of measurements is, and runs the command line of a suite.

A `Suite` lists its commands, the files of its records with their tables and figures, and its page in docs. Each
measurement is appended to its file as soon as it is made, so an interrupted command keeps what it has measured. The
harness imports neither torch nor the measured packages (decision 27).
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import record, tables
from .machine import REPOSITORY, Occasion, occasion
from .record import Measurement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECORDS = REPOSITORY / "docs" / "benchmarks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command that makes measurements.

    Attributes:
        help: One line for the help of the command line.
        measure: Yields each measurement as soon as it is made, so that an interrupted command keeps the earlier ones.
        options: Adds the options that `measure` reads; --rounds and --out are added to every command.
        rounds: The default of --rounds, the number of readings of each contender. With None, `measure` chooses it.
    """

    help: str
    measure: Callable[[argparse.Namespace, Occasion], Iterable[Measurement]]
    options: Callable[[argparse.ArgumentParser], object] = lambda _: None
    rounds: int | None = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A file of records, with the tables and figures that are made from it.

    Attributes:
        name: The name of the file without its suffix. In the suite's page, the tables are inserted between markers with
            this name (`tables.insert`).
        whats: The measured quantities (`Measurement.what`) that the file contains.
        markdown: Returns the tables of the records.
        draw: Yields the figures of the records with their file names.
    """

    name: str
    whats: Sequence[str]
    markdown: Callable[[Sequence[Measurement]], str] = tables.plain
    draw: Callable[[Sequence[Measurement]], Iterable[tuple[str, "Figure"]]] = lambda _: ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """All measurements of one package.

    Attributes:
        name: The name of the suite on the command line.
        description: One line for the help of the command line.
        commands: The commands by their names.
        reports: The files of records, in the order in which their tables are printed.
        page: The page in docs that contains the tables; None if there is none.
        errors: The exceptions, in addition to OSError and ValueError, that are printed in one line without a traceback.
        occasion: Returns the fields that all records of a command share (see `Occasion`), such as the device, from the
            parsed options of the command.
        note: Returns a text for the line that is printed after each measurement. It follows the value and the first
            ratio.
    """

    name: str
    description: str
    commands: Mapping[str, Command]
    reports: Sequence[Report]
    page: str | None = None
    errors: tuple[type[Exception], ...] = ()
    occasion: Callable[[argparse.Namespace], Occasion] = lambda _: occasion()
    note: Callable[[Measurement], str] = lambda _: ""

    def report_of(self, line: Measurement) -> Report:
        """Returns the report to which a measurement belongs."""
        return next(report for report in self.reports if line.what in report.whats)

    def records(self, folder: Path) -> Iterator[tuple[Report, list[Measurement]]]:
        """Yields the reports whose files exist in `folder`, each with its records."""
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
    """Runs a command line of a suite and returns its exit code."""
    options = _parser(suite).parse_args(words)
    try:
        options.act(options)
    except (OSError, ValueError, *suite.errors) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _parser(suite: Suite) -> argparse.ArgumentParser:
    """Returns the parser of the suite's commands and of `plot` and `table`.

    The parsed options contain the function `act`, which runs the chosen command.
    """
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
    """Records the measurements of a command as they are made, then prints their tables."""
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
    """Draws the figures of all records and prints their paths."""
    from . import plots  # Only this command needs matplotlib.

    for report, lines in suite.records(options.out):
        for path in plots.save(report.draw(lines), options.figures or options.out):
            say(str(path))


def _tables(suite: Suite, options: argparse.Namespace) -> None:
    """Prints the tables of all records, or writes them into the suite's page."""
    if suite.page and options.write:
        page = REPOSITORY / "docs" / suite.page
        page.write_text(suite.refreshed(page.read_text(), options.out))
        say(str(page))
        return
    for report, lines in suite.records(options.out):
        say(f"## {report.name}\n\n{report.markdown(lines)}")


def say(text: str) -> None:
    """Prints a line without buffering it, so that progress is visible through a pipe too."""
    print(text, flush=True)  # noqa: T201 - the output of the command


def count(text: str) -> int:
    """Reads an integer of at least 1 from the command line."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


def counts(text: str) -> tuple[int, ...]:
    """Reads integers of at least 1 that are separated by commas."""
    return tuple(count(word) for word in text.split(","))


def words_of(*known: str) -> Callable[[str], tuple[str, ...]]:
    """Returns a function that reads names separated by commas, and refuses a name that is not in `known`."""

    def read(text: str) -> tuple[str, ...]:
        for word in (words := tuple(text.split(","))):
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word} must be one of {', '.join(known)}")
        return words

    return read
