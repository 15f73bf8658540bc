"""Handles signals of the driver: the first one asks the job to save and stop, and a second Ctrl-C ends it at once."""

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(slots=True)
class StopFlag:
    """Records the signals that request the end of the job. `asked` is set at the first of them.

    `interrupted` says whether Ctrl-C was among these signals.
    """

    asked: Event = field(default_factory=Event)
    interrupted: bool = False


@contextmanager
def stop_signals(tell: Callable[[str], None]) -> Generator[StopFlag]:
    """Yields a flag that SIGTERM and SIGINT set inside the `with` block.

    Only the main thread may call this function; every thread may read the flag. The previous handlers are restored when
    the block ends.

    Args:
        tell: Shows a line to the user at the first signal. The signal handler calls it in the main thread, whose code
            it can interrupt at any point.

    Raises:
        KeyboardInterrupt: At the second Ctrl-C.
    """
    stop = StopFlag()

    def take(number: int, _frame: FrameType | None) -> None:
        # Only a second SIGINT interrupts. A SIGTERM that is repeated, or that follows a SIGINT, changes nothing.
        again = stop.interrupted
        stop.interrupted |= number == signal.SIGINT
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not stop.asked.is_set():
            tell(_announcement(number))
        stop.asked.set()

    with _handler(take):
        yield stop


@contextmanager
def interrupting_signals() -> Generator[StopFlag]:
    """Makes SIGTERM and SIGINT raise a KeyboardInterrupt inside the `with` block, for a job that has nothing to save.

    Only the main thread may call this function. The yielded flag is never set. Ray's own handler of SIGTERM would print
    a stack trace.

    Raises:
        KeyboardInterrupt: At the first signal.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handler(interrupt):
        yield StopFlag()


@contextmanager
def _handler(handle: Callable[[int, FrameType | None], None]) -> Generator[None]:
    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announcement(number: int) -> str:
    if number == signal.SIGINT:
        return "Ctrl-C: the ranks save and stop; another Ctrl-C ends them without saving."
    return f"{signal.Signals(number).name}: the ranks save and stop."
