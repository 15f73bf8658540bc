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

# Number of sentences that are nearly equal, mostly of different images.
_SIMILAR_SENTENCES = 4


@dataclass(frozen=True, slots=True)
class Regions:
    """A batch of the local loss.

    Attributes:
        patches: [rows, patches, width], unit vectors.
        sentences: [sentences, width], unit vectors.
        scale: 0-dim.
        owner: int64 [sentences], the row of each sentence, ascending; some rows own none.
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
    """Returns a batch as in the middle of training: a sentence is most similar to one patch of its image.

    Four sentences at a time, mostly of different images, are similar, at cosines that a rounding cannot move across the
    threshold of mining.
    """
    source = torch.Generator(device).manual_seed(seed)
    patches, sentences = size.regions

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, size.width, generator=source, device=device)

    def which(number: int) -> Tensor:
        return torch.randint(number, (sentences,), generator=source, device=device)

    owner, place = which(size.rows).sort().values, which(patches)
    topics = noise(-(-sentences // _SIMILAR_SENTENCES)).mul_(2)
    topic = topics[torch.arange(sentences, device=device) % len(topics)]
    image = noise(size.rows)
    vectors = noise(size.rows, patches).add_(image[:, None])
    vectors.index_put_((owner, place), topic, accumulate=True)
    return Regions(
        leaf(normalize(vectors, dim=2), dtype),
        leaf(normalize(noise(sentences) + image[owner] + topic, dim=1), dtype),
        # The usual starting value of the temperature.
        leaf(torch.tensor(1 / 0.07, device=device), torch.float32),
        owner,
    )
