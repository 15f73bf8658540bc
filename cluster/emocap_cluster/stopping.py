"""Signals of the driver: the first asks the job to save and stop, Ctrl-C a second time ends it as it is."""

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from types import FrameType

ASKED = (signal.SIGTERM, signal.SIGINT)


@dataclass(slots=True)
class Stop:
    """Whether the job was told to end; `interrupted` if by Ctrl-C."""

    asked: Event = field(default_factory=Event)
    interrupted: bool = False


@contextmanager
def listening(tell: Callable[[str], None]) -> Generator[Stop]:
    """Take SIGTERM and SIGINT for as long as the block lasts; for the main thread.

    Raises:
        KeyboardInterrupt: At the second Ctrl-C.
    """
    stop = Stop()

    def take(number: int, _frame: FrameType | None) -> None:
        again = stop.interrupted
        stop.interrupted |= number == signal.SIGINT
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not stop.asked.is_set():
            tell(f"{signal.Signals(number).name}: the ranks save and stop{_at_once(number)}.")
        stop.asked.set()

    before = {number: signal.signal(number, take) for number in ASKED}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _at_once(number: int) -> str:
    return "; once more ends them without" if number == signal.SIGINT else ""
