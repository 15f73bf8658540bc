"""Maps the patch vectors of an image tower to vectors that a language model reads as tokens."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from emocap_pretrain.errors import ConfigError


class Projector(nn.Module):
    """Implements the projector of LLaVA-1.5: a linear layer, GELU, and a linear layer, for each patch alone.

    Liu et al. 2024, "Improved Baselines with Visual Instruction Tuning". Its weights are the only ones that are
    trained here. They are drawn from a generator of their own, so that no other random number is affected.
    """

    def __init__(self, patch_width: int, token_width: int, *, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.LayerNorm(patch_width, elementwise_affine=False),
                nn.Linear(patch_width, token_width),
                nn.GELU(),
                nn.Linear(token_width, token_width),
            )

    def forward(self, patches: Float[Tensor, "batch tokens patch_width"]) -> Float[Tensor, "batch tokens width"]:
        return self.layers(patches)


def pooled_to(patches: Float[Tensor, "batch patches width"], most: int) -> Float[Tensor, "batch tokens width"]:
    """Returns the patches, averaged over cells of their grid until there are at most `most` of them.

    The result is a square grid too, in row-major order. If the patches are not a square grid, and there are more than
    `most`, they cannot be averaged over cells.

    Raises:
        ConfigError: If there are too many patches and they are not a square grid.
    """
    count = patches.shape[1]
    if count <= most:
        return patches
    side = math.isqrt(count)
    if side * side != count:
        raise ConfigError(
            f"--image-tokens {most}: the image tower has {count} patches, which are not a square grid, so they cannot "
            f"be averaged: give at least {count}."
        )
    grid = patches.transpose(1, 2).unflatten(2, (side, side))
    return adaptive_avg_pool2d(grid, math.isqrt(most)).flatten(2).transpose(1, 2)
