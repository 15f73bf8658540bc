"""Damaged samples: refused, or put aside within a budget."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from emocap_shards.errors import BudgetSpent, DamagedSample

_log = logging.getLogger(__name__)


@dataclass
class Quarantine:
    """Counts distinct damaged samples of one stream in one process.

    `budget` is how many it accepts; with 0 the first one raises. `tell`, if given, hears of each new one.
    """

    budget: int = 0
    tell: Callable[[DamagedSample], None] | None = None
    held: dict[tuple[str, str], DamagedSample] = field(default_factory=dict[tuple[str, str], DamagedSample])

    def admit(self, damage: DamagedSample) -> None:
        """Puts the sample aside.

        Raises:
            DamagedSample: If there is no budget at all.
            BudgetSpent: If the budget is used up; it names every sample that was put aside.
        """
        if self.budget == 0:
            raise damage
        if (damage.shard, damage.key) in self.held:
            return
        if len(self.held) == self.budget:
            places = ", ".join(f"{shard}/{key}" for shard, key in self.held)
            raise BudgetSpent(f"error_budget={self.budget} is used up by {places}; then: {damage}") from damage
        self.held[damage.shard, damage.key] = damage
        _log.warning("quarantined: %s", damage)
        if self.tell:
            self.tell(damage)
