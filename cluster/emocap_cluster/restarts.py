"""What follows the end of an attempt: nothing, another attempt after a pause, or giving up. Arithmetic, no clock."""

from dataclasses import dataclass, replace
from enum import Enum

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


class End(Enum):
    """How an attempt ended."""

    DONE = "done"
    STOPPED = "stopped"  # Somebody asked; it is saved.
    DRAINED = "drained"  # A node was announced to go; it is saved.
    GROWING = "growing"  # It is saved, so that the next attempt has more ranks.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why an attempt failed: `kind` is the error's class, `step` the one that `rank` was at, where that is known.

    `final` causes come again at every try (a wrong setting); `lost` ones only say that another rank is gone; `passing`
    ones are outages of something else, which may end, so that the same one twice is no bug of ours; `planned` ones are
    steps back that the run decided on, and has a budget of its own for.
    """

    kind: str
    message: str
    rank: int | None = None
    host: str = ""
    step: int | None = None
    final: bool = False
    lost: bool = False
    passing: bool = False
    planned: bool = False

    def __str__(self) -> str:
        if self.lost:  # It speaks of another rank.
            return self.message
        who = "the job" if self.rank is None else f"rank {self.rank}"
        where = f" on {self.host}" if self.host else ""
        when = "" if self.step is None else f" at step {self.step}"
        return f"{who}{where} failed{when}: {self.kind}: {self.message}"

    @property
    def signature(self) -> tuple[int, str, str] | None:
        """What a bug repeats; None where a repetition proves nothing."""
        if self.step is None or self.lost or self.passing:
            return None
        return self.step, self.kind, self.message


@dataclass(frozen=True, slots=True)
class Ended:
    """One attempt's end; `progress` is the step of the run's newest committed checkpoint."""

    how: End
    progress: int
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Again:
    """Another attempt, `pause_s` from now."""

    pause_s: float


@dataclass(frozen=True, slots=True)
class Over:
    """No further attempt; `reason` says why a job is given up."""

    how: End
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Restarts:
    """The budget of a job and what it has used up so far, as a value.

    Args:
        max_restarts: Failures in a row, without a new checkpoint between them, before the job ends.
        max_preemptions: Announced losses of nodes before the job ends; None is any number.
        progress: Newest checkpoint at the end of the last attempt, or before the first.
        failures: In a row, since `progress` moved.
        preemptions: So far.
        last: The cause of the attempt before, if it failed.
    """

    max_restarts: int
    max_preemptions: int | None = None
    progress: int = 0
    failures: int = 0
    preemptions: int = 0
    last: Cause | None = None

    def after(self, ended: Ended, luck: float) -> "tuple[Restarts, Again | Over]":
        """The state behind this end, and what to do.

        Args:
            ended: How the attempt ended.
            luck: Uniform in [0, 1): where in its range the pause lies (full jitter), so that many jobs that one
                outage has ended do not come back at once.
        """
        moved = ended.progress > self.progress
        state = replace(self, progress=max(self.progress, ended.progress), failures=0 if moved else self.failures)
        if ended.how in (End.DONE, End.STOPPED):
            return state, Over(ended.how)
        if ended.how is End.GROWING:
            return replace(state, last=None), Again(0.0)
        if ended.how is End.DRAINED:
            return state._after_drain()
        return state._after_failure(ended.cause or Cause("Unknown", "no rank left word"), luck)

    def _after_drain(self) -> "tuple[Restarts, Again | Over]":
        state = replace(self, preemptions=self.preemptions + 1, last=None)
        if self.max_preemptions is not None and state.preemptions > self.max_preemptions:
            return state, Over(
                End.DRAINED,
                f"nodes were taken away {state.preemptions} times and cluster.max_preemptions={self.max_preemptions}: "
                "the run is saved; the same command goes on from there.",
            )
        return state, Again(0.0)

    def _after_failure(self, cause: Cause, luck: float) -> "tuple[Restarts, Again | Over]":
        if cause.planned:
            return replace(self, last=None), Again(0.0)
        state = replace(self, failures=self.failures + 1, last=cause)
        if cause.final:
            return state, Over(End.FAILED, str(cause))
        if cause.signature and self.last and self.last.signature == cause.signature:
            return state, Over(End.FAILED, f"{cause} (the same twice in a row, so it is not tried again)")
        if state.failures > self.max_restarts:
            times = "" if state.failures == 1 else f" ({state.failures} failures in a row without a new checkpoint)"
            return state, Over(End.FAILED, f"{cause}{times}")
        return state, Again(luck * longest_pause_s(state.failures))


def longest_pause_s(failures: int) -> float:
    """Before the attempt that follows so many failures in a row: none after the first, then 1 s, 2 s, 4 s, ... 60 s."""
    return 0.0 if failures <= 1 else min(LONGEST_PAUSE_S, SHORTEST_PAUSE_S * 2.0 ** min(failures - 2, 10))


def told(ended: Ended, then: Again) -> str:
    """What a person reads between two attempts."""
    where = f"from step {ended.progress}" if ended.progress else "from the beginning"
    if ended.how is not End.FAILED:
        return f"Going on {where}."
    when = f"in {then.pause_s:.0f} s" if then.pause_s >= 1 else "now"
    return f"{ended.cause}\nStarting again {when}, {where}."
