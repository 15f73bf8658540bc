"""Which backend computes the local loss."""

from __future__ import annotations

from torch import Tensor

from emocap_kernels.choice import Backend, Choice, chosen, obstacle
from emocap_kernels.mining import Mining
from emocap_kernels.region.inputs import Scope

# Within an image the similarities of a sentence with all patches lie in registers.
MOST_PATCHES_WITHIN = 256


def choose_region_backend(
    patches: Tensor,
    sentences: Tensor,
    *,
    scope: Scope = "batch",
    mining: Mining | None = None,
    backend: Backend = "auto",
) -> Choice:
    """What `region_contrastive_loss` does with these arguments, and why, as `choose_backend` for the global loss.

    Raises:
        ArgumentError: If `backend` is unknown.
        NotSupportedError: If `backend` is `fused` and it cannot run.
    """
    found = obstacle([patches, sentences], mining)
    if found is None and scope == "image" and patches.shape[-2] > MOST_PATCHES_WITHIN:
        found = f"{patches.shape[-2]} patches are above {MOST_PATCHES_WITHIN}, the most with scope='image'"
    return chosen(backend, found, patches)
