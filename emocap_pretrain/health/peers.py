"""The other ranks, seen from this one."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from emocap_pretrain.health.beat import Beat, Pulses, Stopwatch
from emocap_pretrain.health.contact import who_is_gone
from emocap_pretrain.health.exchange import Exchange, Line
from emocap_pretrain.health.watch import LONGEST_TICK_S, Finding, Watch
from emocap_pretrain.health.watchdog import Member, Watchdog
from emocap_pretrain.ranks.group import RankGroup

ALARM_S = 30.0  # So long after rank 0 should have found a hang, the others look for themselves.
CONTACT_S, CLOSE_S = 4.0, 3.0


@dataclass(frozen=True, slots=True)
class _Threads:
    exchange: Exchange
    watch: Watch
    watchdog: Watchdog


@dataclass(frozen=True, slots=True)
class Peers:
    """All members of the job, and the threads that keep in touch with them; alone there are none."""

    members: tuple[Member, ...]
    rank: int
    threads: _Threads | None

    @classmethod
    def meet(
        cls,
        world: RankGroup,
        beat: Beat,
        host: str,
        last_word: Callable[[Finding], None],
        *,
        timeout_s: float,
        silence_s: float,
    ) -> "Peers":
        """Begin to watch each other; a collective."""
        rank, ranks = world.rank, world.world_size
        if world.process_group is None:
            return cls((Member(host, os.getpid()),), rank, None)
        group: Any = world.process_group  # Torch declares no number of collectives, but its own debugging asks for it.
        stopwatch = Stopwatch(LONGEST_TICK_S)
        pulses = Pulses(beat, rank, os.getpid(), stopwatch, group._get_sequence_number_for_group)
        line = Line.open()
        line.begin(pulses.next(0.0))
        members = tuple(Member(*each) for each in world.gather((host, os.getpid())))
        hosts = [member.host for member in members]
        where = f"{line.address} (rank 0's host {hosts[0]})"
        watch = Watch(hosts, where, timeout_s=timeout_s, silence_s=silence_s)
        exchange = Exchange(line, pulses, rank=rank, world=ranks, alarm_s=timeout_s + ALARM_S)
        watchdog = Watchdog(exchange, watch, members, rank, beat.thread, last_word)
        return cls(members, rank, _Threads(exchange, watch, watchdog))

    @property
    def hosts(self) -> list[str]:
        """Of each rank."""
        return [member.host for member in self.members]

    def who_is_gone(self, *, timed_out: bool) -> Finding | None:
        """Why a collective failed, if that shows within seconds. The watchdog looks no more."""
        if self.threads is None:
            return None
        self.threads.watchdog.close()
        each = self.threads
        return who_is_gone(each.exchange, each.watch, self.members, self.rank, wait_s=CONTACT_S, timed_out=timed_out)

    def hurry(self) -> None:
        """The others learn now what the beat says."""
        if self.threads:
            self.threads.exchange.hurry()

    def close(self, linger_s: float = 0.0) -> None:
        """No more pulses; before, leave the others time to read what was found, if rank 0 holds the job's store."""
        if self.threads:
            if self.rank == 0:
                time.sleep(linger_s)
            self.threads.watchdog.close()
            self.threads.exchange.close(CLOSE_S)
