"""Maps the patch vectors of an image tower to vectors that a language model reads as tokens."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from emocap_pretrain.errors import ConfigError


class Projector(nn.Module):
    """Maps each patch vector alone: a layer norm without parameters, a linear layer, GELU, and a linear layer.

    The two linear layers are the projector of LLaVA-1.5 (Liu et al. 2024, "Improved Baselines with Visual Instruction
    Tuning"). The layer norm is an addition to it. These weights are the only ones of a captioner that are trained. The
    initial weights depend on the seed alone, and the state of torch's global generator is the same before and after.

    Args:
        patch_width: Size of the vector of a patch.
        token_width: Size of an embedding of the language model.
        seed: Determines the initial weights.
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
    """Returns at most `most` vectors for each image, each of which is the mean of a cell of the grid of its patches.

    If there are at most `most` patches, they are returned unchanged. Otherwise the patches must be a square grid in
    row-major order. The result is then a square grid too, in the same order, of the largest side whose square is at
    most `most`. Cells may overlap if this side does not divide the side of the grid.

    Raises:
        ConfigError: If there are more than `most` patches, and they are not a square grid.
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
