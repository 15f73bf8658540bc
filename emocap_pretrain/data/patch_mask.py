"""Finds the patches of an image that have more than one colour.

Images of aligned faces often have borders of one colour, which no sentence describes. The local loss leaves patches of
one colour out if `objective.patch_mask` is set. The mask is computed from the pixels, because a dataset does not
record which patches show a face (decision 26).
"""

import math

from jaxtyping import Bool, UInt8
from torch import Tensor

from emocap_pretrain.errors import ConfigError


def patches_with_contrast(
    images: UInt8[Tensor, "batch 3 height width"], patches: int, contrast: int
) -> Bool[Tensor, "batch patches"]:
    """Returns a mask that is True for each patch in which a colour channel varies by `contrast` or more.

    The columns of the mask are in the order of the patches that `ImageTower.encode_image` returns.

    Args:
        images: Square images, as the tower receives them.
        patches: Number of patches into which the tower divides an image, row by row.
        contrast: Smallest difference between two 8-bit values of the same channel.

    Raises:
        ConfigError: If the patches do not divide the image into equal squares.
    """
    side = patches_along_a_side(patches, images.shape[-1])
    # [batch, 3, row of the patch, row within it, column of the patch, column within it]
    cells = images.unflatten(3, (side, -1)).unflatten(2, (side, -1))
    # The difference of a maximum and a minimum is never negative, so it does not wrap around in uint8.
    spread = cells.amax((3, 5)) - cells.amin((3, 5))
    return (spread.amax(1) >= contrast).flatten(1)


def patches_along_a_side(patches: int, pixels: int) -> int:
    """Returns the number of patches along one side of a square image with `pixels` x `pixels` pixels.

    Raises:
        ConfigError: If the patches do not divide the image into equal squares.
    """
    side = math.isqrt(patches)
    if side * side != patches or pixels % side:
        raise ConfigError(
            f"objective.patch_mask: the tower makes {patches} patches of an image of {pixels} x {pixels} pixels, which "
            "do not divide it into equal squares; take another model.image.pixels, or leave patch_mask out."
        )
    return side
