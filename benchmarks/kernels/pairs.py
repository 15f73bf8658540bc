"""Batches of the global loss: pairs of image and text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .size import Size
from .subject import leaf
from .variants import Variant

_GROUP_ROWS = 4


@dataclass(frozen=True, slots=True)
class PairBatch:
    """A batch of the global loss. All tensors may need gradients.

    Attributes:
        image: [rows, width], unit vectors.
        text: [rows, width], unit vectors.
        scale: 0-dim.
        bias: 0-dim.
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor

    @property
    def device(self) -> torch.device:
        return self.image.device

    def leaves(self, variant: Variant) -> list[Tensor]:
        return [self.image, self.text, self.scale, *([self.bias] if variant.objective == "sigmoid" else [])]

    def to(self, dtype: torch.dtype) -> PairBatch:
        return PairBatch(*(leaf(tensor, dtype) for tensor in (self.image, self.text, self.scale, self.bias)))


def draw(size: Size, dtype: torch.dtype, device: torch.device, *, seed: int = 0) -> PairBatch:
    """Returns a batch as in the middle of training: own pairs are most similar, and rows in groups of four are similar.

    Mining finds the groups, at cosines that a rounding cannot move across the threshold.
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
