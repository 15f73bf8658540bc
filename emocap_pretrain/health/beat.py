"""A rank's sign of life: where its training stands, and for how long it has stood there."""

import threading
from collections.abc import Callable
from typing import NamedTuple

import orjson

# In the order in which training passes through them behind a step; who is at an earlier one keeps the others waiting.
PHASES = ("opening", "saving", "training", "data", "forward", "loss", "backward", "update", "evaluating")
# These may take as long as they take: building a model, compiling it, writing to a store that is away, evaluating.
UNBOUNDED = frozenset({"opening", "saving", "evaluating"})
DONE, LOST = "done", "lost"


class Beat:
    """What the training thread says of itself: plain attributes, so that it never waits for anything here.

    Made in that thread, which is not the main thread under Ray.
    """

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.step, self.phase, self.marks, self.ended = 0, PHASES[0], 0, ""
        self._first_step: int | None = None

    def enter(self, phase: str, step: int) -> None:
        """Training has done `step` steps and begins `phase`."""
        if phase not in UNBOUNDED and self._first_step is None:
            self._first_step = step
        self.step = step
        self.mark(phase)

    def mark(self, phase: str) -> None:
        """Progress within a step."""
        self.phase = phase
        self.marks += 1

    def end(self, how: str) -> None:
        """No more progress is to be expected: `DONE`, `LOST` (another rank is gone), or the error's words."""
        self.ended = how

    @property
    def bounded(self) -> bool:
        """Whether a long stay here is a hang. The first step of an attempt may compile; fetching data does not."""
        first = self._first_step
        return self.phase not in UNBOUNDED and first is not None and (self.step > first or self.phase == "data")


class Pulse(NamedTuple):
    """One sign of life as the others see it; a tuple, because rank 0 of a large job reads a thousand each second.

    `number` grows with every pulse; `idle_s` is how long the training thread has made no progress, by the rank's own
    clock; `collectives` is how many it has begun.
    """

    rank: int
    pid: int
    number: int
    step: int
    phase: str
    idle_s: float
    bounded: bool
    collectives: int = 0
    ended: str = ""

    @property
    def place(self) -> tuple[int, int, int]:
        """How far the rank is in the program; ranks with the same place wait for each other."""
        order = PHASES.index(self.phase) if self.phase in PHASES else len(PHASES)
        return self.step, order, self.collectives

    def dump(self) -> str:
        return orjson.dumps(tuple(self)).decode()

    @classmethod
    def parse(cls, text: str | bytes) -> "Pulse":
        return cls(*orjson.loads(text))


class Stopwatch:
    """Seconds without change, counted in the ticks of whoever looks.

    One tick counts `longest_tick_s` at most: a process that was itself asleep (a paused laptop, a frozen container) has
    not seen anything meanwhile and must not blame others.
    """

    def __init__(self, longest_tick_s: float) -> None:
        self._longest_tick_s = longest_tick_s
        self._last_s: float | None = None
        self._seen: object = None
        self.seconds = 0.0

    def look(self, now_s: float, seen: object) -> float:
        """The seconds for which `seen` has not changed."""
        tick_s = 0.0 if self._last_s is None else min(now_s - self._last_s, self._longest_tick_s)
        self._last_s = now_s
        self.seconds = self.seconds + tick_s if seen == self._seen else 0.0
        self._seen = seen
        return self.seconds


class Pulses:
    """Turns the training thread's word into numbered pulses."""

    def __init__(self, beat: Beat, rank: int, pid: int, stopwatch: Stopwatch, collectives: Callable[[], int]) -> None:
        self._beat, self._rank, self._pid, self._stopwatch = beat, rank, pid, stopwatch
        self._collectives = collectives
        self._count = 0

    def next(self, now_s: float) -> Pulse:
        beat = self._beat
        self._count += 1
        idle_s = round(self._stopwatch.look(now_s, beat.marks), 1)
        where = (beat.step, beat.phase, idle_s, beat.bounded, self._collectives(), beat.ended)
        return Pulse(self._rank, self._pid, self._count, *where)
