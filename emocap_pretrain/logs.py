"""Removes secrets and control characters from logs and tracebacks.

Every process of a run calls `show_logs` and `guard_tracebacks`: the command, the ranks, and the loader processes.
`emocap_shards.mask` decides which parts of a text are secrets. `terminal.Terminal` removes secrets and control
characters from the output of the commands. Code that stores a text in the run's folder calls `shown` itself. Code that
hands an error to a framework, which will print the error, calls `conceal`.

Control characters are replaced because a text may come from a dataset or a run folder that somebody else wrote. An
escape sequence in such a text would control the terminal of the person who reads it (docs/security.md).
"""

import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import Any, cast

from emocap_shards.mask import masked
from emocap_shards.printable import printable

HUB_CLIENT = "huggingface_hub.utils._http"
OURS = ("emocap_pretrain", "emocap_shards", "emocap_cluster")


def shown(text: str) -> str:
    """Returns the text with secrets masked and control characters replaced. Line feeds are kept."""
    return printable(masked(text), lines=True)


def shown_tree(tree: Any) -> Any:
    """Returns a copy of a JSON value in which secrets are masked in all strings and keys.

    Control characters are kept; `terminal.say_json` escapes them. Tuples become lists, as in JSON.
    """
    if isinstance(tree, str):
        return masked(tree)
    if isinstance(tree, dict):
        return {masked(str(key)): shown_tree(value) for key, value in cast("dict[str, Any]", tree).items()}
    return [shown_tree(each) for each in cast("list[Any]", tree)] if isinstance(tree, list | tuple) else tree


def show_logs(level: int = logging.INFO) -> None:
    """Sends log records to stderr: those of this project from `level` on, those of other loggers from WARNING on.

    Secrets are masked in the messages of all loggers, even if a library installs its own handler. A second call only
    changes the level.
    """
    # The factory makes the records of every logger, so it masks messages before any handler sees them.
    logging.setLogRecordFactory(ShownRecord)
    # `basicConfig` does nothing if the root logger already has a handler, for example one of a library. A handler with
    # a formatter class of its own keeps it: its messages are masked by the factory.
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        if type(handler.formatter) in {logging.Formatter, type(None)}:
            handler.setFormatter(ShownLines("%(message)s"))
    for package in OURS:
        logging.getLogger(package).setLevel(level)
    # Without a network, the client of the hub logs two lines for each of its retries. The error after the last one
    # becomes one line of ours.
    logging.getLogger(HUB_CLIENT).setLevel(logging.ERROR)


def guard_tracebacks() -> None:
    """Makes Python mask secrets in the tracebacks of uncaught errors. Each process calls this function at its start."""
    sys.excepthook = _print_masked
    threading.excepthook = _print_masked_of_thread


class ShownRecord(logging.LogRecord):
    """Represents a log record. Its message contains no secrets and no control characters."""

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        return shown(super().getMessage())


class ShownLines(logging.Formatter):
    """Formats log records, and masks secrets in their tracebacks too.

    All lines of a record except the first are indented, so that no text inside a record can look like another record.
    """

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record)).replace("\n", "\n  ")


def conceal(error: BaseException) -> None:
    """Masks secrets in the arguments of an error and of all errors in its chain, in place.

    The chain consists of the errors in `__cause__` and `__context__`. Code calls this function before it hands an error
    to a framework that will print the error.
    """
    seen = set[int]()  # A chain can be a cycle, because code may set `__cause__` and `__context__` freely.
    remaining: list[BaseException | None] = [error]
    while remaining:
        each = remaining.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        each.args = tuple(masked(part) if isinstance(part, str) else part for part in each.args)
        remaining += [each.__cause__, each.__context__]


def _print_masked(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    sys.stderr.write(shown("".join(traceback.format_exception(kind, error, where))))


def _print_masked_of_thread(arguments: threading.ExceptHookArgs) -> None:
    # `SystemExit` ends a thread silently, as with Python's own hook.
    if arguments.exc_type is SystemExit or arguments.exc_value is None:
        return
    name = arguments.thread.name if arguments.thread else "a thread"
    sys.stderr.write(f"Exception in {name}:\n")
    _print_masked(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
