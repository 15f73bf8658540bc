"""Holds the position of the training thread in the program, which the other threads of its rank read.

The loop writes the position (`Monitor.enter`, and the sections of a step through `SectionTimer`). Two threads read it:
the exchange of heartbeats on every rank, and the status of the run on rank 0.
"""

import threading

# "before_training" is the evaluation before the first step. A step passes through the phases after it in this order.
# Ranks in a later phase wait for a rank in an earlier phase. After step N follow "training" (the exchange of its
# metrics), "saving", "saved" (the work after a save), and "evaluating". In these phases N steps are done, as in the
# phases of step N + 1 ("data" to "update"), which come later. One case breaks the order: after the last step, "saving"
# follows "saved". There no rank waits for the training thread of another rank.
PHASES = (
    "opening",
    "before_training",
    "training",
    "saving",
    "saved",
    "evaluating",
    "data",
    "forward",
    "loss",
    "backward",
    "update",
)
# These phases may take any time: they build and compile a model, write to a store that is unreachable, or evaluate.
UNBOUNDED_PHASES = frozenset({"opening", "before_training", "saving", "evaluating"})
# How training ended on a rank: without an error, or because it lost another rank.
DONE, LOST = "done", "lost"
# A process that was asleep (a paused laptop, a frozen container) has read no heartbeats meanwhile. So it must not count
# the time of its sleep, or it would report the other ranks as lost.
MAX_TICK_S = 8.0


class UnchangedTimer:
    """Counts the seconds for which a value has not changed. Its owner must call `update` about every second.

    The time between two calls counts as `MAX_TICK_S` at most. So if this process was suspended between the calls, the
    timer hardly counts that time.

    Example:
        timer = UnchangedTimer()
        timer.update(0.0, "a"), timer.update(5.0, "a"), timer.update(60.0, "a"), timer.update(61.0, "b")
        # (0.0, 5.0, 13.0, 0.0): of the 55 s between the second and the third call, 8 s count.
    """

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._value: object = None
        self.seconds = 0.0

    def update(self, now_s: float, value: object) -> float:
        """Returns for how many seconds `value` has not changed, at the monotonic time `now_s`."""
        tick_s = 0.0 if self._last_s is None else min(now_s - self._last_s, MAX_TICK_S)
        self._last_s = now_s
        self.seconds = self.seconds + tick_s if value == self._value else 0.0
        self._value = value
        return self.seconds


class TrainingPosition:
    """Holds the step and the phase of the training thread.

    The training thread makes this object and is the only one that writes to it. It sets plain attributes, so it never
    waits for a thread that reads them. A reader may see a new step with the old phase for a moment, and reads again a
    second later.

    Attributes:
        thread: The identifier of the training thread. Under Ray it is not the main thread.
        step: The number of steps that are done.
        phase: One of `PHASES`.
        changes: Counts how often a phase was entered. A change of this number shows progress.
        ended: Empty while training continues, then `DONE`, `LOST` or the message of an error.
    """

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.step, self.phase, self.changes, self.ended = 0, PHASES[0], 0, ""
        self._first_step: int | None = None

    def enter(self, phase: str, step: int) -> None:
        """Records that `phase` begins when `step` steps are done."""
        if phase not in UNBOUNDED_PHASES and self._first_step is None:
            self._first_step = step
        self.step = step
        self.enter_section(phase)

    def enter_section(self, phase: str) -> None:
        """Records that `phase` begins. The number of steps that are done does not change."""
        self.phase = phase
        self.changes += 1

    def end(self, reason: str) -> None:
        """Records that training has ended with `DONE`, `LOST` or the message of an error."""
        self.ended = reason

    @property
    def bounded(self) -> bool:
        """Returns whether a rank that stays at this position for a long time counts as hanging.

        In the first step of an attempt, kernels may compile for a long time. So in this step the result is True only in
        the phase "data".
        """
        first = self._first_step
        return self.phase not in UNBOUNDED_PHASES and first is not None and (self.step > first or self.phase == "data")
