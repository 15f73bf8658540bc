"""Finds the slowest rank, for which the other ranks wait.

A collective ends at the same moment on all ranks, so all ranks measure the same time for a step, and fast ranks wait in
the collective for a slow one. Only the time that a rank spends outside collectives shows which rank is slow.
"""

from collections.abc import Mapping, Sequence
from statistics import median_low

from emocap_pretrain.run_folder.documents import Straggler

OWN_SECTIONS = ("data", "forward", "update")  # In the other sections a rank also waits for other ranks.
# A rank causes a warning if it is this many times slower than the median rank and costs this share of a step, in this
# many logged steps one after another.
WARN_FACTOR, WARN_SHARE, WARN_ROWS = 1.5, 0.05, 3
MAD_TO_DEVIATION = 1.4826  # The standard deviation of a normal distribution, in median absolute deviations.


def slowest_rank(seconds: Sequence[Mapping[str, float]], hosts: Sequence[str]) -> Straggler:
    """Finds the rank that spends the most time in `OWN_SECTIONS`, and compares this time with the median of all ranks.

    In these sections of a step a rank does not wait for other ranks. One rank is always the slowest, so the result
    alone does not show a problem. `StragglerWarnings` decides whether the rank is too slow. All ranks compute the same
    result, because `seconds` and `hosts` are equal on all ranks.

    Args:
        seconds: For each rank, the seconds that it spends in each section of a step.
        hosts: The host of each rank.
    """
    own = [sum(each[name] for name in OWN_SECTIONS) for each in seconds]
    # The low median of two ranks is the quicker one, so a slow rank is compared with the other and not with their mean.
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
        # The floor of 1 % keeps the score finite if all other ranks need exactly the same time.
        score=excess_s / max(deviation, 0.01 * median) if median > 0 else 0.0,
    )


class StragglerWarnings:
    """Warns of a rank that is too slow in `WARN_ROWS` logged steps one after another.

    A rank is too slow if three conditions hold. It is the slowest rank. Its time in `OWN_SECTIONS` is at least
    `WARN_FACTOR` times the median of all ranks. It exceeds this median by at least the fraction `WARN_SHARE` of the
    time of a step. The warning is given once, at the last of these `WARN_ROWS` steps. The count begins again at a
    logged step in which another rank, or no rank, is too slow.
    """

    def __init__(self) -> None:
        self._rank, self._rows = -1, 0

    def check(self, straggler: Straggler, step_s: float) -> str | None:
        """Counts one logged step, and returns a warning if it is due; otherwise None.

        Args:
            straggler: The slowest rank of this logged step.
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
