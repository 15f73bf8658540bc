"""Defines the batches of the global loss (pairs of image and text) and of the local loss (patches and sentences).

The vectors are random, but form groups of similar vectors. Mining selects additional positives by their similarity, for
example all pairs above a threshold. The cosines of the vectors are far from the thresholds that `subjects` sets.
So rounding does not change which pairs are above the threshold, and every implementation finds the same positives with
every dtype. On the same device, equal seeds and sizes give equal batches.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from emocap_kernels import choose_backend, choose_region_backend, contrastive_loss, region_contrastive_loss
from torch import Tensor
from torch.nn.functional import normalize

from .subject import Size, Variant, leaf

SHARPNESS = 10.0
# The number of rows of a batch of pairs that are similar to each other.
_GROUP_ROWS = 4
# The number of sentences, mostly of different images, that are similar to each other.
_SIMILAR_SENTENCES = 4


@dataclass(frozen=True, slots=True)
class PairBatch:
    """A batch of the global loss. All tensors are leaves of autograd.

    Attributes:
        image: [rows, width], unit vectors.
        text: [rows, width], unit vectors.
        scale: 0-dim, the factor of the cosines in the loss (`logit_scale`).
        bias: 0-dim, the bias of the sigmoid loss.
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor

    @property
    def device(self) -> torch.device:
        return self.image.device

    @property
    def backend(self) -> str:
        return choose_backend(self.image, self.text).backend

    def loss(self, **settings: Any) -> Tensor:
        return contrastive_loss(self.image, self.text, self.scale, **settings).loss

    def leaves(self, variant: Variant) -> list[Tensor]:
        return [self.image, self.text, self.scale, *([self.bias] if variant.objective == "sigmoid" else [])]

    def share(self, rows: slice) -> Self:
        image, text = (leaf(each[rows], each.dtype) for each in (self.image, self.text))
        return replace(self, image=image, text=text)

    def to(self, dtype: torch.dtype) -> Self:
        return type(self)(*(leaf(tensor, dtype) for tensor in (self.image, self.text, self.scale, self.bias)))


def draw_pairs(size: Size, dtype: torch.dtype, device: torch.device, *, seed: int = 0) -> PairBatch:
    """Returns a batch that resembles one in the middle of training: an image is most similar to its own text.

    The rows form groups of four similar rows, and mining by a threshold selects the other rows of a group as positives.
    The cosines are so far from the threshold that rounding does not change these positives.
    """
    source = torch.Generator(device).manual_seed(seed)
    rows = size.rows

    def noise(count: int) -> Tensor:
        return torch.randn(count, size.width, generator=source, device=device)

    shared = noise(-(-rows // _GROUP_ROWS)).repeat_interleave(_GROUP_ROWS, 0)[:rows]
    shared += noise(rows)
    image, text = (leaf(normalize(noise(rows).add_(shared), dim=1), dtype) for _ in range(2))
    # The usual starting values of the temperature and of the bias of a sigmoid loss.
    scale, bias = (leaf(torch.tensor(number, device=device), torch.float32) for number in (1 / 0.07, -10.0))
    return PairBatch(image, text, scale, bias)


@dataclass(frozen=True, slots=True)
class Regions:
    """A batch of the local loss. All tensors but `owner` are leaves of autograd.

    Attributes:
        patches: [rows, patches, width], unit vectors.
        sentences: [sentences, width], unit vectors.
        scale: 0-dim, the factor of the similarities in the loss (`logit_scale`).
        owner: int64 [sentences], the row of the image to which each sentence belongs, in ascending order. Some images
            have no sentence.
    """

    patches: Tensor
    sentences: Tensor
    scale: Tensor
    owner: Tensor

    @property
    def device(self) -> torch.device:
        return self.patches.device

    @property
    def backend(self) -> str:
        return choose_region_backend(self.patches, self.sentences).backend

    def loss(self, **settings: Any) -> Tensor:
        arguments = (self.patches, self.sentences, self.owner, self.scale)
        return region_contrastive_loss(*arguments, sharpness=SHARPNESS, **settings).loss

    def leaves(self, variant: Variant) -> list[Tensor]:
        del variant
        return [self.patches, self.sentences, self.scale]

    def share(self, rows: slice) -> Self:
        chosen = (self.owner >= rows.start) & (self.owner < rows.stop)
        parts = (self.patches[rows], self.sentences[chosen])
        patches, sentences = (leaf(each, each.dtype) for each in parts)
        return replace(self, patches=patches, sentences=sentences, owner=self.owner[chosen] - rows.start)

    def to(self, dtype: torch.dtype) -> Self:
        patches, sentences, scale = (leaf(tensor, dtype) for tensor in (self.patches, self.sentences, self.scale))
        return replace(self, patches=patches, sentences=sentences, scale=scale)


def draw_regions(size: Size, dtype: torch.dtype, device: torch.device, *, seed: int = 0) -> Regions:
    """Returns a batch that resembles one in the middle of training: a sentence is most similar to a patch of its image.

    The sentences form groups of four similar sentences, mostly of different images. Their cosines are so far from the
    threshold of mining that rounding does not change the positives.
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
