"""An image under construction, and the shapes that cover part of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFilter

from emocap_shards.synthetic.geometry import Points
from emocap_shards.synthetic.palette import Colour

FINE = 4
"""Sub-pixels on each side of a pixel: edges are smoothed by counting them."""


@dataclass(frozen=True, slots=True)
class Patch:
    """How much of each pixel a shape covers: `alpha` in [0, 1], its upper left pixel at row `top`, column `left`."""

    top: int
    left: int
    alpha: Float32[np.ndarray, "rows columns"]

    def inside(self, other: "Patch") -> "Patch":
        """Only what also lies in `other`; the product of both coverages."""
        rows, columns = self.alpha.shape
        clip = np.zeros((rows, columns), np.float32)
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom = min(self.top + rows, other.top + other.alpha.shape[0])
        right = min(self.left + columns, other.left + other.alpha.shape[1])
        if top < bottom and left < right:
            here = np.s_[top - self.top : bottom - self.top, left - self.left : right - self.left]
            there = np.s_[top - other.top : bottom - other.top, left - other.left : right - other.left]
            clip[here] = self.alpha[here] * other.alpha[there]
        return Patch(self.top, self.left, clip)


def cover(
    corners: Points, ends: Sequence[int], pixels: int, *, soft_px: float = 0.0, hole: Points | None = None
) -> Patch:
    """Coverage by the union of filled outlines, less `hole`, blurred by `soft_px`.

    Args:
        corners: Of all outlines, one after the other, in pixels.
        ends: Where each outline ends in `corners`; the last is their number.
        pixels: Size of the image; what lies outside is cut off.
        soft_px: Radius of the blur.
        hole: One more outline, that is left out.
    """
    margin = 1 + round(2 * soft_px)
    left, top = (max(int(low) - margin, 0) for low in corners.min(0).tolist())
    right, bottom = (min(int(high) + 1 + margin, pixels) for high in corners.max(0).tolist())
    if left >= right or top >= bottom:
        return Patch(0, 0, np.zeros((0, 0), np.float32))
    fine = Image.new("L", ((right - left) * FINE, (bottom - top) * FINE))
    draw = ImageDraw.Draw(fine)
    flat = _fine(corners, left, top)
    for start, end in pairwise((0, *ends)):
        draw.polygon(flat[2 * start : 2 * end], fill=255)
    if hole is not None:
        draw.polygon(_fine(hole, left, top), fill=0)
    coarse = fine.reduce(FINE)
    if soft_px > 0.2:
        coarse = coarse.filter(ImageFilter.BoxBlur(soft_px)).filter(ImageFilter.BoxBlur(soft_px * 0.7))
    return Patch(top, left, np.asarray(coarse, np.float32) * np.float32(1 / 255))


def _fine(outline: Points, left: int, top: int) -> list[float]:
    """Corners as Pillow wants them; it drops fractions, so half a sub-pixel is taken off first."""
    return np.rint(outline * FINE - (left * FINE + 0.5, top * FINE + 0.5)).ravel().tolist()


class Canvas:
    """Three colour planes in [0, 1], painted in place."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self.planes: Float32[np.ndarray, "3 rows columns"] = np.zeros((3, pixels, pixels), np.float32)

    def paint(self, patch: Patch, colour: Colour, opacity: float = 1.0) -> None:
        """Lay `colour` over the patch."""
        rows, columns = patch.alpha.shape
        if not patch.alpha.size:
            return
        window = self.planes[:, patch.top : patch.top + rows, patch.left : patch.left + columns]
        paint = np.array(colour, np.float32)[:, None, None]
        alpha = patch.alpha if opacity == 1.0 else patch.alpha * np.float32(opacity)
        window += (paint - window) * alpha

    def glow(self, x: float, y: float, rx: float, ry: float) -> Patch:
        """A soft upright spot centred on pixel (x, y): a Gaussian whose deviations are `rx` and `ry` pixels."""
        left, right = _reach(x, rx, self.pixels)
        top, bottom = _reach(y, ry, self.pixels)
        across = np.exp(-0.5 * ((np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x)) / np.float32(rx)) ** 2)
        down = np.exp(-0.5 * ((np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - y)) / np.float32(ry)) ** 2)
        return Patch(top, left, down[:, None] * across)

    def image(self) -> UInt8[np.ndarray, "rows columns 3"]:
        bytes_ = (np.clip(self.planes, 0, 1) * 255 + 0.5).astype(np.uint8)
        return np.ascontiguousarray(bytes_.transpose(1, 2, 0))


def _reach(centre: float, deviation: float, pixels: int) -> tuple[int, int]:
    """The pixels within two and a half deviations; none when the spot lies outside."""
    low = min(max(int(centre - 2.5 * deviation), 0), pixels)
    return low, max(min(int(centre + 2.5 * deviation) + 1, pixels), low)
