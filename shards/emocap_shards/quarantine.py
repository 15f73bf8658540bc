"""Raises an error for damaged samples, or leaves them out within a budget."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from emocap_shards.errors import BudgetSpent, DamagedSample

_log = logging.getLogger(__name__)


@dataclass
class SampleQuarantine:
    """Collects the distinct damaged samples of a stream, at most `budget` of them.

    With a budget of 0 the first damaged sample raises its error.
    """

    budget: int = 0
    held: dict[tuple[str, str], DamagedSample] = field(default_factory=dict[tuple[str, str], DamagedSample])

    def admit(self, damage: DamagedSample) -> bool:
        """Records a sample as left out, and returns whether it was not recorded before.

        Raises:
            DamagedSample: If the budget is 0.
            BudgetSpent: If the budget is used up. The error lists the samples that were left out, and this one.
        """
        if self.budget == 0:
            raise damage
        if (damage.shard, damage.key) in self.held:
            return False
        if len(self.held) == self.budget:
            raise BudgetSpent(
                f"error_budget={self.budget} is used up by {_named(self.held)}; then: {damage}",
                damaged=(*self.held.values(), damage),
            ) from damage
        self.held[damage.shard, damage.key] = damage
        _log.warning("quarantined: %s", damage)
        return True


def _named(places: Iterable[tuple[str, str]], *, at_most: int = 20) -> str:
    names = [f"{shard}/{key}" for shard, key in places]
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
