"""Which rank the others wait for.

A collective ends at the same moment everywhere, so whoever is slow makes all others wait in it: the time of a step says
nothing about the culprit. The time that a rank spends before a collective does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

OWN = ("data", "forward", "update")  # The others contain waiting for other ranks.
SLOW, LEAST_SHARE, ROWS = 1.5, 0.05, 3
NORMAL = 1.4826


@dataclass(frozen=True, slots=True)
class Report:
    """The slowest rank: `factor` times the median of all, `excess_s` longer in each step, mostly in `section`.

    `score` is its distance from the median in robust standard deviations.
    """

    rank: int
    host: str
    section: str
    factor: float
    excess_s: float
    score: float


def slowest(seconds: Sequence[Mapping[str, float]], hosts: Sequence[str]) -> Report:
    """The slowest of all ranks, whose seconds by section are given in rank order."""
    own = [sum(each[name] for name in OWN) for each in seconds]
    middle = median_low(own)
    deviation = NORMAL * median_low([abs(each - middle) for each in own])
    rank = max(range(len(own)), key=own.__getitem__)
    excess = {name: seconds[rank][name] - median_low([each[name] for each in seconds]) for name in OWN}
    excess_s = own[rank] - middle
    return Report(
        rank=rank,
        host=hosts[rank],
        section=max(excess, key=excess.__getitem__),
        factor=own[rank] / middle if middle > 0 else 1.0,
        excess_s=excess_s,
        score=excess_s / max(deviation, 0.01 * middle) if middle > 0 else 0.0,
    )


class Stragglers:
    """Warns of a rank that is slow in several rows one after another, once until it is another one."""

    def __init__(self) -> None:
        self._rank, self._rows = -1, 0

    def look(self, report: Report, step_s: float) -> str | None:
        """A warning, if this row makes one due; `step_s` is the time of a whole step."""
        if report.factor < SLOW or report.excess_s < LEAST_SHARE * step_s:
            self._rank, self._rows = -1, 0
            return None
        self._rows = self._rows + 1 if report.rank == self._rank else 1
        self._rank = report.rank
        if self._rows != ROWS:
            return None
        return (
            f"rank {report.rank} ({report.host}) is {report.factor:.1f} times as slow as the others, mostly in "
            f"{report.section!r}: all wait {report.excess_s:.3f} s for it in every step."
        )
