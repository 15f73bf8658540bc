"""Defines the output of the commands: the console, errors in one line, the display of progress, and exit codes.

| code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | a value has to be corrected |
| 70 | a rank hung or lost contact with another rank, and its watchdog ended the process (docs/health.md) |
| 75 | stopped and saved: the same command resumes from there (EX_TEMPFAIL of sysexits.h) |
| 130 | Ctrl-C |

Texts that somebody else wrote may contain secrets or control characters, which must not reach the terminal. Therefore a
command prints through `console`, `say_json` or `errors_as_lines`, or it passes a text through `logs.shown` first. The
module does not import torch, so that `--help` is quick.
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
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.exceptions import TyperException

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.logs import conceal, shown, shown_tree

FAILED, WRONG_INPUT, STOPPED, INTERRUPTED = 1, 2, 75, 130
EVERY_S = 10.0  # Seconds between two lines of progress in a log.


class Terminal(Console):
    """Prints texts without secrets and control characters, and does not interpret rich's markup in them.

    To style a text, callers print a `rich.text.Text`. It is printed unchanged, so it must not contain a text that
    somebody else wrote.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Masks secrets and replaces control characters in a text.

        Rich calls this method for every str that it prints, also for a str in a table.
        """
        # Rich folds the cells of a table into lines before it writes them. A mask on the stream would see pieces only.
        options |= {"markup": False, "emoji": False}
        return super().render_str(shown(text), **options)  # pyright: ignore[reportArgumentType]


console = Terminal(highlight=False, soft_wrap=True)


def say_json(tree: Any) -> None:
    """Prints a JSON value in one line, with secrets masked and unprintable characters as JSON's \\u escapes."""
    text = json.dumps(shown_tree(tree), ensure_ascii=False)
    line = text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
    sys.stdout.write(f"{line}\n")


@contextmanager
def _usage_errors_masked() -> Generator[None]:
    """Masks secrets in the usage errors that are raised within the block.

    Typer quotes an argument that it does not understand, and that argument may be a URL with a password.
    """
    try:
        yield
    except TyperException as error:
        error.message = shown(error.message)
        raise


class Command(TyperCommand):
    """Parses the arguments of a command, and refuses a second value for an option that takes one value.

    Typer itself would use the last value. Secrets in usage errors are masked.

    In the help, each paragraph of a docstring fills the width of the terminal, because Typer would keep the line breaks
    of all paragraphs after the first one. A number with bounds is called N, which leaves more room for the texts.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        text = settings.get("help") or ""
        settings["help"] = "\n\n".join(" ".join(each.split()) for each in text.split("\n\n"))
        super().__init__(*arguments, **settings)
        for param in self.params:
            if isinstance(param, TyperOption) and param.metavar is None and (param.min, param.max) != (None, None):
                param.metavar = "N"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _usage_errors_masked():
            # The arguments are parsed twice. `given` lists each parameter as often as it occurs; the second parse keeps
            # one value of it.
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
            for param, times in Counter(map(id, given)).items():
                option = next(each for each in given if id(each) == param)
                if times > 1 and isinstance(option, TyperOption) and _has_one_value(option):
                    ctx.fail(f"{option.opts[0]} is given {times} times, but takes one value: give it once.")
            return super().parse_args(ctx, args)


class Group(TyperGroup):
    """Parses the arguments of a group of commands, and masks secrets in usage errors."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _usage_errors_masked():
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        with _usage_errors_masked():
            return super().resolve_command(ctx, args)


def _has_one_value(option: TyperOption) -> bool:
    """Returns whether the option takes only one value, so that a second use could contradict the first one.

    The result is False for lists, for counters, and for flags that can only be switched on.
    """
    return not option.multiple and not option.count and not (option.is_flag and not option.secondary_opts)


@contextmanager
def errors_as_lines(*, debug: bool, refusal: str = "error") -> Generator[None]:
    """Prints an error of this project that is raised within the block as one line on stderr, and ends the process.

    Every command runs in this block. The exit code is 2 for a wrong value and 1 for any other error of this project.
    Ctrl-C ends the process with exit code 130. All other errors pass through, with secrets masked.

    Args:
        debug: Whether errors of this project pass through too, so that Python prints their traceback.
        refusal: First words of the line for a wrong value.
    """
    try:
        yield
    except Exception as error:
        if debug or not _ours(error):
            conceal(error)
            raise
        # An error of `emocap_cluster` keeps the error of the rank as its `cause`.
        wrong_input = isinstance(getattr(error, "cause", error), ConfigError)
        # Every rank finds the same error in a config, so only rank 0 prints it.
        if not wrong_input or os.environ.get("RANK", "0") == "0":
            _say(str(error), refusal if wrong_input else "error")
        sys.exit(WRONG_INPUT if wrong_input else FAILED)
    except KeyboardInterrupt:
        _say("interrupted; start the same command again to resume.")
        sys.exit(INTERRUPTED)


def _ours(error: Exception) -> bool:
    """Returns whether the error's class belongs to a package of this project.

    Only the name of the class's module is compared. So this function does not import the modules that define the
    errors; importing them could also import torch.
    """
    return type(error).__module__.startswith("emocap_")


def _say(message: str, kind: str = "error") -> None:
    rank = os.environ.get("RANK")
    where = f"rank {rank}: " if rank else ""
    sys.stderr.write(f"{kind}: {where}{shown(message)}\n")


@contextmanager
def screen() -> Generator["Screen"]:
    """Yields a `Screen` that shows the progress of a run.

    In a terminal it shows a bar; in a log it prints a line every `EVERY_S` seconds.
    """
    if not console.is_terminal:
        yield Screen(None)
        return
    with Progress(*columns(), console=console, transient=True) as bar:
        yield Screen(bar)


def columns() -> tuple[ProgressColumn, ...]:
    return (
        BarColumn(bar_width=16),
        TextColumn("{task.description}", markup=False),
        _TimeLeft(compact=True),
    )


class _TimeLeft(TimeRemainingColumn):
    """Shows the remaining time, and nothing while it is unknown."""

    def render(self, task: Task) -> Text:
        return Text() if task.time_remaining is None else super().render(task).append(" left")


class Screen:
    """Prints lines and the progress of a run. Other output of the process appears above the bar.

    Before the first step, which may take minutes, a moving bar shows that the ranks start.

    It implements the protocol `ProgressDisplay` of `emocap_cluster.supervise`, which calls its methods.
    """

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._task = bar.add_task("before the first step", total=None) if bar else None
        self._pace = Pace()

    def say(self, line: str) -> None:
        """Prints a line."""
        console.print(line)

    def show_progress(self, step: int, steps: int, note: str) -> None:
        """Shows that `step` of `steps` steps are done, with a note such as the loss."""
        if self._bar is None:
            line = self._pace.line(step, steps, note, time.monotonic())
            if line:
                self.say(line)
            return
        # At the first step, and after a restart from an older checkpoint, the bar begins anew. Otherwise its remaining
        # time would be wrong.
        if self._task is None or self._pace.seen < 0 or self._pace.went_back(step):
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task("", total=steps, completed=step)
        self._pace.seen = step
        self._bar.update(self._task, completed=step, description=shown(f"step {step}/{steps} · {note}"))


@dataclass(slots=True)
class Pace:
    """Formats the progress of a run as lines with the remaining time.

    The remaining time is estimated from the speed since the newest attempt began.

    Example:
        pace = Pace()
        pace.line(0, 100, "loss 2.0", now_s=0.0)  # "step 0/100 · loss 2.0"
        pace.line(5, 100, "loss 1.9", now_s=5.0)  # None: 10 s have not passed.
        pace.line(20, 100, "loss 1.8", now_s=20.0)  # "step 20/100 · loss 1.8 · 1:20 left"
    """

    seen: int = -1
    _first: tuple[int, float] = (0, 0.0)
    _said_s: float = -math.inf

    def went_back(self, step: int) -> bool:
        """Returns whether the run has resumed from an older step than the one that was shown last."""
        return step < self.seen

    def line(self, step: int, steps: int, note: str, now_s: float) -> str | None:
        """Returns the line for this step; None if less than `EVERY_S` seconds have passed since the last line.

        The last step always gets a line. `now_s` is a time of `time.monotonic`.
        """
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
    """Returns a duration as a text, such as 0:07 or 2:30 (minutes and seconds), or 1:02:03 (with hours)."""
    return str(timedelta(seconds=round(seconds))).removeprefix("0:").removeprefix("0")
