"""Which backend computes the local loss."""

from __future__ import annotations

from torch import Tensor

from emocap_kernels.choice import Backend, Choice, chosen, obstacle
from emocap_kernels.mining import Mining
from emocap_kernels.region.inputs import Scope


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
    # Within an image there is little to multiply: no kernel of ours beats the library there.
    found = "scope='image' has no kernels" if scope == "image" else obstacle([patches, sentences], mining)
    return chosen(backend, found, patches)
