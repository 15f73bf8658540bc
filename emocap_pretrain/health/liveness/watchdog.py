"""Ends the process of a rank once the job cannot continue, and says which rank is the reason.

A rank that hangs in a collective cannot end itself: where the network falls silent no error arrives. Its launcher sees
exit code 70 and starts the job again from the newest checkpoint.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil
from emocap_shards.background import Background

from emocap_pretrain.health.liveness import stacks
from emocap_pretrain.health.liveness.detector import Diagnosis, FailureDetector
from emocap_pretrain.health.liveness.exchange import HeartbeatExchange, connect_to_job_store
from emocap_pretrain.health.liveness.heartbeat import HEARTBEAT_S, Heartbeat
from emocap_pretrain.health.position import TrainingPosition
from emocap_pretrain.ranks.group import RankGroup

HUNG_EXIT_CODE = 70
# Only these ranks look for a lost rank and store a failure: a thousand ranks would keep the stores busy.
REPORTING_RANKS = 8
# Rank 0 finds a hang first; if it has not done so for this long, the other ranks read all heartbeats themselves.
RANK_0_GRACE_S = 30.0
PUBLISH_S, BEFORE_EXIT_S = 3.0, 10.0
# Rank 0 may hold the job's store, so it stays until the other ranks have read the diagnosis there.
KEEP_STORE_S = 3 * HEARTBEAT_S
EXPLAIN_S, EXPLAIN_PAUSE_S = 4.0, 0.2
CLOSE_S = 3.0

log = logging.getLogger(__name__)


class Watchdog:
    """Watches the other ranks in a thread of its own, and ends this process when one of them is lost or hangs."""

    def __init__(
        self,
        exchange: HeartbeatExchange,
        detector: FailureDetector,
        *,
        rank: int,
        pids: Sequence[int],
        thread: int,
        before_exit: Callable[[Diagnosis], None],
        exit_process: Callable[[int], Any] = os._exit,
    ) -> None:
        """Does not start the thread; `start` does.

        Args:
            exchange: Reads the heartbeats and publishes the diagnosis.
            detector: Judges the heartbeats.
            rank: This rank.
            pids: The process of each rank, on its host.
            thread: The identifier of the thread that trains on this rank.
            before_exit: Is called before the process ends, in a thread that is waited for `BEFORE_EXIT_S` at most.
            exit_process: Ends the process with an exit code.
        """
        self._exchange, self._detector, self._rank, self._pids = exchange, detector, rank, pids
        self._thread, self._before_exit, self._exit_process = thread, before_exit, exit_process
        self._stopping = threading.Event()

    def start(self) -> None:
        """Starts the thread."""
        threading.Thread(target=self._run, name="emocap-watchdog", daemon=True).start()

    def send_now(self) -> None:
        """Sends this rank's position to the others at once."""
        self._exchange.send_now()

    def close(self, *, keep_store: bool = False) -> None:
        """Ends the thread and the heartbeats.

        Args:
            keep_store: Whether rank 0 waits until the others have read a diagnosis in the job's store.
        """
        if keep_store and self._rank == 0:
            time.sleep(KEEP_STORE_S)
        self._stopping.set()
        self._exchange.close(CLOSE_S)

    def explain_loss(self, *, timed_out: bool, wait_s: float = EXPLAIN_S) -> Diagnosis | None:
        """Returns why a collective has failed, if that shows within `wait_s`. The thread stops before.

        The error of the collective names a socket at best. The rank that finds the reason publishes it, so that all
        ranks report the same, and a rank that is alive but hangs ends too. A lost process on this host and an error of
        another rank are found at once; a lost rank on another host after three heartbeats that do not arrive.

        Args:
            timed_out: Whether the collective reached its timeout; then the rank that the others wait for is an answer.
            wait_s: The longest wait, in seconds.
        """
        self._stopping.set()
        if self._rank < REPORTING_RANKS:
            self._exchange.read_all()
        first_seen_dead: dict[int, int] = {}
        end_s = time.monotonic() + wait_s
        while (now_s := time.monotonic()) < end_s and not self._exchange.diagnosis:
            if self._exchange.error:
                return self._detector.store_unreachable()
            heartbeats = self._exchange.heartbeats
            if heartbeats and self._detector.sees_all(heartbeats):
                dead = self._dead(heartbeats, first_seen_dead)
                diagnosis = self._detector.explain_loss(now_s, heartbeats, dead=dead, timed_out=timed_out)
                if diagnosis:
                    return self._exchange.publish(diagnosis, HEARTBEAT_S)
            self._exchange.send_now()
            time.sleep(EXPLAIN_PAUSE_S)
        return self._exchange.diagnosis

    def _dead(self, heartbeats: Mapping[int, Heartbeat], first_seen: dict[int, int]) -> set[int]:
        """Returns the ranks whose process on this host has ended, and whose last heartbeat was read after that.

        The last heartbeat may hold the reason why the rank has ended.

        Args:
            heartbeats: The newest heartbeats of all ranks.
            first_seen: The number of this rank's heartbeat when a process was found dead; this method extends it.
        """
        number = heartbeats[self._rank].number
        for rank in heartbeats:
            if rank not in first_seen and self._is_dead(rank):
                first_seen[rank] = number
        return {rank for rank, seen in first_seen.items() if number > seen}

    def _is_dead(self, rank: int) -> bool:
        """Returns whether the process of a rank on this host has ended.

        A zombie process counts as ended, because its launcher will notice its end.
        """
        if rank == self._rank or not self._on_this_host(rank):
            return False
        try:
            return psutil.Process(self._pids[rank]).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def _on_this_host(self, rank: int) -> bool:
        return self._detector.hosts[rank] == self._detector.hosts[self._rank]

    def _run(self) -> None:
        while not self._stopping.wait(HEARTBEAT_S):
            diagnosis = self._detector.check(time.monotonic(), self._exchange.heartbeats)
            published = self._exchange.diagnosis
            if published:
                self._end_process(published, found_here=False)
                return
            if diagnosis:
                published = self._exchange.publish(diagnosis, PUBLISH_S)
                self._end_process(published, found_here=published == diagnosis)
                return

    def _end_process(self, diagnosis: Diagnosis, *, found_here: bool) -> None:
        try:
            self._print(diagnosis, found_here=found_here)
            Background("emocap-before-exit").submit(lambda: self._before_exit(diagnosis)).result(BEFORE_EXIT_S)
        except Exception as error:  # noqa: BLE001 - the process ends in any case, and for another reason
            log.warning("the diagnosis could not be stored: %s", error or type(error).__name__)
        finally:
            time.sleep(KEEP_STORE_S)
            self._exit_process(HUNG_EXIT_CODE)

    def _print(self, diagnosis: Diagnosis, *, found_here: bool) -> None:
        """Prints the diagnosis, and the stacks of this rank if it found the reason or is the reason.

        The first other rank of the host prints the stacks of silent ranks too.
        """
        lines = [f"error: rank {self._rank}: watchdog: {diagnosis.message}."]
        if found_here or self._rank in diagnosis.ranks:
            lines += [f"Stacks of rank {self._rank}:", stacks.of_this_process(self._thread)]
        if diagnosis.silent:
            lines += [
                f"Rank {rank}, seen from here: {stacks.of_process(self._pids[rank])}"
                for rank in self._ranks_to_inspect(diagnosis)
            ]
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()

    def _ranks_to_inspect(self, diagnosis: Diagnosis) -> list[int]:
        """Returns the silent ranks of this host, if this is the first other rank of the host; else none."""
        here = [rank for rank in range(len(self._pids)) if self._on_this_host(rank)]
        others = [rank for rank in here if rank not in diagnosis.ranks]
        return [rank for rank in here if rank in diagnosis.ranks] if others and others[0] == self._rank else []


def watch_ranks(
    world: RankGroup,
    position: TrainingPosition,
    hosts: Sequence[str],
    *,
    timeout_s: float,
    silence_s: float,
    before_exit: Callable[[Diagnosis], None],
) -> Watchdog:
    """Starts the heartbeats and the watchdog of this rank, and returns the watchdog. This is a collective.

    Args:
        world: All ranks of the job; at least two.
        position: The position of this rank's training thread.
        hosts: The host of each rank.
        timeout_s: The longest time that a rank may spend at one bounded position.
        silence_s: A rank whose heartbeat does not change for this long is lost.
        before_exit: Is called before the watchdog ends this process.
    """
    group: Any = world.process_group  # Torch does not declare the count of collectives, but its own debugging uses it.
    exchange = HeartbeatExchange(
        connect_to_job_store(),
        position,
        rank=world.rank,
        world_size=world.world_size,
        read_all_after_s=timeout_s + RANK_0_GRACE_S,
        count_collectives=group._get_sequence_number_for_group,
    )
    pids = world.gather(os.getpid())  # After this collective all ranks have written their first heartbeat.
    store = f"{exchange.address} (rank 0's host {hosts[0]})"
    detector = FailureDetector(hosts, rank=world.rank, store=store, timeout_s=timeout_s, silence_s=silence_s)
    watchdog = Watchdog(exchange, detector, rank=world.rank, pids=pids, thread=position.thread, before_exit=before_exit)
    exchange.start()
    watchdog.start()
    return watchdog
