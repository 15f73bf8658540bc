"""From a decoded face to the pixels that the tower sees: crop, mirror, resize.

The randomness of a sample is a function of (seed, epoch, sample), so it is the same whatever rank, worker or attempt
reads it.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def augment(
    image: UInt8[np.ndarray, "height width 3"],
    pixels: int,
    *,
    crop: float,
    flip: float,
    key: tuple[int, int, int],
) -> UInt8[np.ndarray, "pixels pixels 3"]:
    """A random square crop, mirrored or not, at `pixels`.

    Args:
        image: RGB.
        pixels: Side of the result.
        crop: Smallest share of the shorter side that the crop keeps, in [0, 1].
        flip: Probability of a mirror image.
        key: (seed, epoch, sample index).
    """
    random = np.random.default_rng(key)
    height, width = image.shape[:2]
    side = max(1, round(min(height, width) * random.uniform(crop, 1.0)))
    top, left = (int(random.integers(0, extent - side + 1)) for extent in (height, width))
    square = _resize(image, (left, top, left + side, top + side), pixels)
    return square[:, ::-1] if random.random() < flip else square


def centre(image: UInt8[np.ndarray, "height width 3"], pixels: int) -> UInt8[np.ndarray, "pixels pixels 3"]:
    """The central square at `pixels`: what evaluation sees."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return _resize(image, (left, top, left + side, top + side), pixels)


def _resize(image: np.ndarray, box: tuple[int, int, int, int], pixels: int) -> UInt8[np.ndarray, "pixels pixels 3"]:
    resized = Image.fromarray(image).resize((pixels, pixels), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized)
