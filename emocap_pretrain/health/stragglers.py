"""Finds the rank that the others wait for.

A collective ends at the same moment on all ranks, so the others wait in it for a slow rank, and all ranks measure the
same time for a step. The time that a rank spends before a collective shows which rank is slow.
"""

from collections.abc import Mapping, Sequence
from statistics import median_low

from emocap_pretrain.run_folder.documents import Straggler

OWN_SECTIONS = ("data", "forward", "update")  # The other sections contain waiting for other ranks.
# A warning needs a rank that is this many times slower than the median, costs this share of a step, in this many rows.
WARN_FACTOR, WARN_SHARE, WARN_ROWS = 1.5, 0.05, 3
MAD_TO_DEVIATION = 1.4826  # The standard deviation of a normal distribution, in median absolute deviations.


def slowest_rank(seconds: Sequence[Mapping[str, float]], hosts: Sequence[str]) -> Straggler:
    """Returns the rank with most time of its own, compared with the median rank.

    Args:
        seconds: The seconds of each section of a step, for each rank.
        hosts: The host of each rank.
    """
    own = [sum(each[name] for name in OWN_SECTIONS) for each in seconds]
    median = median_low(own)
    deviation = MAD_TO_DEVIATION * median_low([abs(each - median) for each in own])
    rank = max(range(len(own)), key=own.__getitem__)
    excess = {name: seconds[rank][name] - median_low([each[name] for each in seconds]) for name in OWN_SECTIONS}
    excess_s = own[rank] - median
    return Straggler(
        rank=rank,
        host=hosts[rank],
        section=max(excess, key=excess.__getitem__),
        factor=own[rank] / median if median > 0 else 1.0,
        excess_s=excess_s,
        score=excess_s / max(deviation, 0.01 * median) if median > 0 else 0.0,
    )


class StragglerWarnings:
    """Warns of a rank that is the slowest in several rows one after another, and once only until that changes."""

    def __init__(self) -> None:
        self._rank, self._rows = -1, 0

    def check(self, straggler: Straggler, step_s: float) -> str | None:
        """Returns a warning if this row makes one necessary.

        Args:
            straggler: The slowest rank of this row.
            step_s: The seconds of a whole step.
        """
        if straggler.factor < WARN_FACTOR or straggler.excess_s < WARN_SHARE * step_s:
            self._rank, self._rows = -1, 0
            return None
        self._rows = self._rows + 1 if straggler.rank == self._rank else 1
        self._rank = straggler.rank
        if self._rows != WARN_ROWS:
            return None
        return (
            f"rank {straggler.rank} ({straggler.host}) takes {straggler.factor:.1f} times as long as the median rank, "
            f"mostly in {straggler.section!r}: all ranks wait {straggler.excess_s:.3f} s for it in every step."
        )
