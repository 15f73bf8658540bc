"""The embeddings that every contender is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize
from variants import Variant

_GROUP_ROWS = 4


@dataclass(frozen=True, slots=True)
class Batch:
    """Unit vectors `image` and `text` [rows, width]; `scale` and `bias` 0-dim; all may need gradients."""

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor

    def leaves(self, variant: Variant) -> list[Tensor]:
        """The inputs that `variant` has gradients for."""
        return [self.image, self.text, self.scale, *([self.bias] if variant.objective == "sigmoid" else [])]

    def to(self, dtype: torch.dtype) -> Batch:
        """The same numbers as new leaves of another type."""
        return Batch(*(_leaf(tensor, dtype) for tensor in (self.image, self.text, self.scale, self.bias)))


def draw(rows: int, width: int, dtype: torch.dtype, device: torch.device, *, seed: int = 0) -> Batch:
    """A batch half way through training: own pairs stand out, groups of four rows resemble each other.

    The groups give mining something to find, at cosines that a rounding cannot move across the threshold.
    """
    source = torch.Generator(device).manual_seed(seed)

    def noise(count: int) -> Tensor:
        return torch.randn(count, width, generator=source, device=device)

    shared = noise(-(-rows // _GROUP_ROWS)).repeat_interleave(_GROUP_ROWS, 0)[:rows]
    shared += noise(rows)
    image, text = (_leaf(normalize(noise(rows).add_(shared), dim=1), dtype) for _ in range(2))
    # The usual starting values of the temperature and of the bias of a sigmoid loss.
    scale, bias = (_leaf(torch.tensor(number, device=device), torch.float32) for number in (1 / 0.07, -10.0))
    return Batch(image, text, scale, bias)


def _leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype).requires_grad_()
