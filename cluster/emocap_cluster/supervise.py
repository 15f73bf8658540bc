"""Supervises a job: a sequence of attempts, each on the devices that exist and from the newest checkpoint.

`_Supervisor.run` is the loop. In each iteration, `_devices` waits for devices and `_attempt` starts the ranks on them.
`_watch` observes the ranks, the nodes and the user's requests until all ranks have ended. Then `RestartBudget.after`
decides whether another attempt follows. All of this runs in the main thread of the driver.

The ranks run in processes of their own. The driver can ask the ranks to stop only through the board, an actor that
passes messages. The ranks then save and end. Unless the user has requested the stop, the next attempt begins, with the
devices that exist then.
"""

import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from emocap_cluster.board import BoardState, StepReport
from emocap_cluster.causes import SILENT_ENDS, error_of, root_cause, was_announced
from emocap_cluster.cluster import Cluster
from emocap_cluster.errors import NoCluster, RankFailed
from emocap_cluster.placement import Node, Placement, ResourceRequest, place
from emocap_cluster.ranks import Function, start
from emocap_cluster.restarts import AttemptEnd, Cause, End, RestartBudget, Stop, restart_message
from emocap_cluster.stopping import StopFlag, interrupting_signals, stop_signals

# Pauses between two looks at the ranks, two looks at the nodes (decision 15), and two lines about a wait for devices.
LOOK_S, NODES_S, REMIND_S = 0.5, 2.0, 60.0


class SupervisedRun(Protocol):
    """Tells the supervisor the state of a run. The training code implements this protocol.

    `done` returns whether the run has done all steps and written its report. All methods are called in the main thread
    of the driver, and may read the run's folder.
    """

    def done(self) -> bool: ...

    def progress(self) -> int:
        """Returns the step of the newest committed checkpoint; 0 without one."""
        ...

    def failures(self) -> Sequence[Cause]:
        """Returns the causes that ranks have stored since the last call, so each cause is returned once.

        The causes of the newest attempt come first; those of one attempt are ordered by rank.
        """
        ...

    def asked_to_stop(self) -> bool:
        """Returns whether the newest attempt ended because a user requested a stop."""
        ...

    def cause_of(self, rank: int, error: Exception) -> Cause:
        """Converts an error that a rank raised to a `Cause`."""
        ...


class ProgressDisplay(Protocol):
    """Shows lines and progress to the user.

    The signal handler also calls `say`. This may interrupt a call of `say` or `show_progress` in the main thread.
    """

    def say(self, line: str) -> None: ...

    def show_progress(self, step: int, steps: int, note: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Job:
    """The function of a job, the devices for it, and limits on its restarts.

    Args:
        function: Called on every rank with the rank's `RayRuntime`; picklable.
        request: The devices that the job requests.
        restarts: How often the job may be started again.
        patience_s: How long the job waits for lost devices to return.
        timeout_s: Longest wait in a collective.
        env: Environment variables for the ranks; their values may be secret.
        can_save: Whether the ranks save and end when the driver asks them to. If not, they are never asked: SIGTERM and
            Ctrl-C end the driver with a KeyboardInterrupt, and the ranks work until their node is lost.
    """

    function: Function
    request: ResourceRequest
    restarts: RestartBudget
    patience_s: float
    timeout_s: int
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    can_save: bool = True


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt, from `began_s` until `ended_s`, both in seconds since the start of the job."""

    ranks: int
    began_s: float
    ended_s: float
    ended: AttemptEnd


@dataclass(frozen=True, slots=True)
class JobHistory:
    """The attempts of a job and how the job ended.

    `interrupted` says that Ctrl-C stopped it, and `value` is what the function has returned on rank 0 in the last
    attempt; None if that attempt failed.
    """

    how: End
    attempts: tuple[AttemptRecord, ...]
    interrupted: bool = False
    value: Any = None


def supervise(job: Job, cluster: Cluster, record: SupervisedRun, screen: ProgressDisplay) -> JobHistory:
    """Runs the job to its end. Only the main thread may call this function.

    The call blocks until the job has ended. SIGTERM and Ctrl-C during the call ask the ranks to save and stop, if they
    can save.

    The job is started again after failures and preemptions, as long as its budget of restarts allows it. It is also
    started again when more devices become available.

    Raises:
        NoCluster: If there are too few devices for a first attempt, or the Ray cluster that the job started has ended.
        RankFailed: If the job is given up; the message says why.
        KeyboardInterrupt: At SIGTERM or Ctrl-C, if the ranks cannot save.

    Example:
        ```python
        with connected({}) as cluster:
            history = supervise(job, cluster, record, screen)
        ```
    """
    with stop_signals(screen.say) if job.can_save else interrupting_signals() as stop:
        return _Supervisor(job, cluster, record, screen, stop).run()


class _Supervisor:
    def __init__(
        self, job: Job, cluster: Cluster, record: SupervisedRun, screen: ProgressDisplay, stop: StopFlag
    ) -> None:
        self._job = job
        self._cluster = cluster
        self._record = record
        self._screen = screen
        self._stop = stop
        self._began_s = time.monotonic()
        self._attempts: list[AttemptRecord] = []
        self._value: Any = None

    def run(self) -> JobHistory:
        # A job that resumes a run begins with the run's checkpoint, which is not progress of this job.
        restarts = replace(self._job.restarts, progress=self._record.progress())
        while placement := self._devices():
            began_s = self._now_s()
            ended, failed = self._attempt(placement)
            self._attempts.append(AttemptRecord(placement.ranks, began_s, self._now_s(), ended))
            restarts, then = restarts.after(ended, random.random())
            if isinstance(then, Stop):
                return self._over(then, failed)
            if self._stop.asked.is_set():
                # The user's request came while the attempt ended for another reason. No further attempt follows.
                return self._over(Stop(End.FAILED, str(ended.cause)) if ended.cause else Stop(End.STOPPED), failed)
            self._screen.say(restart_message(ended, then))
            self._stop.asked.wait(then.pause_s)
        return self._over(Stop(End.STOPPED), None)

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    def _over(self, over: Stop, failed: RankFailed | None) -> JobHistory:
        if over.how is End.FAILED:
            raise RankFailed(over.reason, cause=error_of(failed, self._attempts[-1].ended.cause))
        if over.reason:
            self._screen.say(over.reason)
        return JobHistory(over.how, tuple(self._attempts), self._stop.interrupted, self._value)

    def _attempt(self, placement: Placement) -> tuple[AttemptEnd, RankFailed | None]:
        job, board = self._job, self._cluster.board
        self._cluster.begin()
        running = start(
            job.function,
            placement=placement,
            board=board,
            env=job.env,
            timeout_s=job.timeout_s,
            on_loopback=self._cluster.own,
        )
        asked, state = self._watch(running, placement)
        # If the job's own Ray has ended, the ranks have failed because of it, and there is nothing to release.
        self._check_ray()
        self._cluster.release()
        failed = running.exception()
        if failed is None:
            self._value = running.result()
            return AttemptEnd(self._how(asked), self._record.progress()), None
        if not isinstance(failed, RankFailed):
            raise failed  # It was not a rank that failed, so there is nothing to decide.
        cause = root_cause(failed, self._record.failures(), self._record.cause_of, state.hosts)
        # Ranks that are lost with an announced node are a preemption. Any other error is a failure, also during a stop.
        gone = cause.lost or cause.kind in SILENT_ENDS
        how = End.DRAINED if gone and (asked is End.DRAINED or was_announced(failed)) else End.FAILED
        return AttemptEnd(how, self._record.progress(), cause if how is End.FAILED else None), failed

    def _how(self, asked: End | None) -> End:
        """Returns how the attempt ended, for an attempt in which no rank raised an error.

        The result is `DONE` if the run is done. Otherwise a stop request of the user takes precedence over `asked`.

        Args:
            asked: The reason for which the driver asked the ranks to stop. None means that it did not ask, and counts
                as `STOPPED`.
        """
        if self._record.done():
            return End.DONE
        return End.STOPPED if self._record.asked_to_stop() else asked or End.STOPPED

    def _watch(self, running: Future[Any], placement: Placement) -> tuple[End | None, BoardState]:
        """Watches the ranks until all have ended.

        Returns:
            The reason for which the driver asked the ranks to stop, or None; and the last state that ranks reported.
        """
        asked, state, nodes, looked_s, shown = None, BoardState(), list[Node](), -NODES_S, StepReport(0, 0, "")
        while not wait([running], timeout=LOOK_S).done:
            self._check_ray()
            # The board may be empty or not answer for a moment, so what it said before is kept.
            state = (self._cluster.state() or state).merged_with(state)
            if state.report and state.report != shown:
                shown = state.report
                self._screen.show_progress(shown.step, shown.steps, shown.note)
            if self._now_s() - looked_s >= NODES_S:
                nodes, looked_s = self._cluster.nodes(), self._now_s()
            # The first reason is kept. If the user asks after that, `run` makes no further attempt.
            if asked is None and (asked := self._reason(state, nodes, placement)) and asked is not End.STOPPED:
                self._screen.say(_stop_message(asked))
            if asked:  # Repeated, because a board whose process was restarted has lost the request.
                self._cluster.board.request_stop.remote()
        return asked, state

    def _check_ray(self) -> None:
        """Raises an error if the job's own Ray cluster has ended.

        Without this check, Ray would end the driver without a message about 14 s after the end of the cluster.

        Raises:
            NoCluster: If a process of the cluster has ended.
        """
        if gone := self._cluster.gone():
            raise NoCluster(
                f"the job's own Ray has ended (no {' and no '.join(gone)}): the same command resumes the run."
            )

    def _reason(self, state: BoardState, nodes: Sequence[Node], placement: Placement) -> End | None:
        if self._stop.asked.is_set():
            return End.STOPPED
        if not self._job.can_save:
            return None
        # Ray lists a node once it has joined, also while others use its devices. So growth needs free devices too.
        more = growth(state, nodes, placement, self._job.request)
        if drains(state, nodes):
            return End.DRAINED
        return End.GROWING if more and self._cluster.has_free(more, placement) else None

    def _devices(self) -> Placement | None:
        """Waits for the devices of the next attempt, and returns its placement. Returns None if a stop is requested.

        An attempt needs devices for at least `request.least` ranks. For up to `patience_s`, the method waits until the
        devices suffice for the wanted number of ranks. After that it accepts fewer ranks. On a Ray cluster that the job
        started on its own host it accepts fewer at once, because no further nodes can join.

        The wanted number is `request.ranks`, or the number of ranks of the last attempt if `request.ranks` is None.
        It is at most `request.most`. If `request.ranks` is None, the first attempt takes all devices that exist.

        Raises:
            NoCluster: If after `patience_s` there are too few devices for a first attempt, or if the job's own Ray
                cluster has ended. A later attempt waits without a limit for the devices that it needs.
        """
        job, before = self._job, self._attempts[-1].ranks if self._attempts else 0
        wanted = min(job.request.ranks or before, job.request.most)
        # A cluster that consists of this host alone gets no further nodes, so there is nothing to wait for.
        patience_s = 0.0 if self._cluster.own else job.patience_s
        began_s, said_s = self._now_s(), None
        while not self._stop.asked.is_set():
            self._check_ray()
            placement = place(self._cluster.nodes(), job.request)
            waited_s, enough = self._now_s() - began_s, placement.ranks >= max(1, job.request.least)
            if enough and (placement.ranks >= wanted or waited_s >= patience_s):
                return placement
            if not before and waited_s >= patience_s:
                raise NoCluster(_too_few(job.request, placement))
            if said_s is None or self._now_s() - said_s >= REMIND_S:
                said_s = self._now_s()
                self._screen.say(_waiting(placement, max(wanted, job.request.least), job.request))
            self._stop.asked.wait(1.0)
        return None


def drains(state: BoardState, nodes: Sequence[Node]) -> bool:
    """Returns whether a node that holds a rank of this attempt will be removed soon."""
    held = set(state.nodes.values())
    return any(node.draining and node.id in held for node in nodes)


def growth(state: BoardState, nodes: Sequence[Node], placement: Placement, request: ResourceRequest) -> int:
    """Returns how many ranks the job would gain if it were started again on `nodes`.

    `placement` holds the number of ranks of the running attempt. The result is 0 until this attempt has committed a
    checkpoint (decision 15).
    """
    return max(0, place(nodes, request).ranks - placement.ranks) if state.commits else 0


def _stop_message(asked: End) -> str:
    if asked is End.DRAINED:
        return "A node will be removed soon: the ranks save and continue without it."
    return "More devices are free: the ranks save and continue with more."


def _waiting(placement: Placement, wanted: int, request: ResourceRequest) -> str:
    what = "a GPU" if request.on_gpu else "a CPU"
    fewest = f"; the job continues with at least {request.least}" if request.least < wanted else ""
    return f"Waiting for nodes: {placement.ranks} of {wanted} ranks would have {what}{fewest}."


def _too_few(request: ResourceRequest, placement: Placement) -> str:
    if not request.on_gpu:
        return "the cluster has no CPU for any rank."
    return (
        f"{max(request.ranks or 1, request.least)} ranks need as many GPUs and the cluster has {placement.ranks}; "
        "set cluster.ranks or cluster.min_ranks."
    )
