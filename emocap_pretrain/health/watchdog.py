"""A thread in each rank that ends the process once the job cannot go on, and says which rank is the reason.

A rank that hangs in a collective cannot help itself: no error arrives where the network just falls silent. Its launcher
sees the process end with code 70 and starts the job again from the newest checkpoint.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emocap_shards.background import Background

from emocap_pretrain.health import stacks
from emocap_pretrain.health.exchange import BEAT_S, Exchange
from emocap_pretrain.health.watch import Finding, Watch

HUNG = 70  # Exit code of a rank that its watchdog ended.
POST_S, LINGER_S, LAST_WORD_S = 3.0, 3 * BEAT_S, 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """A rank's process, for messages and to look into it from its own host."""

    host: str
    pid: int


class Watchdog:
    """Looks every second, until it is closed."""

    def __init__(
        self,
        exchange: Exchange,
        watch: Watch,
        members: Sequence[Member],
        rank: int,
        thread: int,
        last_word: Callable[[Finding], None],
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        """Begin to look.

        Args:
            exchange: Where answers come from and findings go.
            watch: Judges them.
            members: Of the job, by rank.
            rank: Of this process.
            thread: The one that trains.
            last_word: Called before the end, for a few seconds at most.
            leave: Ends the process.
        """
        self._exchange, self._watch, self._members, self._rank = exchange, watch, members, rank
        self._thread = thread
        self._last_word, self._leave = last_word, leave
        self._closing = threading.Event()
        threading.Thread(target=self._run, name="emocap-watchdog", daemon=True).start()

    def close(self) -> None:
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.wait(BEAT_S):
            ours = self._watch.look(time.monotonic(), self._exchange.answer)
            theirs = self._exchange.finding
            if theirs:
                self._end(theirs, first=False)
                return
            if ours:
                self._end(self._exchange.post(ours, POST_S), first=True)
                return

    def _end(self, finding: Finding, *, first: bool) -> None:
        try:
            self._say(finding, first=first)
            Background("emocap-last-word").submit(lambda: self._last_word(finding)).result(LAST_WORD_S)
        except Exception as error:  # noqa: BLE001 - the process ends in any case, and for another reason
            log.warning("the finding could not be written down: %s", error or type(error).__name__)
        finally:
            # Who holds the job's store stays until the others have read the finding there.
            time.sleep(LINGER_S)
            self._leave(HUNG)

    def _say(self, finding: Finding, *, first: bool) -> None:
        lines = [f"error: rank {self._rank}: watchdog: {finding.text}."]
        if first or self._rank in finding.ranks:
            lines += [f"What rank {self._rank} is doing:", stacks.own(self._thread)]
        if finding.silent:
            lines += [
                f"Rank {rank}, seen from here: {stacks.of_process(self._members[rank].pid)}"
                for rank in self._to_look_at(finding)
            ]
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()

    def _to_look_at(self, finding: Finding) -> list[int]:
        """Silent ranks of this host, if no rank before this one is there to look at them."""
        host = self._members[self._rank].host
        here = [rank for rank, member in enumerate(self._members) if member.host == host]
        able = [rank for rank in here if rank not in finding.ranks]
        return [rank for rank in here if rank in finding.ranks] if able and able[0] == self._rank else []
