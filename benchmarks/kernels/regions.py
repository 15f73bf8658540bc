"""Batches of the local loss: patches of images, and sentences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .size import Size
from .subject import leaf
from .variants import Variant

SHARPNESS = 10.0

# Sentences that say the same of different images.
_SAYING_THE_SAME = 4


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
