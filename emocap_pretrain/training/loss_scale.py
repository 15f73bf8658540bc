"""Defines the loss scale of fp16, which keeps small gradients from becoming zero.

In float16 a gradient below about 6e-8 is zero, and above 65504 it is infinite. So the loss is multiplied by a large
number, the loss scale, and the gradients of the float32 weights are divided by it again. The rule is that of
`torch.amp.GradScaler`. That class cannot be used, because under ZeRO 1 to 3 DeepSpeed divides the gradients, which are
not those of torch's parameters there. So the rule is a pure function here.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

FIRST, LEAST, LARGEST = 2.0**16, 1.0, 2.0**24
UPDATES_BEFORE_GROWTH = 2000


@dataclass(frozen=True, slots=True)
class LossScale:
    """Holds the loss scale after some updates, equal on all ranks.

    Example:
        LossScale(value=8.0).after(overflowed=True)  # LossScale(value=4.0, updates=0, overflows=1)

    Attributes:
        value: The number by which the loss is multiplied, a power of two.
        updates: Number of updates in a row since the value changed.
        overflows: Number of updates of the run that were left out, because a gradient was infinite or not a number.
    """

    value: float = FIRST
    updates: int = 0
    overflows: int = 0

    @property
    def can_shrink(self) -> bool:
        """Returns whether a smaller scale may cure an infinite gradient. If not, the gradient itself is at fault."""
        return self.value > LEAST

    def after(self, *, overflowed: bool) -> "LossScale":
        """Returns the scale for the next step.

        It is halved after an overflow, and doubled after `UPDATES_BEFORE_GROWTH` updates in a row.
        """
        if overflowed:
            return LossScale(max(LEAST, self.value / 2), 0, self.overflows + 1)
        if self.updates + 1 == UPDATES_BEFORE_GROWTH:
            return LossScale(min(LARGEST, self.value * 2), 0, self.overflows)
        return LossScale(self.value, self.updates + 1, self.overflows)

    def to_tensors(self) -> dict[str, Tensor]:
        """Returns the state as a checkpoint stores it."""
        values = {"loss_scale": self.value, "loss_scale_updates": self.updates, "loss_scale_overflows": self.overflows}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    @classmethod
    def from_tensors(cls, stored: dict[str, Tensor]) -> Self:
        """Returns the loss scale from a state that `to_tensors` has returned."""
        value, updates, overflows = (float(stored[name]) for name in NAMES)
        return cls(value, int(updates), int(overflows))


NAMES = tuple(LossScale().to_tensors())
"""The names of the stored tensors."""
