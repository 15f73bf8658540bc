"""Decides what follows the end of an attempt: the job is over, is started again after a pause, or is given up.

The rules are those of decision 15. Their results depend on the arguments alone: the functions read no clock, and the
caller passes the random number. So every sequence of attempts can be tested. `supervise` and `relaunch` use the same
rules.
"""

from dataclasses import dataclass, replace
from enum import Enum

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


class End(Enum):
    """The ways in which an attempt can end."""

    DONE = "done"
    STOPPED = "stopped"  # The user requested it; the run is saved.
    DRAINED = "drained"  # A node will be removed; the run is saved.
    GROWING = "growing"  # The run is saved, so that the next attempt has more ranks.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Cause:
    """The reason why an attempt failed.

    Attributes:
        kind: Name of the class of the error.
        message: The error's message.
        rank: The rank that failed, if it is known.
        host: The host of that rank.
        step: The training step at which the rank failed, if it is known.
        final: Whether every retry would fail in the same way, as with a wrong setting.
        lost: Whether the error only says that another rank is lost.
        passing: Whether the cause is temporary: something outside the run, such as the store, failed and may recover.
            The same failure twice in a row then does not prove a bug.
        planned: Whether the attempt ended for a roll-back: the run resumes from its newest checkpoint after a bad loss.
            The run limits its roll-backs itself, and `RestartBudget` does not count them.
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
        if self.lost:  # The message describes another rank.
            return self.message
        who = "the job" if self.rank is None else f"rank {self.rank}"
        where = f" on {self.host}" if self.host else ""
        when = "" if self.step is None else f" at step {self.step}"
        return f"{who}{where} failed{when}: {self.kind}: {self.message}"

    @property
    def signature(self) -> tuple[int, str, str] | None:
        """The step, kind and message. If they are the same for two failures in a row, the failure counts as a bug.

        The signature is None if equal failures do not prove a bug: the step is unknown, the error only says that
        another rank is lost, or the cause is `passing`.
        """
        if self.step is None or self.lost or self.passing:
            return None
        return self.step, self.kind, self.message


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """The end of one attempt; `progress` is the step of the run's newest committed checkpoint."""

    how: End
    progress: int
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """The decision that another attempt follows after a pause of `pause_s` seconds."""

    pause_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """The decision that no further attempt follows. `how` says how the job ended.

    `reason` says why the job is given up; it is empty if the job is done or was stopped.
    """

    how: End
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RestartBudget:
    """The limits on restarts of a job, and how much of them is used. Instances are immutable.

    Args:
        max_restarts: Largest number of failures in a row after which the job is started again. Two failures are in a
            row if there is no new checkpoint between them.
        max_preemptions: Largest number of announced losses of nodes after which the job is started again. With None
            there is no limit.
        progress: Largest step of a committed checkpoint so far, as found at the start of the job and at the end of each
            attempt.
        failures: Failures in a row since `progress` last grew.
        preemptions: Announced losses of nodes so far.
        last: The cause of the last attempt's failure. None if that attempt did not fail, or ended for a roll-back.

    Example:
        ```python
        budget, then = budget.after(AttemptEnd(End.FAILED, progress=100, cause=cause), random.random())
        if isinstance(then, Retry):
            time.sleep(then.pause_s)
        ```
    """

    max_restarts: int
    max_preemptions: int | None = None
    progress: int = 0
    failures: int = 0
    preemptions: int = 0
    last: Cause | None = None

    def after(self, ended: AttemptEnd, luck: float) -> "tuple[RestartBudget, Retry | Stop]":
        """Returns the budget after the end of an attempt, and whether to retry or to stop.

        Args:
            ended: How the attempt ended.
            luck: A uniform random number in [0, 1) that selects the pause within its range (full jitter). So jobs that
                ended in the same outage do not return at the same moment.
        """
        # A new checkpoint means that the job gets on, so its failures are counted from 0 again. An older newest
        # checkpoint than before is no progress, and does not lower `progress`.
        moved = ended.progress > self.progress
        state = replace(self, progress=max(self.progress, ended.progress), failures=0 if moved else self.failures)
        if ended.how in (End.DONE, End.STOPPED):
            return state, Stop(ended.how)
        if ended.how is End.GROWING:
            # Without `last`, the next failure is never the same one "twice in a row".
            return replace(state, last=None), Retry(0.0)
        if ended.how is End.DRAINED:
            return state._after_drain()
        return state._after_failure(ended.cause or Cause("Unknown", "no rank reported a cause"), luck)

    def _after_drain(self) -> "tuple[RestartBudget, Retry | Stop]":
        state = replace(self, preemptions=self.preemptions + 1, last=None)
        if self.max_preemptions is not None and state.preemptions > self.max_preemptions:
            return state, Stop(
                End.DRAINED,
                f"nodes were removed {state.preemptions} times and cluster.max_preemptions={self.max_preemptions}: "
                "the run is saved; the same command resumes it.",
            )
        return state, Retry(0.0)

    def _after_failure(self, cause: Cause, luck: float) -> "tuple[RestartBudget, Retry | Stop]":
        if cause.planned:
            return replace(self, last=None), Retry(0.0)
        state = replace(self, failures=self.failures + 1, last=cause)
        if cause.final:
            return state, Stop(End.FAILED, str(cause))
        if cause.signature and self.last and self.last.signature == cause.signature:
            return state, Stop(End.FAILED, f"{cause} (the same failure twice in a row, so there is no retry)")
        if state.failures > self.max_restarts:
            times = "" if state.failures == 1 else f" ({state.failures} failures in a row without a new checkpoint)"
            return state, Stop(End.FAILED, f"{cause}{times}")
        return state, Retry(luck * longest_pause_s(state.failures))


def longest_pause_s(failures: int) -> float:
    """Returns the longest pause after this many failures in a row.

    It is 0 s after the first failure, then 1 s, 2 s, 4 s and so on, up to 60 s.
    """
    # The exponent is bounded, because 2.0 ** 1024 raises an OverflowError.
    return 0.0 if failures <= 1 else min(LONGEST_PAUSE_S, SHORTEST_PAUSE_S * 2.0 ** min(failures - 2, 10))


def restart_message(ended: AttemptEnd, then: Retry) -> str:
    """Returns the message that the user sees between two attempts."""
    where = f"from step {ended.progress}" if ended.progress else "from the beginning"
    if ended.how is not End.FAILED:
        return f"Continuing {where}."
    when = f"in {then.pause_s:.0f} s" if then.pause_s >= 1 else "now"
    return f"{ended.cause}\nStarting again {when}, {where}."
