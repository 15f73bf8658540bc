"""The local loss: patches of images and sentences, and who is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import region_losses
import region_truth
import torch
from emocap_kernels import region_contrastive_loss
from outcome import UnableError
from subject import Contender, Loss, Size, Subject, compiled, leaf
from torch import Tensor
from torch.nn.functional import normalize
from variants import (
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

# Sentences that say the same of different images.
_SAYING_THE_SAME = 4
_SMALL_ROWS, _SMALL_PATCHES, _SMALL_SENTENCES = 32, 49, 96


@dataclass(frozen=True, slots=True)
class Regions:
    """Patches, sentences, and whose the sentences are.

    Attributes:
        patches: [rows, patches, width], unit vectors.
        sentences: [sentences, width], unit vectors.
        scale: 0-dim.
        owner: int64 [sentences], ascending; some rows own none.
    """

    patches: Tensor
    sentences: Tensor
    scale: Tensor
    owner: Tensor

    @property
    def device(self) -> torch.device:
        return self.patches.device

    def leaves(self, variant: Variant) -> list[Tensor]:
        del variant
        return [self.patches, self.sentences, self.scale]

    def to(self, dtype: torch.dtype) -> Regions:
        patches, sentences, scale = (leaf(tensor, dtype) for tensor in (self.patches, self.sentences, self.scale))
        return Regions(patches, sentences, scale, self.owner)


def draw(size: Size, dtype: torch.dtype, device: torch.device, *, seed: int = 0) -> Regions:
    """A batch half way through training: a sentence resembles one patch of its image, and the others a little.

    Four sentences, mostly of different images, say the same, at cosines that a rounding cannot move across the
    threshold of mining.
    """
    source = torch.Generator(device).manual_seed(seed)
    patches, sentences = size.regions

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, size.width, generator=source, device=device)

    def which(number: int) -> Tensor:
        return torch.randint(number, (sentences,), generator=source, device=device)

    owner, place = which(size.rows).sort().values, which(patches)
    sayings = noise(-(-sentences // _SAYING_THE_SAME)).mul_(2)
    said = sayings[torch.arange(sentences, device=device) % len(sayings)]
    image = noise(size.rows)
    vectors = noise(size.rows, patches).add_(image[:, None])
    vectors.index_put_((owner, place), said, accumulate=True)
    return Regions(
        leaf(normalize(vectors, dim=2), dtype),
        leaf(normalize(noise(sentences) + image[owner] + said, dim=1), dtype),
        # The usual starting value of the temperature.
        leaf(torch.tensor(1 / 0.07, device=device), torch.float32),
        owner,
    )


def ours(backend: Literal["reference", "chunked", "fused"], variant: Variant) -> Loss:
    def loss(batch: Regions) -> Tensor:
        if variant.function is not None and variant != SPARC:
            raise UnableError(f"ours has no such loss: {variant.function}")
        return region_contrastive_loss(
            batch.patches,
            batch.sentences,
            batch.owner,
            batch.scale,
            sharpness=region_losses.SHARPNESS,
            scope="image" if variant == SPARC else "batch",
            mining=variant.mining,
            backend=backend,
        ).loss

    return loss


def roster() -> tuple[Contender, ...]:
    """Everybody; ours first."""
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
    records="region.jsonl",
    variants=LOCAL_VARIANTS,
    roster=roster,
    draw=draw,
    small=lambda width: Size(_SMALL_ROWS, width, _SMALL_PATCHES, _SMALL_SENTENCES),
    reference=lambda variant: ours("reference", variant),
    floor_flops=local_floor_flops,
    exact=region_truth.exact,
)
