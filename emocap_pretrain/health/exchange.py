"""Pulses go through the job's own store: the one in which its ranks met, so no launcher has to provide another.

    emocap/beat/3      the newest pulse of rank 3
    emocap/finding     what was found wrong, by whoever found it first; empty while all is well

Every second a rank writes one key and reads two (rank 0's pulse and the finding); rank 0 reads all. A store that is
frozen keeps a call waiting without end, whatever its timeout says: therefore the calls have a thread of their own, and
who looks at the answers sees that none comes.
"""

import socket
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from emocap_pretrain.health.beat import Pulse, Pulses
from emocap_pretrain.health.watch import Answer, Finding

BEAT_S = 1.0
PATIENCE = timedelta(hours=1)
ANSWER_S = 5.0
_FINDING = "emocap/finding"


@dataclass(frozen=True, slots=True)
class Line:
    """An own connection to the job's store."""

    store: Any

    @classmethod
    def open(cls) -> "Line":
        # There is no public way to the store of the default group; it exists under every launcher.
        default: Any = dist.distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage]
        store = default.clone()
        # A call that runs into its timeout leaves the connection out of step: rather wait, somebody else looks.
        store.set_timeout(PATIENCE)
        return cls(store)

    def reopened(self) -> "Line":
        """A new connection.

        Raises:
            OSError: If nobody answers; the store itself would try for the whole of its patience, and print stacks.
        """
        socket.create_connection(self._address, timeout=ANSWER_S).close()
        return Line(self.store.clone())

    @property
    def address(self) -> str:
        """In words."""
        host, port = self._address
        return f"{host}:{port}"

    @property
    def _address(self) -> tuple[str, int]:
        inner = self.store
        while hasattr(inner, "underlying_store"):
            inner = inner.underlying_store
        return inner.host, inner.port

    def begin(self, pulse: Pulse) -> None:
        """All ranks do so before one of them reads: who reads a key that is absent waits for it."""
        self.store.compare_set(_FINDING, "", " ")
        self.write(pulse)

    def write(self, pulse: Pulse) -> None:
        self.store.set(f"emocap/beat/{pulse.rank}", pulse.dump())

    def read(self, ranks: list[int]) -> tuple[dict[int, Pulse], Finding | None]:
        keys = [f"emocap/beat/{rank}" for rank in ranks]
        finding, *pulses = self.store.multi_get([_FINDING, *keys])
        found = Finding.parse(finding) if finding.strip() else None
        return {rank: Pulse.parse(pulse) for rank, pulse in zip(ranks, pulses, strict=True)}, found

    def post(self, finding: Finding) -> Finding:
        """The finding that stands: ours if it is the first."""
        return Finding.parse(self.store.compare_set(_FINDING, " ", finding.dump()))


class Exchange:
    """The thread that talks to the store."""

    def __init__(self, line: Line, pulses: Pulses, *, rank: int, world: int, alarm_s: float) -> None:
        """Begin to send pulses.

        Args:
            line: To the store.
            pulses: This rank's.
            rank: Of this process.
            world: Number of ranks.
            alarm_s: A rank that is idle for longer reads all others; rank 0 always does.
        """
        self._line, self._pulses, self._rank, self._world, self._alarm_s = line, pulses, rank, world, alarm_s
        self.answer: Answer | None = None
        self.finding: Finding | None = None
        self.error = ""
        self._ours: Finding | None = None
        self._looks_around = rank == 0
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="emocap-beat", daemon=True)
        self._thread.start()

    def look_around(self) -> None:
        """From now on read the pulses of all ranks."""
        self._looks_around = True
        self.hurry()

    def hurry(self) -> None:
        """Send the next pulse now."""
        self._wake.set()

    def post(self, finding: Finding, wait_s: float) -> Finding:
        """Tell all ranks; the finding that was first, or ours if the store does not answer in time."""
        self._ours = finding
        self._wake.set()
        end_s = time.monotonic() + wait_s
        while self.finding is None and time.monotonic() < end_s:
            time.sleep(0.05)
        return self.finding or finding

    def close(self, wait_s: float) -> None:
        """Send a last pulse and end the thread; a store that is away is not waited for longer."""
        self._closing.set()
        self._wake.set()
        self._thread.join(wait_s)

    def _run(self) -> None:
        number = 0
        while True:
            last = self._closing.is_set()
            self._wake.clear()
            number += 1
            try:
                if self.error:  # A connection that broke once is of no use any more.
                    self._line = self._line.reopened()
                self._tick(number)
                self.error = ""
            except (dist.DistError, RuntimeError, OSError) as error:  # Some of the store's errors have no own type.
                self.error = str(error).strip().split("\n")[0][:200] or type(error).__name__
            if last:
                return
            self._wake.wait(BEAT_S)

    def _tick(self, number: int) -> None:
        pulse = self._pulses.next(time.monotonic())
        self._line.write(pulse)
        if self._ours:
            self.finding = self._line.post(self._ours)
            return
        whole = self._looks_around or pulse.idle_s >= self._alarm_s
        ranks = list(range(self._world)) if whole else sorted({0, self._rank})
        pulses, self.finding = self._line.read(ranks)
        self.answer = Answer(number, pulses, whole)
