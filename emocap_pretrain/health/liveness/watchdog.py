"""Ends the process of a rank once the job cannot continue, and prints which rank is the reason.

A rank that waits in a collective for a lost rank may wait without end, because a network that transfers nothing raises
no error. So on each rank a thread, the watchdog, ends the process. The launcher receives exit code 70 and starts the
job again from the newest checkpoint.

The process of a rank can end in two ways. If all ranks wait, the watchdog's thread finds the reason (`_run`) and ends
the process. If a collective fails first, the training thread gets an error. It calls `explain_loss` to find the reason
and raises `LostContact`, and the process ends as it does after any other error.
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
# Only the first few ranks look for a lost rank and store a failure, because a thousand ranks would overload the stores.
REPORTING_RANKS = 8
# Rank 0 reads all heartbeats and finds a hang first. If it has not found one after this many further seconds, the other
# ranks read all heartbeats too.
RANK_0_GRACE_S = 30.0
# The longest wait for the job's store to take a diagnosis, and for the run's store to take the record of it.
PUBLISH_S, BEFORE_EXIT_S = 3.0, 10.0
# The process of rank 0 may contain the job's store, so it stays until the other ranks have read the diagnosis there.
KEEP_STORE_S = 3 * HEARTBEAT_S
EXPLAIN_S, EXPLAIN_PAUSE_S = 4.0, 0.2  # Long enough to miss three heartbeats of a rank on another host (`LOST_S`).
CLOSE_S = 3.0

log = logging.getLogger(__name__)


class Watchdog:
    """Watches all ranks in a separate thread, and ends this process when a rank is lost or hangs.

    It ends the process with `os._exit`, because the training thread may be stuck in a collective, where no exception
    reaches it.
    """

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
        """Creates the watchdog; the method `start` starts its thread.

        Args:
            exchange: Reads the heartbeats and publishes the diagnosis.
            detector: Judges the heartbeats.
            rank: This rank.
            pids: The process id of each rank on its host.
            thread: The identifier of this rank's training thread.
            before_exit: A function that is called with the diagnosis before the process ends. The process ends after
                `BEFORE_EXIT_S` seconds even if the function has not returned.
            exit_process: A function that ends the process with an exit code.
        """
        self._exchange, self._detector, self._rank, self._pids = exchange, detector, rank, pids
        self._thread, self._before_exit, self._exit_process = thread, before_exit, exit_process
        self._stopping = threading.Event()

    def start(self) -> None:
        """Starts the thread."""
        threading.Thread(target=self._run, name="emocap-watchdog", daemon=True).start()

    def send_now(self) -> None:
        """Sends a heartbeat of this rank at once."""
        self._exchange.send_now()

    def close(self, *, keep_store: bool = False) -> None:
        """Ends the thread and the heartbeats.

        Args:
            keep_store: Whether rank 0 first waits `KEEP_STORE_S` seconds, so that the other ranks can still read a
                diagnosis in the job's store.
        """
        if keep_store and self._rank == 0:
            time.sleep(KEEP_STORE_S)
        self._stopping.set()
        self._exchange.close(CLOSE_S)

    def explain_loss(self, *, timed_out: bool, wait_s: float = EXPLAIN_S) -> Diagnosis | None:
        """Returns why a collective has failed, or None if the reason is not found within `wait_s` seconds.

        The training thread calls this method, which first stops the thread of the watchdog. Only the ranks below
        `REPORTING_RANKS` search for the reason. The first of them that finds it publishes it in the job's store, and
        all ranks report this reason. If a rank hangs, its own watchdog reads the reason and ends the rank. A lost
        process on this host and an error of another rank are found at once. A lost rank on another host is found after
        three missing heartbeats.

        Args:
            timed_out: Whether the collective reached its timeout. If so, a rank that hangs may be the reason.
            wait_s: The longest wait, in seconds.
        """
        self._stopping.set()
        # The first few ranks look for the lost rank. The others wait for the diagnosis that one of them publishes.
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
        """Returns the ranks on this host whose process has ended.

        The last heartbeat of such a rank may contain an error, which is a better reason than the end of the process. So
        this method does not return a rank at once when it finds that the process has ended. It returns the rank after
        all heartbeats have been read again.

        Args:
            heartbeats: The newest heartbeats of all ranks.
            first_seen: The ranks whose process has ended. The value is the `number` of this rank's own heartbeat when
                the end of the process was found. Each reading increases `number`, so a larger `number` in `heartbeats`
                shows that they were read again. This method adds entries.
        """
        number = heartbeats[self._rank].number
        for rank in heartbeats:
            if rank not in first_seen and self._is_dead(rank):
                first_seen[rank] = number
        return {rank for rank, seen in first_seen.items() if number > seen}

    def _is_dead(self, rank: int) -> bool:
        """Returns whether the process of a rank on this host has ended.

        A zombie process counts as ended: it executes nothing any more, but its launcher has not noticed its end yet.
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
            # The detector is asked in each round, because its timers must be called about every second.
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
        # Printed first, because the run's store may be unreachable. Whatever fails here, the process ends.
        try:
            self._print(diagnosis, found_here=found_here)
            Background("emocap-before-exit").submit(lambda: self._before_exit(diagnosis)).result(BEFORE_EXIT_S)
        except Exception as error:  # noqa: BLE001 - the process ends in any case, and for another reason
            log.warning("the diagnosis could not be stored: %s", error or type(error).__name__)
        finally:
            time.sleep(KEEP_STORE_S)
            self._exit_process(HUNG_EXIT_CODE)

    def _print(self, diagnosis: Diagnosis, *, found_here: bool) -> None:
        """Prints the diagnosis. If this rank has found it or is named in it, the stacks of this rank follow.

        If the diagnosis names lost ranks, one rank of each host also prints the stacks of the lost ranks on its host.
        `found_here` says whether this rank has found the reason.
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
        """Returns the lost ranks on this host whose stacks this rank prints.

        On each host, only the first rank that is not lost prints stacks. For all other ranks the list is empty.
        """
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

    The caller closes the watchdog. Its threads are daemons, so they do not keep the process alive.

    Args:
        world: All ranks of the job; at least two.
        position: The position of this rank's training thread.
        hosts: The host of each rank.
        timeout_s: The longest time that a rank may spend in one phase of a step. The phases in `UNBOUNDED_PHASES`, such
            as "saving", may take any time, and so may the first step of an attempt, except its phase "data".
        silence_s: A rank whose heartbeat does not change for this long is lost.
        before_exit: A function that is called with the diagnosis before the watchdog ends this process.
    """
    group: Any = world.process_group  # Torch does not declare the method that returns the number of collectives.
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
