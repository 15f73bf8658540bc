"""Runs a launcher's command, and runs it again after failures, with the same policy as for jobs on Ray.

For each attempt, `relaunch` runs the command in a `ProcessTree` until the command has ended, and then ends the ranks
that still run. It reads from the run's folder how the attempt ended, and `RestartBudget` decides what follows.
"""

import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from emocap_cluster.processes import ProcessTree, send_signal
from emocap_cluster.restarts import AttemptEnd, Cause, End, RestartBudget, Stop, restart_message
from emocap_cluster.stopping import StopFlag, stop_signals

LOOK_S = 0.5
# The service of the command is asked every CHECK_S. After UNREACHABLE_S without an answer it counts as lost.
CHECK_S, UNREACHABLE_S = 5.0, 60.0
ORPHANS_S = 60.0  # Time for ranks without a launcher to save and end.
WRONG_INPUT, STOPPED = 2, 75  # Exit codes of `emocap pretrain`.
LOST = 137  # The exit code of a command that was killed, as a shell reports it.


class RelaunchedRun(Protocol):
    """Tells `relaunch` the state of the run that the command trains, from the records in the run folder.

    `done`, `progress`, `failures` and `asked_to_stop` have the same meaning as in `SupervisedRun`. `stopped` returns
    whether the newest attempt has saved and ended, because of a user's request or because of a signal.
    """

    def done(self) -> bool: ...

    def progress(self) -> int: ...

    def failures(self) -> Sequence[Cause]: ...

    def stopped(self) -> bool: ...

    def asked_to_stop(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class RelaunchResult:
    """The result of `relaunch`: how the run ended (`over`), the last exit code of the command, and whether the user
    pressed Ctrl-C.
    """

    over: Stop
    code: int
    interrupted: bool


def relaunch(
    command: Sequence[str],
    *,
    record: RelaunchedRun,
    restarts: RestartBudget,
    ask: Callable[[], None],
    say: Callable[[str], None],
    answers: Callable[[], bool] = lambda: True,
    still_trains: Callable[[], bool] = lambda: False,
    least_pause_s: float = 0.0,
) -> RelaunchResult:
    """Runs the command, and runs it again after failures, until its run is done, is stopped, or is given up.

    Only the main thread may call this function.

    Args:
        command: Starts all ranks in the foreground, and ends when they have ended.
        record: The state of the run that the command trains.
        restarts: Budget of failures.
        ask: Stores in the run folder the request that the ranks save and stop. It is called if a stop is requested
            while no rank of the command runs on this host.
        say: Shows a line to the user. The handler of signals calls it too, in the main thread.
        answers: Returns whether the service on which the command depends answers, such as the head of a Ray cluster.
            The command is killed after a minute without an answer. Otherwise it could wait without end, for example if
            the host of the head has lost its power.
        still_trains: Returns whether the run still trains although its command has ended. This is possible if the
            command only submitted a job to a cluster. While the run trains, the command is not started again.
        least_pause_s: Shortest pause before a restart. The launchers of the run on other hosts must end within this
            time.

    Raises:
        KeyboardInterrupt: At the second Ctrl-C, after all processes of the command on this host were killed.

    Example:
        ```python
        command = ["torchrun", "--nproc_per_node", "8", "-m", "emocap_pretrain.run", "cfg.yaml"]
        result = relaunch(command, record=record, restarts=RestartBudget(10), ask=ask_to_stop, say=print)
        ```
    """
    restarts = replace(restarts, progress=record.progress())
    with stop_signals(say) as stop:
        while True:
            code, trouble = _once(command, stop, ask, lambda: answers() or still_trains())
            _follow(still_trains, stop, ask)
            ended = _ended(record, code, trouble)
            restarts, then = restarts.after(ended, random.random())
            if isinstance(then, Stop):
                return RelaunchResult(then, code, stop.interrupted)
            if stop.asked.is_set():  # A launcher may report ranks that were asked to stop as a failure.
                return RelaunchResult(Stop(End.STOPPED), code, stop.interrupted)
            then = replace(then, pause_s=max(then.pause_s, least_pause_s))
            say(restart_message(ended, then))
            if stop.asked.wait(then.pause_s):
                return RelaunchResult(Stop(End.STOPPED), code, stop.interrupted)


def _once(
    command: Sequence[str], stop: StopFlag, ask: Callable[[], None], answers: Callable[[], bool]
) -> tuple[int, str]:
    """Runs the command once. `relaunch` explains `ask` and `answers`.

    Returns:
        The exit code, and a description of any other problem, or "".
    """
    asked, answered_s = False, time.monotonic()
    checked_s = answered_s
    with ProcessTree(command) as family:
        while (code := family.wait(LOOK_S)) is None:
            # First: does the service of the command still answer?
            if time.monotonic() - checked_s > CHECK_S:
                answered_s = time.monotonic() if answers() else answered_s
                checked_s = time.monotonic()
                if checked_s - answered_s > UNREACHABLE_S:
                    family.end()
                    return LOST, f"the service that it depends on did not answer for {checked_s - answered_s:.0f} s"
            # Second: pass a stop request on, once.
            if stop.asked.is_set() and not asked:
                asked = True
                # The ranks get the signal, and not the launcher: deepspeed's forwards it to one rank after the other,
                # 30 s each, or not at all. One rank is enough, because they all stop together. If no rank is on this
                # host, the request goes through the run's folder.
                ranks = family.ranks()
                send_signal(ranks, signal.SIGTERM)
                if not ranks:
                    ask()
        # If the launcher was killed, its ranks still run. They must have ended before the next attempt starts.
        orphans = family.end_ranks(ORPHANS_S)
        return code, f"{orphans} ranks survived the command" if orphans else ""


def _follow(still_trains: Callable[[], bool], stop: StopFlag, ask: Callable[[], None]) -> None:
    """Waits while the run trains although its command has ended. Calls `ask` if the user requests a stop.

    `relaunch` explains `still_trains` and `ask`.
    """
    asked = False
    while still_trains():
        if stop.asked.is_set() and not asked:
            ask()
            asked = True
        time.sleep(CHECK_S)


def _ended(record: RelaunchedRun, code: int, trouble: str) -> AttemptEnd:
    progress, failures = record.progress(), record.failures()
    if record.done():
        return AttemptEnd(End.DONE, progress)
    # Under torchrun a run that was stopped and saved ends with 0, otherwise with STOPPED.
    well = code in (0, STOPPED) and not trouble
    if record.asked_to_stop() or (well and (record.stopped() or not failures)):
        return AttemptEnd(End.STOPPED, progress)
    # A rank that only lost contact to another one may have failed as a consequence, so its failure comes last.
    cause = next((each for each in failures if not each.lost), next(iter(failures), None))
    if cause is None:
        more = f"; {trouble}" if trouble else ""
        cause = Cause("Exit", f"the command ended with code {code}{more}", final=code == WRONG_INPUT)
    return AttemptEnd(End.FAILED, progress, cause)
