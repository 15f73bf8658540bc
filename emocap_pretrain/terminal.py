"""Formats what the commands print: the console, errors in one line, a line of progress, and exit codes.

| code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | a value has to be corrected |
| 70 | a rank hung, or lost contact with another one: its watchdog ended it (docs/health.md) |
| 75 | stopped and saved: the same command resumes from there (EX_TEMPFAIL of sysexits.h) |
| 130 | Ctrl-C |
"""

import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.exceptions import TyperException

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.logs import conceal, shown, shown_tree

FAILED, WRONG_INPUT, STOPPED, INTERRUPTED = 1, 2, 75, 130
EVERY_S = 10.0


class Terminal(Console):
    """A console that prints texts without secrets and control characters, and does not interpret markup in them.

    Styles come from `Text`.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Masks a text. Rich calls this for every str that it prints, also in tables, before it breaks lines."""
        options |= {"markup": False, "emoji": False}
        return super().render_str(shown(text), **options)  # pyright: ignore[reportArgumentType]


console = Terminal(highlight=False, soft_wrap=True)


def say_json(tree: Any) -> None:
    """Prints a JSON value, masked; unprintable characters become \\u escapes, which mean the same in JSON."""
    text = json.dumps(shown_tree(tree), ensure_ascii=False)
    line = text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
    sys.stdout.write(f"{line}\n")


@contextmanager
def _usage_errors_masked() -> Generator[None]:
    """Masks usage errors: Typer quotes a word that it does not understand, which may be a URL with a password."""
    try:
        yield
    except TyperException as error:
        error.message = shown(error.message)
        raise


class Command(TyperCommand):
    """A command that refuses a second value for an option; Typer would silently use the last one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _usage_errors_masked():
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
            for param, times in Counter(map(id, given)).items():
                option = next(each for each in given if id(each) == param)
                if times > 1 and isinstance(option, TyperOption) and _has_one_value(option):
                    ctx.fail(f"{option.opts[0]} is given {times} times, but takes one value: give it once.")
            return super().parse_args(ctx, args)


class Group(TyperGroup):
    """A group of commands that masks secrets in usage errors."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _usage_errors_masked():
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        with _usage_errors_masked():
            return super().resolve_command(ctx, args)


def _has_one_value(option: TyperOption) -> bool:
    """Returns whether an option is neither a list nor a flag that can only be switched on."""
    return not option.multiple and not option.count and not (option.is_flag and not option.secondary_opts)


@contextmanager
def errors_as_lines(*, debug: bool, refusal: str = "error") -> Generator[None]:
    """Ends the process at an error of this project in the body, with its message on stderr and no traceback.

    Exit codes: 2 for a wrong value, 1 for a job that failed, 130 for Ctrl-C.

    Args:
        debug: Whether the traceback is printed too.
        refusal: First words of the line for a wrong value.
    """
    try:
        yield
    except Exception as error:
        if debug or not _ours(error):
            conceal(error)
            raise
        wrong_input = isinstance(getattr(error, "cause", error), ConfigError)
        # Every rank finds the same error in a config, so only rank 0 prints it.
        if not wrong_input or os.environ.get("RANK", "0") == "0":
            _say(str(error), refusal if wrong_input else "error")
        sys.exit(WRONG_INPUT if wrong_input else FAILED)
    except KeyboardInterrupt:
        _say("interrupted; start the same command again to resume.")
        sys.exit(INTERRUPTED)


def _ours(error: Exception) -> bool:
    """Returns whether a package of this project raised the error on purpose.

    Only names are compared, so that torch need not be imported.
    """
    return type(error).__module__.startswith("emocap_")


def _say(message: str, kind: str = "error") -> None:
    rank = os.environ.get("RANK")
    where = f"rank {rank}: " if rank else ""
    sys.stderr.write(f"{kind}: {where}{shown(message)}\n")


@contextmanager
def screen() -> Generator["Screen"]:
    """Shows progress while the body runs: a bar in a terminal, a line every few seconds in a log."""
    if not console.is_terminal:
        yield Screen(None)
        return
    with Progress(*columns(), console=console, transient=True) as bar:
        yield Screen(bar)


def columns() -> tuple[ProgressColumn, ...]:
    return (
        BarColumn(bar_width=16),
        TextColumn("{task.description}", markup=False),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )


class Screen:
    """Prints lines and the progress of a run. What others print meanwhile appears above the bar."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._task: TaskID | None = None
        self._pace = Pace()

    def say(self, line: str) -> None:
        """Prints a line."""
        console.print(line)

    def beat(self, step: int, steps: int, note: str) -> None:
        """Shows that `step` of `steps` steps are done, with a note such as the loss."""
        if self._bar is None:
            line = self._pace.line(step, steps, note, time.monotonic())
            if line:
                self.say(line)
            return
        if self._task is None or self._pace.went_back(step):
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task("", total=steps, completed=step)
        self._pace.seen = step
        self._bar.update(self._task, completed=step, description=shown(f"step {step}/{steps} · {note}"))


@dataclass(slots=True)
class Pace:
    """Turns steps into lines with the remaining time, estimated from the steps since the last (re)start."""

    seen: int = -1
    _first: tuple[int, float] = (0, 0.0)
    _said_s: float = -math.inf

    def went_back(self, step: int) -> bool:
        """Returns whether the run was started again from an older step than the last one shown."""
        return step < self.seen

    def line(self, step: int, steps: int, note: str, now_s: float) -> str | None:
        """Returns the line for this step; None if the last line is recent and steps remain."""
        if self.seen < 0 or self.went_back(step):
            self._first = (step, now_s)
        self.seen = step
        if now_s - self._said_s < EVERY_S and step < steps:
            return None
        self._said_s = now_s
        first_step, first_s = self._first
        if step == first_step:
            return f"step {step}/{steps} · {note}"
        return (
            f"step {step}/{steps} · {note} · {duration((now_s - first_s) / (step - first_step) * (steps - step))} left"
        )


def duration(seconds: float) -> str:
    """Returns a duration such as 0:07, 2:30 or 1:02:03."""
    return str(timedelta(seconds=round(seconds))).removeprefix("0:").removeprefix("0")
