"""Which rank is gone, once a collective has failed: its error names a socket at best.

Whoever finds it tells the others, so that all say the same, and a rank that is alive but hangs ends too.
"""

import time
from collections.abc import Sequence

import psutil

from emocap_pretrain.health.beat import Pulse
from emocap_pretrain.health.exchange import BEAT_S, Exchange
from emocap_pretrain.health.watch import Finding, Watch
from emocap_pretrain.health.watchdog import Member

QUIET_S = 3 * BEAT_S
PAUSE_S = 0.2
ASKING = 8  # Ranks that look for who is gone; all of a large job would keep its store busy.


def who_is_gone(
    exchange: Exchange, watch: Watch, members: Sequence[Member], rank: int, *, wait_s: float, timed_out: bool
) -> Finding | None:
    """The ranks that ended or fell silent; None if that does not show within `wait_s`.

    Args:
        exchange: Of this rank.
        watch: For its words.
        members: Of the job, by rank.
        rank: Of this process.
        wait_s: Longest wait. A rank without a process on this host, or with an error of its own, is known at once; one
            of another host after three beats that do not come.
        timed_out: Whether the collective waited in vain; then a rank that is alive and behind is an answer too.
    """
    if rank < ASKING:
        exchange.look_around()
    changed: dict[int, tuple[int, float]] = {}
    died: dict[int, int] = {}
    end_s = time.monotonic() + wait_s
    while (now_s := time.monotonic()) < end_s and not exchange.finding:
        answer = exchange.answer
        if exchange.error:
            return Finding((), f"nobody answers at the job's store at {watch.store}: that process or host is gone")
        if answer and answer.whole:
            quiet = {each: _quiet_s(changed, pulse, now_s) for each, pulse in answer.pulses.items()}
            for each in answer.pulses:
                if each not in died and _is_dead(members, each, rank):
                    died[each] = answer.number
            # Its last pulse, which may say why it ended, is in the answers behind the one before its death.
            dead = {each: QUIET_S for each, number in died.items() if answer.number > number}
            found = watch.gone(answer.pulses, quiet | dead, QUIET_S)
            found = found or (watch.behind(answer.pulses) if timed_out else None)
            if found:
                return exchange.post(found, BEAT_S)
        exchange.hurry()
        time.sleep(PAUSE_S)
    return exchange.finding


def _quiet_s(changed: dict[int, tuple[int, float]], pulse: Pulse, now_s: float) -> float:
    count, since_s = changed.get(pulse.rank, (-1, now_s))
    if count != pulse.number:
        changed[pulse.rank] = (pulse.number, now_s)
        return 0.0
    return now_s - since_s


def _is_dead(members: Sequence[Member], rank: int, own: int) -> bool:
    """Whether the rank's process on this very host has ended; a zombie has, its launcher just has not looked."""
    member = members[rank]
    if rank == own or member.host != members[own].host:
        return False
    try:
        return psutil.Process(member.pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
