"""Holds an image under construction, and the shapes that cover parts of it."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from emocap_pretrain.captions.rendered.geometry import Points
from emocap_pretrain.captions.rendered.palette import Colour

FINE = 3
"""Sub-pixels on each side of a pixel; counting them smooths the edges."""


@dataclass(frozen=True, slots=True)
class Patch:
    """The coverage of each pixel by a shape, 0 to 255; `mask` begins at row `top`, column `left` of the image."""

    top: int
    left: int
    mask: Image.Image

    def inside(self, other: "Patch") -> "Patch":
        """Returns the part that also lies in `other`: the product of both coverages."""
        left, top = self.left - other.left, self.top - other.top
        there = other.mask.crop((left, top, left + self.mask.width, top + self.mask.height))
        return Patch(self.top, self.left, ImageChops.multiply(self.mask, there))

    def dropped(self, rows: int) -> "Patch":
        """Returns the same shape moved down by `rows`."""
        return Patch(self.top + rows, self.left, self.mask)


@cache
def _spot(level: int) -> Image.Image:
    """Returns a round Gaussian spot of height `level` in a square of two and a half deviations to each side."""
    line = np.exp(-0.5 * np.square(np.linspace(-2.5, 2.5, 65)))
    return Image.fromarray(np.rint(level * np.outer(line, line)).astype(np.uint8))


class Canvas:
    """An sRGB image that is painted in place, with a finer sheet on which shapes are drawn before they are counted."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self.picture = Image.new("RGB", (pixels, pixels))
        self._fine = Image.new("L", (pixels * FINE, pixels * FINE))
        self._draw = ImageDraw.Draw(self._fine)

    def cover(
        self,
        corners: Points,
        ends: Sequence[int],
        *,
        opacity: float = 1.0,
        soft_px: float = 0.0,
        hole: Points | None = None,
    ) -> Patch | None:
        """Returns the coverage by the union of filled outlines, without `hole`, blurred; None if nothing of it is
        visible.

        Args:
            corners: Corners of all outlines, one outline after the other, in pixels.
            ends: Where each outline ends in `corners`; the last end is their number.
            opacity: Greatest coverage, in [0, 1].
            soft_px: Radius of the blur.
            hole: One more outline, which is left out.
        """
        flat, ink = _fine(corners), round(255 * opacity)
        window = self._window(flat, 1 + round(2 * soft_px))
        if window is None:
            return None
        for start, end in pairwise((0, *ends)):
            self._draw.polygon(flat[2 * start : 2 * end], fill=ink)
        if hole is not None:
            self._draw.polygon(_fine(hole), fill=0)
        return Patch(window[1], window[0], self._count(window, soft_px))

    def _window(self, flat: Sequence[float], margin: int) -> tuple[int, int, int, int] | None:
        """Returns the pixels (left, top, right, bottom) that contain all corners on the fine sheet, and a margin."""
        across, down = flat[::2], flat[1::2]  # Lists this short are faster than arrays.
        left, top = (max(int(min(line) // FINE) - margin, 0) for line in (across, down))
        right, bottom = (min(int(max(line) // FINE) + 1 + margin, self.pixels) for line in (across, down))
        return (left, top, right, bottom) if left < right and top < bottom else None

    def _count(self, window: tuple[int, int, int, int], soft_px: float) -> Image.Image:
        """Takes the shape off the fine sheet, which is blank afterwards."""
        left, top, right, bottom = (FINE * edge for edge in window)
        mask = self._fine.reduce(FINE, (left, top, right, bottom))
        self._fine.paste(0, (left, top, right, bottom))
        return blurred(mask, soft_px)

    @contextmanager
    def within(self, patch: Patch | None) -> Generator[None]:
        """Limits everything that is painted inside of the `with` block to the patch, with one cut for all of it."""
        before = self.picture.copy()
        yield
        inside = Image.new("L", before.size)
        if patch:
            inside.paste(patch.mask, (patch.left, patch.top))
        self.picture.paste(before, (0, 0), ImageChops.invert(inside))

    def fill(self, colour: Colour) -> None:
        self.picture.paste(_ink(colour), (0, 0, self.pixels, self.pixels))

    def paint(self, patch: Patch | None, colour: Colour, opacity: float = 1.0) -> None:
        """Paints `colour` over the patch."""
        if patch is None:
            return
        mask = patch.mask
        if opacity < 1.0:
            mask = ImageChops.multiply(mask, Image.new("L", mask.size, round(255 * opacity)))
        box = patch.left, patch.top, patch.left + mask.width, patch.top + mask.height
        self.picture.paste(_ink(colour), box, mask)

    def glow(self, x: float, y: float, rx: float, ry: float, opacity: float) -> Patch | None:
        """Returns a soft upright spot centred on pixel (x, y): a Gaussian with deviations of `rx` and `ry` pixels."""
        left, width = round(x - 2.5 * rx), max(round(5 * rx), 1)
        top, height = round(y - 2.5 * ry), max(round(5 * ry), 1)
        cut = max(-left, 0), max(-top, 0), min(self.pixels - left, width), min(self.pixels - top, height)
        if cut[0] >= cut[2] or cut[1] >= cut[3]:
            return None
        spot = _spot(round(255 * opacity)).resize((width, height), Image.Resampling.BILINEAR)
        return Patch(top + cut[1], left + cut[0], spot.crop(cut))


def blurred(mask: Image.Image, soft_px: float) -> Image.Image:
    """Returns the mask blurred by about `soft_px`; a blur of less than half a pixel would not be visible."""
    if soft_px < 0.5:
        return mask
    once = mask.filter(ImageFilter.BoxBlur(soft_px))
    return once if soft_px < 1.5 else once.filter(ImageFilter.BoxBlur(soft_px * 0.7))


def _ink(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = colour
    return round(255 * red), round(255 * green), round(255 * blue)


def _fine(outline: Points) -> list[float]:
    """Returns the corners on the fine sheet.

    Pillow drops fractions, so corners are rounded first, half a sub-pixel inwards.
    """
    return np.rint(outline * FINE - 0.5).ravel().tolist()
