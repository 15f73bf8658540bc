"""Decides from heartbeats which ranks have failed or hang.

The detector has no I/O, no clock and no thread: its caller passes the heartbeats and the time. So tests can pass any
heartbeats and times.

The detector distinguishes three faults. A rank is lost if its heartbeats stop, or if it has reported an error. A rank
hangs if its heartbeats continue and its position does not change. The job's store is unreachable if this rank cannot
read its own new heartbeats from it. How long another rank has been silent is measured by the clock of this rank: it is
the time for which the counter `Heartbeat.number` of that rank has not changed. How long a rank has made no progress is
measured by that rank itself, in `Heartbeat.idle_s`.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from emocap_pretrain.health.liveness.heartbeat import HEARTBEAT_S, Heartbeat
from emocap_pretrain.health.position import UnchangedTimer

# If a rank ends with an error, the collectives of the others usually fail. If they still wait after this long, the
# detector reports the failed rank.
FAILED_S = 10.0
# After a collective has failed, a rank without a new heartbeat for this long is the lost one.
LOST_S = 3 * HEARTBEAT_S
MAX_NAMED = 8  # Ranks that a message names.


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Says why the job cannot continue.

    Attributes:
        ranks: The ranks that are lost or that hang; empty if no particular rank is the reason.
        message: The reason, without a full stop.
        silent: Whether `ranks` are lost. Lost ranks may be unable to print their stacks, so another rank on the same
            host prints them.
    """

    ranks: tuple[int, ...]
    message: str
    silent: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Diagnosis":
        body = json.loads(text)
        return cls(tuple(body["ranks"]), body["message"], body["silent"])


class FailureDetector:
    """Diagnoses the job from the heartbeats that one rank reads.

    The watchdog's thread calls `check`. If a collective fails, the training thread stops the watchdog's thread and
    calls `explain_loss`. Both methods measure how long each rank has been silent, with separate timers. The timers of
    `explain_loss` start at its first call, so they do not count earlier silence.

    Args:
        hosts: The host of each rank.
        rank: The rank that reads the heartbeats.
        store: The address of the job's store, for messages.
        timeout_s: The longest time for which a rank may make no progress. It does not apply while `Heartbeat.bounded`
            is False, for example while a checkpoint is saved or in the first forward pass.
        silence_s: A rank whose heartbeat does not change for this long is lost.
    """

    def __init__(self, hosts: Sequence[str], *, rank: int, store: str, timeout_s: float, silence_s: float) -> None:
        self.hosts, self._rank, self._store = hosts, rank, store
        self._timeout_s, self._silence_s = timeout_s, silence_s
        self._unanswered = UnchangedTimer()
        # For how long the heartbeat of each rank has not changed. The second mapping is empty until a collective has
        # failed, so its times count from then on.
        self._silent: dict[int, UnchangedTimer] = {}
        self._silent_after_loss: dict[int, UnchangedTimer] = {}
        self._number: int | None = None  # The number of this rank's own heartbeat in the last reading that was judged.

    def sees_all(self, heartbeats: Mapping[int, Heartbeat]) -> bool:
        """Returns whether `heartbeats` contains a heartbeat of every rank."""
        return len(heartbeats) == len(self.hosts)

    def check(self, now_s: float, heartbeats: Mapping[int, Heartbeat] | None) -> Diagnosis | None:
        """Returns a diagnosis if the job cannot continue; otherwise None.

        The caller must call this about every second, also if no new heartbeats were read.

        Args:
            now_s: A monotonic time.
            heartbeats: The newest heartbeats by rank, including that of this rank; None before the first reading.
        """
        number = heartbeats[self._rank].number if heartbeats else None
        unanswered_s = self._unanswered.update(now_s, number)
        if unanswered_s >= self._silence_s:
            cause = "its host is gone, or the network to it is cut"
            return Diagnosis((), f"the job's store at {self._store} has not answered for {unanswered_s:.0f} s: {cause}")
        # The other heartbeats are judged once for each reading. While the store does not answer they cannot change, and
        # no rank must count as silent because of that.
        if not heartbeats or number == self._number:
            return None
        self._number = number
        silent_s = _unchanged_s(self._silent, now_s, heartbeats)
        return self._find_lost(heartbeats, silent_s) or self._find_hang(heartbeats)

    def explain_loss(
        self, now_s: float, heartbeats: Mapping[int, Heartbeat], *, dead: Collection[int], timed_out: bool
    ) -> Diagnosis | None:
        """Returns which ranks made a collective fail, or None if the heartbeats do not show it.

        Here a rank counts as lost as soon as it has reported an error, its process has ended, or three of its
        heartbeats are missing. `check` waits longer before it reports a rank.

        Args:
            now_s: A monotonic time.
            heartbeats: The newest heartbeats of all ranks.
            dead: The ranks whose process is known to have ended.
            timed_out: Whether the collective reached its timeout. If so, and if no rank is lost, the ranks at the
                earliest position are reported.
        """
        # In the order of certainty: a reported error, a process without heartbeats, and after a timeout the rank at the
        # earliest position. A rank whose training has ended without its own error may be silent.
        failed = [rank for rank, each in heartbeats.items() if each.failed]
        if failed:
            return self._lost(failed, f"has ended: {heartbeats[failed[0]].ended}", heartbeats)
        silent_s = _unchanged_s(self._silent_after_loss, now_s, heartbeats)
        lost = [
            rank for rank, each in heartbeats.items() if not each.ended and (rank in dead or silent_s[rank] >= LOST_S)
        ]
        if lost:
            return self._lost(lost, "is gone", heartbeats)
        return self._find_slowest(heartbeats) if timed_out else None

    def store_unreachable(self) -> Diagnosis:
        """Returns the diagnosis for a store to which the last call of this rank has failed."""
        return Diagnosis((), f"the job's store at {self._store} cannot be reached: its process or host is gone")

    def _find_lost(self, heartbeats: Mapping[int, Heartbeat], silent_s: Mapping[int, float]) -> Diagnosis | None:
        failed = [rank for rank, each in heartbeats.items() if each.failed and silent_s[rank] >= FAILED_S]
        if failed:
            return self._lost(failed, f"has ended: {heartbeats[failed[0]].ended}", heartbeats)
        silent = [rank for rank, each in heartbeats.items() if not each.ended and silent_s[rank] >= self._silence_s]
        if not silent:
            return None
        cause = "the process or its host is gone or frozen, or the network is cut"
        return self._lost(silent, f"sent no heartbeat for {self._silence_s:.0f} s ({cause})", heartbeats)

    def _find_hang(self, heartbeats: Mapping[int, Heartbeat]) -> Diagnosis | None:
        """Returns a diagnosis if some rank has made no progress for `timeout_s`; otherwise None.

        The result is also None if `heartbeats` lacks a rank, because only the heartbeats of all ranks show which rank
        the others wait for.
        """
        if not self.sees_all(heartbeats):
            return None
        # The rank that has waited too long may be one that waits for another rank, so it is not the one that is named.
        hangs = any(each.bounded and not each.ended and each.idle_s >= self._timeout_s for each in heartbeats.values())
        return self._find_slowest(heartbeats) if hangs else None

    def _find_slowest(self, heartbeats: Mapping[int, Heartbeat]) -> Diagnosis | None:
        """Returns a diagnosis that names the ranks at the earliest position in the program, for which the others wait.

        A position is the step, the phase and the number of collectives of a rank; `Heartbeat.place` defines their
        order. If all ranks are at the same position, the diagnosis names no rank. The result is None if training has
        ended on all ranks.
        """
        active = [each for each in heartbeats.values() if not each.ended]
        if not active:
            return None
        earliest = min(each.place for each in active)
        slowest = [each for each in active if each.place == earliest]
        idle_s = max(each.idle_s for each in slowest)
        where = f"step {slowest[0].step}, {slowest[0].phase}, for {idle_s:.0f} s"
        if len(slowest) == len(active):
            cause = "not all ranks call the same collective, or a device hangs"
            return Diagnosis((), f"all {len(active)} ranks have been at {where}: {cause}")
        others = len(active) - len(slowest)
        waiting = f"{others} other ranks wait" if others > 1 else "the other rank waits"
        ranks = [each.rank for each in slowest]
        have, them = ("have", "them") if len(ranks) > 1 else ("has", "it")
        return Diagnosis(tuple(ranks), f"{self._names(ranks)} {have} been at {where}, and {waiting} for {them}")

    def _lost(self, ranks: Sequence[int], what: str, heartbeats: Mapping[int, Heartbeat]) -> Diagnosis:
        last = heartbeats[ranks[0]]
        message = f"{self._names(ranks)} {what}; last heartbeat at step {last.step}, {last.phase}"
        return Diagnosis(tuple(ranks), message, silent=True)

    def _names(self, ranks: Sequence[int]) -> str:
        """Returns a text with the first `MAX_NAMED` ranks and their hosts, and the number of further ranks."""
        shown = [f"{rank} ({self.hosts[rank]})" for rank in ranks[:MAX_NAMED]]
        more = f" and {len(ranks) - MAX_NAMED} more" if len(ranks) > MAX_NAMED else ""
        return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(shown)}{more}"


def _unchanged_s(
    timers: dict[int, UnchangedTimer], now_s: float, heartbeats: Mapping[int, Heartbeat]
) -> dict[int, float]:
    """Returns, by rank, for how many seconds its heartbeat has not changed.

    Args:
        timers: The timer of each rank. This function updates them and adds missing ones.
        now_s: A monotonic time.
        heartbeats: The newest heartbeats by rank.
    """
    return {
        rank: timers.setdefault(rank, UnchangedTimer()).update(now_s, each.number) for rank, each in heartbeats.items()
    }
