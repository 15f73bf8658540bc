"""Run a launcher's command, and again where its run stands, by the policy that jobs on Ray have."""

import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from emocap_cluster.processes import Family, tell
from emocap_cluster.restarts import Cause, End, Ended, Over, Restarts, told
from emocap_cluster.stopping import Stop, listening

LOOK_S = 0.5
KNOCK_S, AWAY_S = 5.0, 60.0
ORPHANS_S = 60.0  # What ranks without a launcher have to save and end.
WRONG_INPUT, STOPPED = 2, 75  # Of `emocap pretrain`.
LOST = 137  # As a shell says that a command was killed.


class Record(Protocol):
    """What the run itself knows of how it stands."""

    def done(self) -> bool: ...

    def progress(self) -> int: ...

    def failures(self) -> Sequence[Cause]: ...

    def stopped(self) -> bool: ...

    def asked_to_stop(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended, the last exit code, and whether Ctrl-C stopped it."""

    over: Over
    code: int
    interrupted: bool


def relaunch(
    command: Sequence[str],
    *,
    record: Record,
    restarts: Restarts,
    ask: Callable[[], None],
    say: Callable[[str], None],
    answers: Callable[[], bool] = lambda: True,
    goes_on: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run the command until its run is done, stopped, or given up. For the main thread.

    Args:
        command: Starts all ranks and ends when they have; in the foreground.
        record: Of the run that it brings forward.
        restarts: Budget of failures.
        ask: Asks the ranks through the run's folder to save and stop: for ranks on other hosts.
        say: Shows a line to a person.
        answers: Whether what the command talks to is there, such as Ray's head. A command may wait for ever for one
            that has lost its power; it is ended once that did not answer for a minute.
        goes_on: Whether the run trains although the command has ended or waits in vain: the ranks of a job that was
            submitted do not need it. Then it is not started again.

    Raises:
        KeyboardInterrupt: At the second Ctrl-C; nothing of the command is left on this host.
    """
    restarts = replace(restarts, progress=record.progress())
    with listening(say) as stop:
        while True:
            code, trouble = _once(command, stop, ask, lambda: answers() or goes_on())
            _follow(goes_on, stop, ask)
            ended = _ended(record, code, trouble)
            restarts, then = restarts.after(ended, random.random())
            if isinstance(then, Over):
                return Outcome(then, code, stop.interrupted)
            if stop.asked.is_set():  # A launcher whose ranks were told to stop may call that a failure.
                return Outcome(Over(End.STOPPED), code, stop.interrupted)
            say(told(ended, then))
            if stop.asked.wait(then.pause_s):
                return Outcome(Over(End.STOPPED), code, stop.interrupted)


def _once(command: Sequence[str], stop: Stop, ask: Callable[[], None], answers: Callable[[], bool]) -> tuple[int, str]:
    """The exit code, and what besides was wrong."""
    told, heard = False, time.monotonic()
    knocked = heard
    with Family(command) as family:
        while (code := family.wait(LOOK_S)) is None:
            if time.monotonic() - knocked > KNOCK_S:
                heard = time.monotonic() if answers() else heard
                knocked = time.monotonic()
                if knocked - heard > AWAY_S:
                    family.end()
                    return LOST, f"what it talks to did not answer for {knocked - heard:.0f} s"
            if stop.asked.is_set() and not told:
                told = True
                # Not the launcher: deepspeed's tells its ranks one after another, 30 s each, or not at all. One rank
                # that knows is enough for all, and they end together; where none is here, the run's folder tells them.
                ranks = family.ranks()
                tell(ranks, signal.SIGTERM)
                if not ranks:
                    ask()
        orphans = family.end_ranks(ORPHANS_S)
        return code, f"it left {orphans} ranks behind" if orphans else ""


def _follow(goes_on: Callable[[], bool], stop: Stop, ask: Callable[[], None]) -> None:
    """Wait for a run that needs its command no more."""
    asked = False
    while goes_on():
        if stop.asked.is_set() and not asked:
            ask()
            asked = True
        time.sleep(KNOCK_S)


def _ended(record: Record, code: int, trouble: str) -> Ended:
    progress, failures = record.progress(), record.failures()
    if record.done():
        return Ended(End.DONE, progress)
    well = code in (0, STOPPED) and not trouble
    if record.asked_to_stop() or (well and (record.stopped() or not failures)):
        return Ended(End.STOPPED, progress)
    cause = next((each for each in failures if not each.lost), next(iter(failures), None))
    if cause is None:
        more = f"; {trouble}" if trouble else ""
        cause = Cause("Exit", f"the command ended with code {code}{more}", final=code == WRONG_INPUT)
    return Ended(End.FAILED, progress, cause)
