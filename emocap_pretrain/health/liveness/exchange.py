"""Exchanges heartbeats through torch's `TCPStore`, which the process group of the job uses under every launcher.

    emocap/heartbeat/3     the newest heartbeat of rank 3
    emocap/diagnosis       why the job cannot continue, written by the first rank that finds the reason; else blank

Every second each rank writes its heartbeat and reads the diagnosis, its own heartbeat and that of rank 0. Rank 0 reads
all heartbeats. If the process of the store is frozen, a call may block for longer than its timeout. Therefore a
separate thread makes the calls, and the watchdog's thread notices if no new heartbeats arrive.

Torch has opened this store already, so the heartbeats need no further port. Rank 0 needs 4 ms of every second to read
the heartbeats of 1,024 ranks (docs/health.md). Another rank reads the heartbeats of all ranks in two cases only. The
first case is that a collective has failed, and the rank is one of those that search for the reason
(`Watchdog.explain_loss`). The second case is that the rank has made no progress for `read_all_after_s` seconds. This is
longer than the time after which rank 0 reports a hang, so rank 0 may have failed to report it.
"""

import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from emocap_pretrain.health.liveness.detector import Diagnosis
from emocap_pretrain.health.liveness.heartbeat import HEARTBEAT_S, Heartbeat
from emocap_pretrain.health.position import TrainingPosition, UnchangedTimer

# After a timeout the connection to the store is unusable. So calls wait long, and the watchdog notices the delay.
CALL_TIMEOUT = timedelta(hours=1)
CONNECT_TIMEOUT_S = 5.0
# A blank means that there is no diagnosis. It is not an empty text, because `compare_set` takes an empty expected value
# to mean that the key does not exist.
_DIAGNOSIS, _NONE = "emocap/diagnosis", " "


def connect_to_job_store() -> Any:
    """Returns a new connection to the store of torch's default process group.

    Torch's own connection is not used, because a call may block it, and a failed call makes a connection unusable.
    """
    # Torch has no public function that returns the store.
    default: Any = dist.distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage]
    store = default.clone()
    store.set_timeout(CALL_TIMEOUT)
    return store


class HeartbeatExchange:
    """Writes the heartbeats of this rank and reads those of other ranks, in a separate thread.

    The constructor writes the first heartbeat. A rank that reads a key waits until the key exists, so `start` may be
    called only after every rank has constructed its `HeartbeatExchange`.

    Only the thread writes the attributes. It replaces the value of an attribute as a whole, so other threads can read
    it without a lock.

    Attributes:
        heartbeats: The heartbeats that were read last, by rank; None before the first reading. The heartbeat of this
            rank is always included, and its `number` is larger after every reading.
        diagnosis: The diagnosis in the store, if there is one.
        error: Why the last call to the store failed; empty if it succeeded.
    """

    def __init__(
        self,
        store: Any,
        position: TrainingPosition,
        *,
        rank: int,
        world_size: int,
        read_all_after_s: float,
        count_collectives: Callable[[], int] = lambda: 0,
    ) -> None:
        """Writes the first heartbeat.

        Args:
            store: A connection to a `TCPStore`, which no other thread uses.
            position: The position of this rank's training thread.
            rank: This rank.
            world_size: The number of ranks.
            read_all_after_s: If this rank has made no progress for this many seconds, it reads the heartbeats of all
                ranks. Rank 0 always reads all of them.
            count_collectives: A function that returns the number of collectives that this rank has begun.
        """
        self._store, self._position = store, position
        self._rank, self._world_size, self._read_all_after_s = rank, world_size, read_all_after_s
        self._count_collectives = count_collectives
        self.heartbeats: Mapping[int, Heartbeat] | None = None
        self.diagnosis: Diagnosis | None = None
        self.error = ""
        self._own_diagnosis: Diagnosis | None = None
        self._reads_all = rank == 0
        self._idle, self._number = UnchangedTimer(), 0
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="emocap-heartbeat", daemon=True)
        # The first rank creates the key. If it exists, the call changes nothing. A read of an absent key would wait.
        store.compare_set(_DIAGNOSIS, "", _NONE)
        self._write()

    @property
    def address(self) -> str:
        """Returns the host and the port of the store, as `host:port`."""
        host, port = self._host_and_port
        return f"{host}:{port}"

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def send_now(self) -> None:
        """Wakes the thread, so that the next heartbeat is written at once."""
        self._wake.set()

    def read_all(self) -> None:
        """Makes this rank read the heartbeats of all ranks from now on."""
        self._reads_all = True
        self.send_now()

    def publish(self, diagnosis: Diagnosis, wait_s: float) -> Diagnosis:
        """Writes a diagnosis into the store for all ranks, unless another rank has already written one.

        So all ranks report the same diagnosis. The thread of the exchange writes it, and the calling thread waits.

        Returns the diagnosis that is then in the store, or `diagnosis` if the store does not answer within `wait_s`
        seconds.
        """
        self._own_diagnosis = diagnosis
        self.send_now()
        end_s = time.monotonic() + wait_s
        while self.diagnosis is None and time.monotonic() < end_s:
            time.sleep(0.05)
        return self.diagnosis or diagnosis

    def close(self, wait_s: float) -> None:
        """Writes a last heartbeat and ends the thread. It waits for the store at most `wait_s` seconds."""
        self._closing.set()
        self.send_now()
        self._thread.join(wait_s)

    def _run(self) -> None:
        while True:
            # Both are read before the exchange: if `close` is called during it, one more heartbeat is written.
            last = self._closing.is_set()
            self._wake.clear()
            try:
                if self.error:  # A connection on which a call has failed cannot be used again.
                    self._reconnect()
                self._exchange()
                self.error = ""
            except (dist.DistError, RuntimeError, OSError) as error:  # Some errors of the store are RuntimeErrors.
                self.error = str(error).strip().split("\n")[0][:200] or type(error).__name__
            if last:
                return
            self._wake.wait(HEARTBEAT_S)

    def _exchange(self) -> None:
        own = self._write()
        # `compare_set` writes only if the key is still blank, and returns the diagnosis that is there afterwards.
        if self._own_diagnosis:
            first = self._store.compare_set(_DIAGNOSIS, _NONE, self._own_diagnosis.to_json())
            self.diagnosis = Diagnosis.from_json(first)
            return
        all_ranks = self._reads_all or own.idle_s >= self._read_all_after_s
        ranks = list(range(self._world_size)) if all_ranks else sorted({0, self._rank})
        diagnosis, *heartbeats = self._store.multi_get([_DIAGNOSIS, *map(_key, ranks)])
        self.diagnosis = Diagnosis.from_json(diagnosis) if diagnosis.strip() else None
        self.heartbeats = {rank: Heartbeat.from_json(each) for rank, each in zip(ranks, heartbeats, strict=True)}

    def _write(self) -> Heartbeat:
        position = self._position
        self._number += 1
        heartbeat = Heartbeat(
            self._rank,
            self._number,
            position.step,
            position.phase,
            round(self._idle.update(time.monotonic(), position.changes), 1),
            position.bounded,
            self._count_collectives(),
            position.ended,
        )
        self._store.set(_key(self._rank), heartbeat.to_json())
        return heartbeat

    def _reconnect(self) -> None:
        """Replaces the connection to the store.

        Raises:
            OSError: If the host of the store does not accept a connection. This is checked first, because the method
                `clone` of the store would try to connect for an hour and print stacks.
        """
        socket.create_connection(self._host_and_port, timeout=CONNECT_TIMEOUT_S).close()
        self._store = self._store.clone()

    @property
    def _host_and_port(self) -> tuple[str, int]:
        # Torch wraps the `TCPStore`, for example in a `PrefixStore`. The inner one knows host and port.
        inner = self._store
        while hasattr(inner, "underlying_store"):
            inner = inner.underlying_store
        return inner.host, inner.port


def _key(rank: int) -> str:
    return f"emocap/heartbeat/{rank}"
