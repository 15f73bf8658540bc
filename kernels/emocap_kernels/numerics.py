"""Defines when a result is accurate enough. Tests and benchmarks apply this rule.

The exact result is that of the same formula in float64 on the whole batch. The distance of two tensors is their largest
absolute difference. Eager code is the plain torch code that a backend replaces. A result is accurate if its distance
from the exact result is at most that of the eager code's result, plus a small slack. docs/method.md, section 4,
promises this for every backend and number of ranks.

`require_accurate` applies the rule. It takes the result of the eager code and the exact result, but no fixed tolerance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emocap_kernels.errors import NumericalError

# Eager code is sometimes exact by chance (one positive, a sum of two numbers), so the rule allows a few roundings of
# the largest number that entered the sum.
SLACK_ROUNDINGS = 4.0


def distance(result: Tensor, exact: Tensor) -> float:
    """Returns the largest absolute difference of two tensors, or infinity if one of them contains NaN.

    Raises:
        NumericalError: If the shapes differ.
    """
    if result.shape != exact.shape:
        raise NumericalError(f"the result has shape {tuple(result.shape)} and the exact one {tuple(exact.shape)}.")
    if exact.numel() == 0:
        return 0.0
    return (result.double() - exact.double()).abs().nan_to_num(nan=float("inf")).max().item()


def allowed_distance(eager: Tensor, exact: Tensor, *, magnitude: float) -> float:
    """Returns the largest distance from `exact` that a result may have.

    This is the distance of `eager` from `exact`, plus `SLACK_ROUNDINGS` times the rounding error of a number as large
    as `magnitude` in the type of `eager`.
    """
    return distance(eager, exact) + SLACK_ROUNDINGS * torch.finfo(eager.dtype).eps * magnitude


def require_accurate(name: str, result: Tensor, eager: Tensor, exact: Tensor, *, magnitude: float) -> None:
    """Raises an error unless `result` is accurate by the rule of this module.

    Args:
        name: Name of the compared value, with which the error message begins.
        result: The value that the code under test computed.
        eager: The value that the replaced eager code computed, in the type of `result`.
        exact: The value of the formula in float64.
        magnitude: The largest number that enters the sums: for a loss the largest score, for a gradient its largest
            term.

    Raises:
        NumericalError: If `result` is further from `exact` than the rule allows.
    """
    found, allowed = distance(result, exact), allowed_distance(eager, exact, magnitude=magnitude)
    if not found <= allowed:
        raise NumericalError(
            f"{name} is {found:.3e} from float64. Eager code is {distance(eager, exact):.3e} from it, and with the "
            f"slack at most {allowed:.3e} are allowed."
        )
