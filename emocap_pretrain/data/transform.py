"""Crops, rotates, mirrors and resizes decoded images to the size that the tower needs.

The random numbers for a sample depend only on (seed, epoch, sample index). Therefore they are the same on any rank, in
any loader process and in any attempt (decision 2).

Images here are numpy arrays of bytes, [height, width, 3], as the stream yields them. `Collate` puts the channels first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch.nn.functional import interpolate

from emocap_pretrain.config.fields import ImageCrop

ResizeFilter = Literal["nearest", "bilinear", "bicubic", "lanczos"]
_MODES = {"nearest": "nearest-exact"}  # torch's names of the filters, where they differ.


@dataclass(frozen=True, slots=True)
class Resize:
    """Says how the square of an image gets the size that a model reads.

    Attributes:
        filter: The filter. All filters except "nearest" are antialiased.
        side: The side in pixels to which the square is resized before its centre is cut out; None if nothing is cut
            off. Many models of image classification were trained so: resized to 256 pixels, cut to 224.
    """

    filter: ResizeFilter = "bicubic"
    side: int | None = None

    def without_margin(self) -> Self:
        """Returns the same filter, with which nothing is cut off."""
        return replace(self, side=None)


BICUBIC = Resize()
"""Resizes images for runs of this project, and for models that do not say how."""


def augment(
    image: UInt8[np.ndarray, "height width 3"],
    pixels: int,
    *,
    crop: float,
    flip: float,
    key: tuple[int, int, int],
    degrees: float = 0.0,
) -> tuple[UInt8[np.ndarray, "pixels pixels 3"], bool]:
    """Returns a random square crop, resized to `pixels`, and whether it is mirrored.

    Args:
        image: RGB image.
        pixels: Side of the result in pixels.
        crop: Smallest share of the shorter side that the crop keeps, in [0, 1].
        flip: Probability that the crop is mirrored, in [0, 1].
        key: (seed, epoch, sample index), which determines all random numbers.
        degrees: Angle by which the crop is rotated about its centre, counterclockwise and before it is mirrored. Its
            corners show what surrounds the crop; beyond the border of the image they repeat the pixels of the border.
    """
    # The numbers are drawn in a fixed order and all of them always, so that `flip` does not change the crop.
    random = np.random.default_rng(key)
    height, width = image.shape[:2]
    side = max(1, round(min(height, width) * random.uniform(crop, 1.0)))
    top, left = (int(random.integers(0, extent - side + 1)) for extent in (height, width))
    if degrees:
        square = _rotated(image, (top, left, side), pixels, degrees)
    else:
        square = resized(image[top : top + side, left : left + side], pixels)
    mirrored = bool(random.random() < flip)
    return (square[:, ::-1] if mirrored else square), mirrored


def _rotated(
    image: UInt8[np.ndarray, "height width 3"], square: tuple[int, int, int], pixels: int, degrees: float
) -> UInt8[np.ndarray, "pixels pixels 3"]:
    """Returns the square (top, left, side) of an image, rotated about its centre and resized to `pixels`."""
    top, left, side = square
    # The rotated square lies within a larger upright one. This one is resized first, so that fewer pixels are rotated.
    angle = math.radians(degrees)
    margin = math.ceil(side * (abs(math.cos(angle)) + abs(math.sin(angle)) - 1) / 2)
    ends = [(start - margin, start + side + margin) for start in (top, left)]
    inside = [slice(max(0, first), last) for first, last in ends]
    lacking = [
        (max(0, -first), max(0, last - extent)) for (first, last), extent in zip(ends, image.shape[:2], strict=True)
    ]
    around = np.pad(image[inside[0], inside[1]], (*lacking, (0, 0)), mode="edge")
    border = round(pixels * margin / side)
    turned = Image.fromarray(resized(around, pixels + 2 * border)).rotate(degrees, Image.Resampling.BILINEAR)
    return np.asarray(turned)[border : border + pixels, border : border + pixels]


def center_crop(image: UInt8[np.ndarray, "height width 3"], pixels: int) -> UInt8[np.ndarray, "pixels pixels 3"]:
    """Returns the central square of the image, resized to `pixels`. Evaluations use this crop."""
    return resized(_central_square(image), pixels)


def _central_square(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "side side 3"]:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def cropped(
    image: UInt8[np.ndarray, "height width 3"], pixels: int, crop: ImageCrop, resize: Resize = BICUBIC
) -> UInt8[np.ndarray, "pixels pixels 3"]:
    """Returns the central square of an image if `crop` is "center", and otherwise the whole image, resized to `pixels`.

    A whole image that is not square is stretched to a square. If `resize` cuts off a margin, the square is first
    resized to its side, and the central `pixels` of the result are returned.
    """
    side = resize.side or pixels
    square = resized(_central_square(image) if crop == "center" else image, side, resize.filter)
    start = (side - pixels) // 2
    return square[start : start + pixels, start : start + pixels]


def channels_first(
    images: Sequence[UInt8[np.ndarray, "height width 3"]],
) -> UInt8[torch.Tensor, "images 3 height width"]:
    """Returns images of equal size as one tensor, in the order that a tower reads.

    The tensor is contiguous, whatever the order of the images in memory is. `np.stack` would keep that order, and the
    towers compute other last bits for equal images in another order.
    """
    return torch.from_numpy(np.ascontiguousarray(np.stack([image.transpose(2, 0, 1) for image in images])))


def resized(
    image: UInt8[np.ndarray, "height width 3"], pixels: int, how: ResizeFilter = "bicubic"
) -> UInt8[np.ndarray, "pixels pixels 3"]:
    """Returns the image resized with an antialiased filter; "nearest" alone is not antialiased.

    The values of the bicubic filter differ from those of Pillow only by rounding (by at most 2 of 255). This function
    takes a quarter of the time that Pillow takes.
    """
    # torch warns about arrays that may not be written to; such an array is copied here, any other is not.
    channels = torch.from_numpy(np.require(image, requirements="W")).permute(2, 0, 1)[None]
    mode, antialias = _MODES.get(how, how), how != "nearest"
    resized = interpolate(channels, size=(pixels, pixels), mode=mode, antialias=antialias)
    return resized[0].permute(1, 2, 0).numpy()
