"""Where a stream stands: a plain value that travels with the batch into the checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emocap_shards.errors import PlanError


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """`position` samples of epoch `epoch` are consumed, by all ranks together: valid at any world size."""

    epoch: int = 0
    position: int = 0

    def __post_init__(self) -> None:
        if self.epoch < 0 or self.position < 0:
            raise PlanError(f"cursor epoch={self.epoch}, position={self.position}: neither can be negative.")

    def to_json(self) -> dict[str, int]:
        """Plain numbers, for a larger JSON document."""
        return {"epoch": self.epoch, "position": self.position}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Cursor":
        """What `to_json` gave.

        Raises:
            PlanError: If a number is missing, or is no whole number from zero up.
        """
        numbers = value.get("epoch"), value.get("position")
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
            raise PlanError(f"{value!r} is no cursor; it has the whole numbers epoch and position.")
        return cls(value["epoch"], value["position"])
