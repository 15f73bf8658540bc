"""Run a launcher's command, and again where its run stands, by the policy that jobs on Ray have."""

import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from emocap_cluster.processes import Family, tell
from emocap_cluster.restarts import Cause, End, Ended, Over, Restarts, told
from emocap_cluster.stopping import Stop, listening

LOOK_S = 0.5
ORPHANS_S = 60.0  # What ranks without a launcher have to save and end.
WRONG_INPUT, STOPPED = 2, 75  # Of `emocap pretrain`.


class Record(Protocol):
    """What the run itself knows of how it stands."""

    def done(self) -> bool: ...

    def progress(self) -> int: ...

    def failures(self) -> Sequence[Cause]: ...


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
) -> Outcome:
    """Run the command until its run is done, stopped, or given up. For the main thread.

    Args:
        command: Starts all ranks and ends when they have; in the foreground.
        record: Of the run that it brings forward.
        restarts: Budget of failures.
        ask: Asks the ranks through the run's folder to save and stop: for ranks on other hosts.
        say: Shows a line to a person.

    Raises:
        KeyboardInterrupt: At the second Ctrl-C; nothing of the command is left on this host.
    """
    restarts = replace(restarts, progress=record.progress())
    with listening(say) as stop:
        while True:
            code, orphans = _once(command, stop, ask)
            ended = _ended(record, code, orphans)
            restarts, then = restarts.after(ended, random.random())
            if isinstance(then, Over):
                return Outcome(then, code, stop.interrupted)
            if stop.asked.is_set():  # A launcher whose ranks were told to stop may call that a failure.
                return Outcome(Over(End.STOPPED), code, stop.interrupted)
            say(told(ended, then))
            if stop.asked.wait(then.pause_s):
                return Outcome(Over(End.STOPPED), code, stop.interrupted)


def _once(command: Sequence[str], stop: Stop, ask: Callable[[], None]) -> tuple[int, int]:
    """The exit code, and how many ranks the launcher left behind."""
    told = False
    with Family(command) as family:
        while (code := family.wait(LOOK_S)) is None:
            if stop.asked.is_set() and not told:
                told = True
                # Not the launcher: deepspeed's tells its ranks one after another, 30 s each, or not at all. One rank
                # that knows is enough for all, and they end together; where none is here, the run's folder tells them.
                ranks = family.ranks()
                tell(ranks, signal.SIGTERM)
                if not ranks:
                    ask()
        return code, family.end_ranks(ORPHANS_S)


def _ended(record: Record, code: int, orphans: int) -> Ended:
    progress, failures = record.progress(), record.failures()
    if record.done():
        return Ended(End.DONE, progress)
    if code in (0, STOPPED) and not orphans and not failures:
        return Ended(End.STOPPED, progress)
    cause = next((each for each in failures if not each.lost), next(iter(failures), None))
    if cause is None:
        left = f" and left {orphans} ranks behind" if orphans else ""
        cause = Cause("Exit", f"the command ended with code {code}{left}", final=code == WRONG_INPUT)
    return Ended(End.FAILED, progress, cause)
