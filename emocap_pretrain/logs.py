"""Writes lines for people: logs and tracebacks, without secrets and control characters.

Every process of a run installs both: the command, the ranks of each launcher, the loader processes.
"""

import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import Any, cast

from emocap_shards.mask import masked
from emocap_shards.printable import printable

OURS = ("emocap_pretrain", "emocap_shards", "emocap_cluster")


def shown(text: str) -> str:
    """The text as it may be shown, whoever wrote it: no secret, no control character; line feeds stay."""
    return printable(masked(text), lines=True)


def shown_tree(tree: Any) -> Any:
    """A JSON value with every text in it masked."""
    if isinstance(tree, str):
        return masked(tree)
    if isinstance(tree, dict):
        return {masked(str(key)): shown_tree(value) for key, value in cast("dict[str, Any]", tree).items()}
    return [shown_tree(each) for each in cast("list[Any]", tree)] if isinstance(tree, list | tuple) else tree


def show_logs(level: int = logging.INFO) -> None:
    """Warnings, and records of our own packages from `level` on, go to stderr.

    Messages of all loggers are masked, also those for which a library has a handler of its own.
    """
    logging.setLogRecordFactory(ShownRecord)
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        if type(handler.formatter) in {logging.Formatter, type(None)}:
            handler.setFormatter(ShownLines("%(message)s"))
    for package in OURS:
        logging.getLogger(package).setLevel(level)


def guard_tracebacks() -> None:
    """Mask what Python prints of errors that nobody catches; for the first lines of a process."""
    sys.excepthook = _told
    threading.excepthook = _told_of_thread


class ShownRecord(logging.LogRecord):
    """A record whose message holds no secret and no control character."""

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        return shown(super().getMessage())


class ShownLines(logging.Formatter):
    """Tracebacks are masked too, and further lines are indented: no text can pass for a record of its own."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record)).replace("\n", "\n  ")


def conceal(error: BaseException) -> None:
    """Mask the texts of an error and of those that it came from, in place: a framework will print them."""
    seen = set[int]()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        each.args = tuple(masked(part) if isinstance(part, str) else part for part in each.args)
        left += [each.__cause__, each.__context__]


def _told(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    sys.stderr.write(shown("".join(traceback.format_exception(kind, error, where))))


def _told_of_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_type is SystemExit or arguments.exc_value is None:
        return
    name = arguments.thread.name if arguments.thread else "a thread"
    sys.stderr.write(f"Exception in {name}:\n")
    _told(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
