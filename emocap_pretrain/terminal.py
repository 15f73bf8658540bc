"""How the commands speak to a person: one console, errors of one line, exit codes."""

import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console

from emocap_pretrain.errors import ConfigError

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130

console = Console(highlight=False, soft_wrap=True)


@contextmanager
def errors_as_lines(*, debug: bool) -> Generator[None]:
    """An error of ours ends the process with its message on stderr; with `debug` the traceback comes too.

    Exit codes: 2 for a value to correct, 1 for a job that failed, 130 for Ctrl-C.
    """
    try:
        yield
    except Exception as error:
        if debug or not _ours(error):
            raise
        wrong_input = isinstance(getattr(error, "cause", error), ConfigError)
        # Every rank finds the same fault in a config; one voice is enough.
        if not wrong_input or os.environ.get("RANK", "0") == "0":
            _say(str(error))
        sys.exit(WRONG_INPUT if wrong_input else FAILED)
    except KeyboardInterrupt:
        _say("interrupted; start the same command again to go on.")
        sys.exit(INTERRUPTED)


def _ours(error: Exception) -> bool:
    """Whether one of our packages raised it on purpose; asked by name, so that --help need not import torch."""
    return type(error).__module__.startswith("emocap_")


def show_logs() -> None:
    """Warnings and news of our own packages on stderr."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for package in ("emocap_pretrain", "emocap_shards", "emocap_cluster"):
        logging.getLogger(package).setLevel(logging.INFO)


def _say(message: str) -> None:
    rank = os.environ.get("RANK")
    where = f"rank {rank}: " if rank else ""
    sys.stderr.write(f"error: {where}{message}\n")
