"""The local loss: all implementations that are measured, and other losses that are compared with it."""

from __future__ import annotations

from typing import Literal

from emocap_kernels import region_contrastive_loss
from torch import Tensor

from . import region_losses, region_truth
from .outcome import UnableError
from .regions import SHARPNESS, Regions, draw
from .size import Size
from .subject import Contender, Loss, Subject, compiled
from .variants import (
    FLAIR,
    FORWARD,
    LOCAL_THRESHOLD,
    LOCAL_VARIANTS,
    MAXSIM,
    PLAIN,
    SPARC,
    Variant,
    local_floor_flops,
)

_SMALL_ROWS, _SMALL_PATCHES, _SMALL_SENTENCES = 32, 49, 96


def ours(backend: Literal["reference", "chunked", "fused"], variant: Variant) -> Loss:
    """Returns our loss with a given backend."""

    def loss(batch: Regions) -> Tensor:
        if variant.function is not None and variant != SPARC:
            raise UnableError(f"ours has no such loss: {variant.function}")
        return region_contrastive_loss(
            batch.patches,
            batch.sentences,
            batch.owner,
            batch.scale,
            sharpness=SHARPNESS,
            scope="image" if variant == SPARC else "batch",
            mining=variant.mining,
            backend=backend,
        ).loss

    return loss


def roster() -> tuple[Contender, ...]:
    """Returns all contenders, ours first."""
    several, pooled = region_losses.dense_bytes, region_losses.pooled_bytes
    own = (PLAIN, LOCAL_THRESHOLD, SPARC)
    return (
        *(Contender("fused", variant, lambda v=variant: ours("fused", v), needs_cuda=True) for variant in own),
        *(Contender("chunked", variant, lambda v=variant: ours("chunked", v)) for variant in own),
        Contender("dense", PLAIN, lambda: region_losses.dense, dense=several),
        Contender("compiled", PLAIN, lambda: compiled(region_losses.dense), dense=several, compiles=True),
        Contender("reference", PLAIN, lambda: ours("reference", PLAIN), dense=several),
        Contender("dense", SPARC, lambda: region_losses.within_images),
        Contender("dense", FLAIR, lambda: region_losses.pooled_vectors, dense=pooled),
        Contender("blockwise", MAXSIM, lambda: region_losses.best_patches, passes=(FORWARD,)),
    )


REGION = Subject(
    name="region",
    what="local contrastive loss",
    records="region",
    variants=LOCAL_VARIANTS,
    roster=roster,
    draw=draw,
    small=lambda width: Size(_SMALL_ROWS, width, _SMALL_PATCHES, _SMALL_SENTENCES),
    reference=lambda variant: ours("reference", variant),
    floor_flops=local_floor_flops,
    exact=region_truth.exact,
)
