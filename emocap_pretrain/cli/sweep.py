"""Defines `emocap sweep`, which trains a config with each combination of some values and compares the results.

It runs `emocap pretrain` once for each combination, one after the other, with overrides. So each run is an ordinary
run: it has its own folder, resumes, and uses all devices of the job. docs/sweep.md says why this is not Ray Tune.
"""

import itertools
import math
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from emocap_shards.store import open_store

from emocap_pretrain.cli.options import Debug
from emocap_pretrain.cli.tables import grid, plain
from emocap_pretrain.config.load import load
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.report import Report
from emocap_pretrain.terminal import (
    FAILED,
    INTERRUPTED,
    STOPPED,
    WRONG_INPUT,
    Terminal,
    console,
    errors_as_lines,
    say_json,
)

MOST_RUNS = 200
TAG = "sweep"
PRETRAIN = (sys.executable, "-m", "emocap_pretrain.cli", "pretrain")
_OPENING, _CLOSING = "[{(", "]})"


@dataclass(frozen=True, slots=True)
class Member:
    """One run of a sweep.

    Attributes:
        label: The values that differ between the runs, such as "lr=1e-5,freeze=6".
        overrides: The overrides of `emocap pretrain`.
        url: Folder or URL of the run.
        steps: Number of steps of the run.
    """

    label: str
    overrides: tuple[str, ...]
    url: str
    steps: int


def command(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    values: Annotated[list[str], typer.Argument(help="dotted.key=VALUE,VALUE,...; a single value is an override.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check each run, as emocap pretrain does.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Only print the results of the runs that are done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Train a config with each combination of values, one after the other, and compare the runs.

    emocap sweep my.yaml optimizer.lr=1e-5,3e-5 model.image.freeze=0,6

    The same command resumes an interrupted sweep. Runs that are done are not trained again. A run that fails does not
    end the sweep. At the first Ctrl-C or SIGTERM the present run saves, and the sweep ends. Exit codes: 0 done, 1 a run
    has failed, 2 a value to correct, 75 stopped and saved, 130 Ctrl-C.
    """
    with errors_as_lines(debug=debug):
        if dry_run and (table or as_json):
            raise ConfigError("--dry-run trains nothing and prints no table: leave out --table and --json.")
        members = members_of(config, values)
        code = 0 if table else _train(config, members, dry_run=dry_run, to_stderr=as_json)
        if not dry_run:
            _compare(members, as_json=as_json)
        if code:
            sys.exit(code)


def members_of(config: Path, values: Sequence[str]) -> list[Member]:
    """Returns the runs of a sweep, in the order of the values; the last key changes fastest.

    All configs are read, so a wrong value is found before the first run starts.

    Raises:
        ConfigError: If a value is wrong, no key has several values, or two runs would have the same folder.
    """
    keys: dict[str, list[str]] = {}
    for text in values:
        key, separator, listed = text.partition("=")
        if not separator or not key:
            raise ConfigError(f"{text!r} is not of the form dotted.key=VALUE,VALUE, such as optimizer.lr=1e-5,3e-5.")
        if key in keys:
            raise ConfigError(f"{key} is given twice: write all of its values once, divided by commas.")
        keys[key] = split_values(listed)
    if not any(len(each) > 1 for each in keys.values()):
        raise ConfigError("no key has several values; write them with commas, such as optimizer.lr=1e-5,3e-5.")
    for own in ("name", "url"):
        if own in keys:
            raise ConfigError(f"{own} cannot be swept: each run gets a name and a folder from its values.")
    count = math.prod(map(len, keys.values()))
    if count > MOST_RUNS:
        raise ConfigError(f"{count} combinations are more than {MOST_RUNS}: give fewer values.")
    base = load(config, [f"{key}={each[0]}" for key, each in keys.items()])
    return list(_members(config, base, keys))


def _members(config: Path, base: Config, keys: dict[str, list[str]]) -> Iterator[Member]:
    varied = [key for key, each in keys.items() if len(each) > 1]
    short = _short_names(varied)
    folders: dict[str, str] = {}
    for chosen in itertools.product(*keys.values()):
        given = dict(zip(keys, chosen, strict=True))
        label = ",".join(f"{short[key]}={given[key]}" for key in varied)
        folder = re.sub(r"[^A-Za-z0-9.=,_+-]+", "_", label)
        if folder in folders:
            raise ConfigError(f"the runs {folders[folder]} and {label} would have the same folder: leave one out.")
        folders[folder] = label
        # The user's own text `${oc.env:...}` stays in the stored config, because the stored url is taken.
        url = f"{base.stored()['url'].rstrip('/')}-sweep/{folder}"
        overrides = [f"{key}={value}" for key, value in given.items()]
        name = f"{base.name}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', label)}"
        overrides += [f"name={_quoted(name)}", f"url={_quoted(url)}"]
        overrides += [f"tracking.tags.{TAG}={_quoted(base.name)}"]
        loaded = load(config, overrides)
        yield Member(label, tuple(overrides), loaded.url, loaded.steps)


def split_values(text: str) -> list[str]:
    """Returns the values of a text such as "1e-5,3e-5". Commas within brackets and quotes do not divide.

    >>> split_values("1e-5,3e-5"), split_values("[a,b],[c]"), split_values('"x,y",z')
    (['1e-5', '3e-5'], ['[a,b]', '[c]'], ['"x,y"', 'z'])

    Raises:
        ConfigError: If a value is empty, or is given twice.
    """
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if letter == "," and not depth and not quote:
            parts.append("")
            continue
        parts[-1] += letter
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in _OPENING) - (letter in _CLOSING)
    found = [part.strip() for part in parts]
    if not all(found) or len(set(found)) < len(found):
        raise ConfigError(f"the values {text!r} must be different and not empty; write them like 1e-5,3e-5.")
    return found


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Returns the last part of each key, or the whole key if several keys end alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def _quoted(text: str) -> str:
    """Returns a text in YAML's single quotes, in which no character but the quote has a meaning."""
    return "'" + text.replace("'", "''") + "'"


def _train(config: Path, members: Sequence[Member], *, dry_run: bool, to_stderr: bool) -> int:
    """Runs `emocap pretrain` for each member, and returns the exit code of the sweep.

    With `to_stderr` the output of the runs goes to standard error, because standard output is for the table alone.
    """
    out = Terminal(highlight=False, soft_wrap=True, stderr=to_stderr)
    failed = 0
    for number, member in enumerate(members, 1):
        out.print(f"Run {number} of {len(members)}: {plain(member.label)}")
        words = [str(config), *member.overrides]
        if dry_run:
            out.print(plain(shlex.join(["emocap", "pretrain", *words])))
            words.append("--dry-run")
        code, asked = _run([*PRETRAIN, *words], to_stderr=to_stderr)
        if asked or code in {STOPPED, INTERRUPTED}:
            out.print("The sweep is stopped; the same command continues it.")
            return code if code in {STOPPED, INTERRUPTED} else INTERRUPTED if signal.SIGINT in asked else STOPPED
        if code:
            failed = WRONG_INPUT if dry_run else FAILED
            out.print(f"Run {number} has ended with exit code {code}; the sweep continues with the next one.")
    return failed


def _run(command: Sequence[str], *, to_stderr: bool) -> tuple[int, frozenset[int]]:
    """Runs a command until it ends by itself, because a run that is asked to stop has to save first.

    A run has a process of its own, because it changes the environment and the libraries of its process.

    Returns:
        The exit code of the command, and the signals that asked this process to stop meanwhile.
    """
    asked: set[int] = set()
    process: subprocess.Popen[bytes] | None = None

    def take(number: int, _frame: FrameType | None) -> None:
        asked.add(number)
        # A terminal sends Ctrl-C to both processes. Other programs send SIGTERM to this process alone.
        if number == signal.SIGTERM and process is not None:
            process.terminate()

    before = {number: signal.signal(number, take) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        process = subprocess.Popen(command, stdout=2 if to_stderr else None)
        if signal.SIGTERM in asked:  # It came before there was a process.
            process.terminate()
        return process.wait(), frozenset(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _compare(members: Sequence[Member], *, as_json: bool) -> None:
    """Prints the last loss and the first score of each task, for each run."""
    reports = [RunFolder(open_store(each.url)).report(each.steps) for each in members]
    names = list(dict.fromkeys(name for report in reports if report for name in _scores(report)))
    if as_json:
        say_json([_tree(*pair) for pair in zip(members, reports, strict=True)])
        return
    rows = [
        (each.label, *(_cell(report, name) for name in ("loss", *names)))
        for each, report in zip(members, reports, strict=True)
    ]
    # The columns of scores are not cut, also if the terminal is narrower than all of them together.
    width = max(console.width, 40 + sum(len(name) + 2 for name in names))
    console.print(grid("Runs of the sweep", ("values", "loss", *names), rows), soft_wrap=False, width=width)
    done = sum(report is not None for report in reports)
    console.print(f"{done} of {len(members)} runs are done. In MLflow: the tag {TAG} of the experiment's runs.")


def _scores(report: Report) -> dict[str, float]:
    """Returns the first score of each task, which is its main one, by TASK/SCORE."""
    return {f"{each.task}/{each.scores[0].name}": each.scores[0].value for each in report.results if each.scores}


def _cell(report: Report | None, name: str) -> str:
    if report is None:
        return "-"
    value = report.loss if name == "loss" else _scores(report).get(name)
    return "-" if value is None else f"{value:.4f}"


def _tree(member: Member, report: Report | None) -> dict[str, object]:
    scores = _scores(report) if report else {}
    return {
        "values": member.label,
        "url": member.url,
        "done": report is not None,
        "loss": report.loss if report else None,
        "scores": scores,
        "mlflow_run": report.run_id if report else None,
    }
