"""Defines the position in a stream as a plain value, which comes with each batch and is stored in checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emocap_shards.errors import PlanError


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A position in a stream: all ranks together have consumed `position` samples of epoch `epoch`.

    A cursor does not depend on the number of ranks, so a run can resume at any world size. The cursor that comes with a
    step (`RankStep.cursor`) is the position after the step, so a stream that starts there begins with the next step.
    Cursors of one stream are ordered: the later cursor is the larger one. `position` may be the end of the epoch.

    Example:
        ```python
        cursor = Cursor(epoch=2, position=4096)
        assert Cursor.from_json(cursor.to_json()) == cursor
        ```
    """

    epoch: int = 0
    position: int = 0

    def __post_init__(self) -> None:
        if self.epoch < 0 or self.position < 0:
            raise PlanError(f"cursor epoch={self.epoch}, position={self.position}: neither can be negative.")

    def to_json(self) -> dict[str, int]:
        """Returns the cursor as a mapping of integers, to be stored in a larger JSON document."""
        return {"epoch": self.epoch, "position": self.position}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Cursor":
        """Returns the cursor from a mapping that `to_json` returned.

        Raises:
            PlanError: If a number is missing, or is not a non-negative integer.
        """
        numbers = value.get("epoch"), value.get("position")
        # For Python, JSON's true is an integer too.
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
            raise PlanError(f"{value!r} is not a cursor; a cursor has the integers epoch and position.")
        return cls(value["epoch"], value["position"])
