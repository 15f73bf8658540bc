"""A job is a row of attempts: each on the devices that there are, the next one where the last checkpoint stands."""

import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from typing import Protocol

from emocap_cluster.board import Beat, News
from emocap_cluster.causes import GONE, blamed, was_announced
from emocap_cluster.cluster import Cluster
from emocap_cluster.errors import NoCluster, RankFailed
from emocap_cluster.placement import Node, Placement, Wish, place
from emocap_cluster.ranks import Function, start
from emocap_cluster.restarts import Cause, End, Ended, Over, Restarts, told
from emocap_cluster.stopping import Stop, listening

LOOK_S, NODES_S, REMIND_S = 0.5, 2.0, 60.0


class Record(Protocol):
    """What the run itself knows of how it stands."""

    def done(self) -> bool: ...

    def progress(self) -> int:
        """Step of the newest committed checkpoint; 0 without one."""
        ...

    def failures(self) -> Sequence[Cause]:
        """What ranks of the newest start left behind, by rank; each is told once."""
        ...

    def asked_to_stop(self) -> bool:
        """Whether the newest start ended because a person asked for it."""
        ...

    def judge(self, rank: int, error: Exception) -> Cause:
        """Reads an error that a rank raised."""
        ...


class Screen(Protocol):
    """Where a person looks."""

    def say(self, line: str) -> None: ...

    def beat(self, step: int, steps: int, note: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Job:
    """What is run, on what, and how often it may fail.

    Args:
        function: Called on every rank; picklable.
        wish: Devices.
        restarts: Budget of failures.
        patience_s: How long devices that were lost may take to come back.
        timeout_s: Longest wait in a collective.
        env: Environment variables of the ranks that nobody else is to see.
    """

    function: Function
    wish: Wish
    restarts: Restarts
    patience_s: float
    timeout_s: int
    env: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of the ranks, from `began` until `ended`; seconds since the job's first."""

    ranks: int
    began_s: float
    ended_s: float
    ended: Ended


@dataclass(frozen=True, slots=True)
class Story:
    """How a job went; `interrupted` if it was stopped by Ctrl-C."""

    how: End
    attempts: tuple[Attempt, ...]
    interrupted: bool = False


def supervise(job: Job, cluster: Cluster, record: Record, screen: Screen) -> Story:
    """Run the job to its end, through failures, preemptions and growth, within its budget. For the main thread.

    Raises:
        NoCluster: If there are too few devices for a first attempt.
        RankFailed: If the job is given up; it says why.
    """
    with listening(screen.say) as stop:
        return _Supervisor(job, cluster, record, screen, stop).run()


class _Supervisor:
    def __init__(self, job: Job, cluster: Cluster, record: Record, screen: Screen, stop: Stop) -> None:
        self._job = job
        self._cluster = cluster
        self._record = record
        self._screen = screen
        self._stop = stop
        self._began_s = time.monotonic()
        self._attempts: list[Attempt] = []

    def run(self) -> Story:
        restarts = replace(self._job.restarts, progress=self._record.progress())
        while placement := self._devices():
            began_s = self._now_s()
            ended, failed = self._attempt(placement)
            self._attempts.append(Attempt(placement.ranks, began_s, self._now_s(), ended))
            restarts, then = restarts.after(ended, random.random())
            if isinstance(then, Over):
                return self._over(then, failed)
            if self._stop.asked.is_set():
                return self._over(Over(End.FAILED, str(ended.cause)) if ended.cause else Over(End.STOPPED), failed)
            self._screen.say(told(ended, then))
            self._stop.asked.wait(then.pause_s)
        return self._over(Over(End.STOPPED), None)

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    def _over(self, over: Over, failed: RankFailed | None) -> Story:
        if over.how is End.FAILED:
            raise RankFailed(over.reason, cause=_raised(failed, self._attempts[-1].ended.cause))
        if over.reason:
            self._screen.say(over.reason)
        return Story(over.how, tuple(self._attempts), self._stop.interrupted)

    def _attempt(self, placement: Placement) -> tuple[Ended, RankFailed | None]:
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
        asked, news = self._watch(running, placement)
        self._check_ray()
        self._cluster.release()
        failed = running.exception()
        if failed is None:
            return Ended(self._how(asked), self._record.progress()), None
        if not isinstance(failed, RankFailed):
            raise failed
        cause = blamed(failed, self._record.failures(), self._record.judge, news.hosts)
        # A node that was announced takes its ranks along; any other error on the way out is a failure all the same.
        gone = cause.lost or cause.kind in GONE
        how = End.DRAINED if gone and (asked is End.DRAINED or was_announced(failed)) else End.FAILED
        return Ended(how, self._record.progress(), cause if how is End.FAILED else None), failed

    def _how(self, asked: End | None) -> End:
        """Of an attempt whose ranks ended without an error; a person's word counts more than the driver's own."""
        if self._record.done():
            return End.DONE
        return End.STOPPED if self._record.asked_to_stop() else asked or End.STOPPED

    def _watch(self, running: Future[None], placement: Placement) -> tuple[End | None, News]:
        """Look after the ranks until all have ended: what they were asked to stop for, and what they said last."""
        asked, news, nodes, looked_s, shown = None, News(), list[Node](), -NODES_S, Beat(0, 0, "")
        while not wait([running], timeout=LOOK_S).done:
            self._check_ray()
            news = (self._cluster.news() or news).after(news)
            if news.beat and news.beat != shown:
                shown = news.beat
                self._screen.beat(shown.step, shown.steps, shown.note)
            if self._now_s() - looked_s >= NODES_S:
                nodes, looked_s = self._cluster.nodes(), self._now_s()
            if asked is None and (asked := self._reason(news, nodes, placement)) and asked is not End.STOPPED:
                self._screen.say(_why_stop(asked))
            if asked:  # Again and again: the board may have been lost, and come back without the word.
                self._cluster.board.ask_to_stop.remote()
        return asked, news

    def _check_ray(self) -> None:
        """Ends a job whose own Ray has ended: Ray would end this process too, at its next call and without a line.

        Raises:
            NoCluster: If it has.
        """
        if gone := self._cluster.gone():
            raise NoCluster(
                f"the job's own Ray has ended (no {' and no '.join(gone)}): the same command resumes the run."
            )

    def _reason(self, news: News, nodes: Sequence[Node], placement: Placement) -> End | None:
        if self._stop.asked.is_set():
            return End.STOPPED
        more = growth(news, nodes, placement, self._job.wish)
        if drains(news, nodes):
            return End.DRAINED
        return End.GROWING if more and self._cluster.has_free(more, placement) else None

    def _devices(self) -> Placement | None:
        """Devices for the next attempt, after a wait for those that were lost; None if told to end."""
        job, before = self._job, self._attempts[-1].ranks if self._attempts else 0
        wanted = min(job.wish.ranks or before, job.wish.most)
        patience_s = 0.0 if self._cluster.own else job.patience_s
        began_s, said_s = self._now_s(), None
        while not self._stop.asked.is_set():
            self._check_ray()
            placement = place(self._cluster.nodes(), job.wish)
            waited_s, enough = self._now_s() - began_s, placement.ranks >= max(1, job.wish.least)
            if enough and (placement.ranks >= wanted or waited_s >= patience_s):
                return placement
            if not before and waited_s >= patience_s:
                raise NoCluster(_too_few(job.wish, placement))
            if said_s is None or self._now_s() - said_s >= REMIND_S:
                said_s = self._now_s()
                self._screen.say(_waiting(placement, max(wanted, job.wish.least), job.wish))
            self._stop.asked.wait(1.0)
        return None


def _raised(failed: RankFailed | None, cause: Cause | None) -> Exception | None:
    """The error that is the cause, if a rank raised it."""
    errors = failed.errors.values() if failed else ()
    return next((error for error in errors if cause and type(error).__name__ == cause.kind), None)


def drains(news: News, nodes: Sequence[Node]) -> bool:
    """Whether a node that holds a rank is about to go."""
    held = set(news.nodes.values())
    return any(node.draining and node.id in held for node in nodes)


def growth(news: News, nodes: Sequence[Node], placement: Placement, wish: Wish) -> int:
    """How many more ranks there would be now, once a checkpoint has been committed."""
    return max(0, place(nodes, wish).ranks - placement.ranks) if news.commits else 0


def _why_stop(asked: End) -> str:
    if asked is End.DRAINED:
        return "A node is about to be taken away: the ranks save and go on without it."
    return "More devices are free: the ranks save and go on with more."


def _waiting(placement: Placement, wanted: int, wish: Wish) -> str:
    what = "a GPU" if wish.on_gpu else "a CPU"
    fewest = f"; it goes on with {wish.least} at least" if wish.least < wanted else ""
    return f"Waiting for nodes: {placement.ranks} of {wanted} ranks would have {what}{fewest}."


def _too_few(wish: Wish, placement: Placement) -> str:
    if not wish.on_gpu:
        return "the cluster has no CPU for any rank."
    return (
        f"{max(wish.ranks or 1, wish.least)} ranks need as many GPUs and the cluster has {placement.ranks}; "
        "set cluster.ranks or cluster.min_ranks."
    )
