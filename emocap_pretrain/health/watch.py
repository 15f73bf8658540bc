"""Who is missing, who is behind: a function of the pulses and of the time. No I/O, no clock."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from emocap_pretrain.health.beat import DONE, LOST, Pulse, Stopwatch

LONGEST_TICK_S = 8.0
LEFT_S = 10.0  # A rank that ended with an error takes the others along by itself; where it did not, this does.
NAMED = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """What the job's store said last: its `number` grows; `whole` if all ranks were asked for, not some."""

    number: int
    pulses: Mapping[int, Pulse]
    whole: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """Why the job cannot go on. `ranks` are missing (`silent`) or behind; nobody in particular if empty."""

    ranks: tuple[int, ...]
    text: str
    silent: bool = False

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str | bytes) -> "Finding":
        body = json.loads(text)
        return cls(tuple(body["ranks"]), body["text"], body["silent"])


class Watch:
    """Judges what one rank sees of the others.

    Args of the constructor:
        hosts: Of each rank.
        store: The store's address and where it is, in words.
        timeout_s: Longest stay of a rank at one place.
        silence_s: A rank whose pulses have not changed for so long is lost.
    """

    def __init__(self, hosts: Sequence[str], store: str, *, timeout_s: float, silence_s: float) -> None:
        self._hosts, self.store = hosts, store
        self._timeout_s, self._silence_s = timeout_s, silence_s
        self._answered = Stopwatch(LONGEST_TICK_S)
        self._quiet: dict[int, Stopwatch] = {}
        self._number = -1

    def look(self, now_s: float, answer: Answer | None) -> Finding | None:
        """What is wrong, if anything. To be called every second or so, whether there is a new answer or not."""
        unanswered_s = self._answered.look(now_s, answer and answer.number)
        if unanswered_s >= self._silence_s:
            return self._store_is_away(unanswered_s)
        if answer is None or answer.number == self._number:
            return None
        self._number = answer.number
        quiet = {rank: self._quiet_s(now_s, pulse) for rank, pulse in answer.pulses.items()}
        return self._missing(answer.pulses, quiet) or (self._behind(answer.pulses) if answer.whole else None)

    def gone(self, pulses: Mapping[int, Pulse], quiet: Mapping[int, float], least_s: float) -> Finding | None:
        """Ranks that ended with an error, or have been quiet for `least_s`: for who knows already that one is gone."""
        failed = [rank for rank, pulse in pulses.items() if pulse.ended not in {"", DONE, LOST}]
        if failed:
            return self._named(failed, f"has ended: {pulses[failed[0]].ended}", pulses)
        silent = [rank for rank, seconds in quiet.items() if seconds >= least_s and not pulses[rank].ended]
        return self._named(silent, "is gone", pulses) if silent else None

    def behind(self, pulses: Mapping[int, Pulse]) -> Finding | None:
        """The ranks that the others wait for."""
        active = [pulse for pulse in pulses.values() if not pulse.ended]
        if not active:
            return None
        least = min(pulse.place for pulse in active)
        late = [pulse for pulse in active if pulse.place == least]
        seconds = max(pulse.idle_s for pulse in late)
        where = f"step {late[0].step}, {late[0].phase}, for {seconds:.0f} s"
        if len(late) == len(active):
            cause = "a collective that not all take part in, or a device that hangs"
            return Finding((), f"all {len(active)} ranks have stood at {where}: {cause}")
        others = len(active) - len(late)
        waiting = f"{others} other ranks wait" if others > 1 else "the other rank waits"
        ranks = [pulse.rank for pulse in late]
        have, them = ("have", "them") if len(ranks) > 1 else ("has", "it")
        return Finding(tuple(ranks), f"{self.names(ranks)} {have} been at {where}, and {waiting} for {them}")

    def names(self, ranks: Sequence[int]) -> str:
        """Ranks with their hosts, a few of them."""
        shown = [f"{rank} ({self._hosts[rank]})" for rank in ranks[:NAMED]]
        more = f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else ""
        return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(shown)}{more}"

    def _quiet_s(self, now_s: float, pulse: Pulse) -> float:
        return self._quiet.setdefault(pulse.rank, Stopwatch(LONGEST_TICK_S)).look(now_s, pulse.number)

    def _missing(self, pulses: Mapping[int, Pulse], quiet: Mapping[int, float]) -> Finding | None:
        left = [rank for rank, pulse in pulses.items() if pulse.ended not in {"", DONE, LOST} and quiet[rank] >= LEFT_S]
        if left:
            return self._named(left, f"has ended: {pulses[left[0]].ended}", pulses)
        silent = [rank for rank, pulse in pulses.items() if not pulse.ended and quiet[rank] >= self._silence_s]
        if not silent:
            return None
        cause = "the process or the host is gone or frozen, or the network is cut"
        return self._named(silent, f"gave no sign of life for {self._silence_s:.0f} s ({cause})", pulses)

    def _behind(self, pulses: Mapping[int, Pulse]) -> Finding | None:
        stuck = any(each.bounded and not each.ended and each.idle_s >= self._timeout_s for each in pulses.values())
        return self.behind(pulses) if stuck else None

    def _named(self, ranks: Sequence[int], what: str, pulses: Mapping[int, Pulse]) -> Finding:
        last = pulses[ranks[0]]
        return Finding(
            tuple(ranks), f"{self.names(ranks)} {what}; last heard of at step {last.step}, {last.phase}", silent=True
        )

    def _store_is_away(self, seconds: float) -> Finding:
        cause = "that host is gone, or the network to it is cut"
        return Finding((), f"no answer for {seconds:.0f} s from the job's store at {self.store}: {cause}")
