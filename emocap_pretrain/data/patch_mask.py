"""Finds the patches of an image that show nothing.

Aligned faces often have borders of one colour, and no sentence describes them.
"""

import math

from jaxtyping import Bool, UInt8
from torch import Tensor

from emocap_pretrain.errors import ConfigError


def patches_with_contrast(
    images: UInt8[Tensor, "batch 3 height width"], patches: int, contrast: int
) -> Bool[Tensor, "batch patches"]:
    """Returns True for each patch in which the values of some colour differ by `contrast` or more.

    Args:
        images: What the tower sees; squares.
        patches: How many patches the tower makes of an image, row by row.
        contrast: In levels of 8 bits.

    Raises:
        ConfigError: If the patches are no even squares of the image.
    """
    side = patches_along_a_side(patches, images.shape[-1])
    cells = images.unflatten(3, (side, -1)).unflatten(2, (side, -1))
    spread = cells.amax((3, 5)) - cells.amin((3, 5))
    return (spread.amax(1) >= contrast).flatten(1)


def patches_along_a_side(patches: int, pixels: int) -> int:
    """Returns the number of patches in a row of a square image of so many pixels.

    Raises:
        ConfigError: If the patches are no even squares of the image.
    """
    side = math.isqrt(patches)
    if side * side != patches or pixels % side:
        raise ConfigError(
            f"objective.patch_mask: the tower makes {patches} patches of an image of {pixels} x {pixels} pixels, which "
            "are not its even squares; take another model.image.pixels, or leave patch_mask out."
        )
    return side
