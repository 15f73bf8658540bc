"""Which backend computes the global loss."""

from __future__ import annotations

from torch import Tensor

from emocap_kernels.choice import Backend, Choice, chosen, obstacle
from emocap_kernels.contrastive.objectives import Objective, objective_of
from emocap_kernels.mining import Mining


def choose_backend(
    image: Tensor,
    text: Tensor,
    *,
    objective: Objective = "infonce",
    mining: Mining | None = None,
    guide_image: Tensor | None = None,
    guide_text: Tensor | None = None,
    backend: Backend = "auto",
) -> Choice:
    """What `contrastive_loss` does with these arguments, and why: `auto` is `fused` wherever that can run.

    It depends on device, dtype, width, objective and mining rule, never on the number of rows: no result changes its
    rounding when a batch grows past some size, and ranks with uneven rows choose alike.

    Raises:
        ArgumentError: If `backend` or `objective` is unknown.
        NotSupportedError: If `backend` is `fused` and it cannot run.
    """
    vectors = [each for each in (image, text, guide_image, guide_text) if each is not None]
    found, formula = obstacle(vectors, mining), objective_of(objective)
    if found is None and not formula.has_kernels:
        found = f"the objective {formula.name!r} has no fused kernels"
    return chosen(backend, found, image)
