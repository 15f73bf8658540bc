"""The rule that says when a result is accurate enough. Tests and benchmarks apply it.

A result is accurate if it is no further from the exact one (the same formula in float64 on the whole batch) than the
eager code that it replaces, plus a stated slack. A distance is the largest absolute difference over a tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emocap_kernels.errors import NumericalError

# Eager code is sometimes exact by chance (one positive, a sum of two numbers), so the rule allows a few roundings of
# the largest number that entered the sum.
SLACK_ROUNDINGS = 4.0


def distance(result: Tensor, exact: Tensor) -> float:
    """Returns the largest absolute difference. It is infinite where one of the two is NaN.

    Raises:
        NumericalError: If the shapes differ.
    """
    if result.shape != exact.shape:
        raise NumericalError(f"the result has shape {tuple(result.shape)} and the exact one {tuple(exact.shape)}.")
    if exact.numel() == 0:
        return 0.0
    return (result.double() - exact.double()).abs().nan_to_num(nan=float("inf")).max().item()


def allowed_distance(eager: Tensor, exact: Tensor, *, magnitude: float) -> float:
    """Returns the distance of `eager` plus `SLACK_ROUNDINGS` roundings of `magnitude` in the type of `eager`."""
    return distance(eager, exact) + SLACK_ROUNDINGS * torch.finfo(eager.dtype).eps * magnitude


def require_accurate(name: str, result: Tensor, eager: Tensor, exact: Tensor, *, magnitude: float) -> None:
    """Checks one result against the rule.

    Args:
        name: What is compared; it begins the error message.
        result: The value of the code under test.
        eager: The value of the eager code that it replaces, in the type of `result`.
        exact: The value of the formula in float64.
        magnitude: The largest number that enters the sums: for a loss the largest score, for a gradient its largest
            term.

    Raises:
        NumericalError: If the result is further from `exact` than the rule allows.
    """
    found, allowed = distance(result, exact), allowed_distance(eager, exact, magnitude=magnitude)
    if not found <= allowed:
        raise NumericalError(
            f"{name} is {found:.3e} from float64. Eager code is {distance(eager, exact):.3e} from it, and with the "
            f"slack at most {allowed:.3e} are allowed."
        )
