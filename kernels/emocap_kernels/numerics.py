"""What "numerically right" means here, in one place.

A result is right if it is no further from the exact one (the same formula in float64 on the whole batch) than the eager
code that it replaces, plus a stated slack. Distances are the largest absolute difference over a tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emocap_kernels.errors import NumericalError

# Eager code is sometimes exact by luck (one positive, a sum of two numbers), so the rule leaves room for a few
# roundings of the largest number that entered the sum.
SLACK_ROUNDINGS = 4.0


def distance(result: Tensor, exact: Tensor) -> float:
    """Largest absolute difference; infinite where one of the two is NaN."""
    if result.shape != exact.shape:
        raise NumericalError(f"the result has shape {tuple(result.shape)} and the exact one {tuple(exact.shape)}.")
    if exact.numel() == 0:
        return 0.0
    return (result.double() - exact.double()).abs().nan_to_num(nan=float("inf")).max().item()


def allowance(eager: Tensor, exact: Tensor, *, magnitude: float) -> float:
    """How far a result may be: as far as `eager`, and `SLACK_ROUNDINGS` roundings of `magnitude` on top."""
    return distance(eager, exact) + SLACK_ROUNDINGS * torch.finfo(eager.dtype).eps * magnitude


def require_right(name: str, result: Tensor, eager: Tensor, exact: Tensor, *, magnitude: float) -> None:
    """Holds a result to the rule.

    Args:
        name: Says in the error what was compared.
        result: Of the code under test.
        eager: Of the eager code that it replaces, in the dtype of `result`.
        exact: Of the formula in float64.
        magnitude: Of the largest number that enters the sums: for a loss the largest score, for a gradient the
            largest term of it.

    Raises:
        NumericalError: If the result is further from `exact` than the rule allows.
    """
    found, allowed = distance(result, exact), allowance(eager, exact, magnitude=magnitude)
    if not found <= allowed:
        raise NumericalError(
            f"{name} is {found:.3e} from float64; eager code is {distance(eager, exact):.3e} from it, and with the "
            f"slack {allowed:.3e} are allowed."
        )
