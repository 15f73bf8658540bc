"""Defines curves in face units, the view that projects them to pixels, and the canvas on which they are painted.

A face unit is half the width of an average face. x runs to the right of the image and y down.

Three layers build on one another. Functions such as `spline` and `ribbon` make outlines in face units, as arrays of
points. A `View` projects these points to pixels, according to the pose of the head. A `Canvas` computes which part of
each pixel the outlines cover (a `Patch`), and paints it. `Sketch` combines a view and a canvas; the modules that draw
the head and the parts of the face use it.

The weights by which a curve is computed do not depend on the positions of its knots. So they are computed once and
cached.
"""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise

import numpy as np
from jaxtyping import Complex, Float
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from emocap_pretrain.captions.rendered.face import Pose
from emocap_pretrain.captions.rendered.palette import Colour

Points = Float[np.ndarray, "_ 2"]
Lines = Float[np.ndarray, "... _ 2"]


def points(*pairs: tuple[float, float]) -> Points:
    return np.array(pairs, dtype=np.float64)


def moved(shape: Points, x: float, y: float) -> Points:
    return shape + np.array((x, y))


def flipped(shape: Points, side: int) -> Points:
    """Returns the shape itself if `side` is 1, and its mirror image at the line x = 0 if `side` is -1."""
    return shape * (float(side), 1.0)


def mirrored(right: Points) -> Points:
    """Returns a closed outline that is symmetric about x = 0. `right` is its right half, from top to bottom."""
    return np.concatenate([right, flipped(right[::-1], -1)])


def arched(right: Points) -> Points:
    """Returns an open arc from left to right that is symmetric about x = 0.

    `right` is its right half, from the right end to the middle.
    """
    return np.concatenate([flipped(right, -1), right[::-1]])


@cache
def _weights(steps: int) -> Float[np.ndarray, "steps 4"]:
    """Returns the weights of four neighbouring knots at each of `steps` points of a Catmull-Rom spline.

    The points begin at the second knot and end before the third knot.
    """
    # The basis of the spline: row i holds the coefficients of t**i for the four knots.
    t = np.arange(steps) / steps
    powers = np.stack([np.ones_like(t), t, t * t, t**3], 1)
    matrix = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2
    return powers @ matrix


@cache
def _blend(knots: int, steps: int, *, closed: bool) -> Float[np.ndarray, "count knots"]:
    """Returns the weight of each knot at each point of a smooth curve, which has `steps` points from knot to knot.

    The first segment of an open curve needs a knot before the first knot. The second knot, mirrored at the first knot,
    is used as this missing knot. The last segment is treated in the same way.
    """
    count = knots if closed else knots - 1
    blend = np.zeros((count * steps + (not closed), knots))
    for segment in range(count):
        rows = slice(segment * steps, (segment + 1) * steps)
        for column, weight in zip(range(segment - 1, segment + 3), _weights(steps).T, strict=True):
            if closed or 0 <= column < knots:
                blend[rows, column % knots] += weight
            else:  # The missing knot is 2 * edge - inner, so its weight is divided among these two.
                edge, inner = (0, 1) if column < 0 else (knots - 1, knots - 2)
                blend[rows, edge] += 2 * weight
                blend[rows, inner] -= weight
    if not closed:
        blend[-1, -1] = 1
    return blend


def spline(knots: Lines, *, closed: bool = False) -> Lines:
    """Returns a smooth curve through all `knots` (Catmull and Rom 1974)."""
    return _blend(knots.shape[-2], 6, closed=closed) @ knots


@cache
def _course(knots: int, steps: int) -> Float[np.ndarray, "twice knots"]:
    """Returns a matrix whose product with the knots of an open curve holds the points and the directions of the curve.

    The upper half of the product holds the points, `steps` from one knot to the next. The lower half holds the
    direction of the curve at each point, which is computed from the difference of the neighbouring points.
    """
    blend = _blend(knots, steps, closed=False)
    return np.concatenate([blend, np.gradient(blend, axis=0)])


@cache
def _swell(count: int, taper: tuple[float, float]) -> Complex[np.ndarray, " count"]:
    """Returns half the width of a stroke at each of its `count` points, multiplied by the imaginary unit i.

    The width is 1 in the middle of the stroke; `taper` holds the widths at the start and at the end. `ribbon`
    multiplies the directions of the stroke, which are complex numbers, by the result. The factor i turns them by a
    right angle.
    """
    t = np.linspace(0, 1, count)
    swell = np.sin(np.pi * t)
    return 0.5j * (swell + (1 - swell) * (taper[0] * (1 - t) + taper[1] * t))


def ribbon(knots: Lines, width: float, taper: tuple[float, float] = (0.0, 0.0), steps: int = 4) -> Lines:
    """Returns the outline of a stroke through `knots`.

    The stroke is `width` wide in the middle. `taper` holds the widths at its start and at its end, as fractions of
    `width`. `steps` is the number of points from one knot to the next.
    """
    # The points are complex numbers, so that a turn by a right angle is a multiplication by i.
    course = (_course(knots.shape[-2], steps) @ knots).view(np.complex128)[..., 0]
    count = course.shape[-1] // 2
    line, across = course[..., :count], course[..., count:]
    across *= width * _swell(count, taper) / np.maximum(np.abs(across), 1e-9)
    return np.concatenate([line + across, (line - across)[..., ::-1]], axis=-1)[..., None].view(np.float64)


@cache
def _circle(count: int) -> Points:
    t = np.arange(count) * (2 * math.pi / count)
    return np.stack([np.cos(t), np.sin(t)], 1)


def ellipse(x: float, y: float, rx: float, ry: float, *, tilt: float = 0.0, count: int = 28) -> Points:
    return moved(turned(_circle(count) * (rx, ry), tilt), x, y)


def turned(shape: Points, angle: float) -> Points:
    """Returns the shape rotated clockwise about the origin by `angle` in radians."""
    if not angle:
        return shape
    cos, sin = math.cos(angle), math.sin(angle)
    return shape @ np.array([[cos, sin], [-sin, cos]])


# The half-axes of the ellipsoid in face units: depth, width and height. `View.place` contains the last two as numbers.
_DEPTH = 0.75
_CURVATURE = np.array([1 / 1.08, 1 / 1.6])
_ONES = np.ones((2, 1))


class View:
    """Projects points from face units to pixels. The points lie on half an ellipsoid, which approximates the head.

    `lift` is a distance from the ellipsoid, in face units. A positive `lift` moves points towards the viewer, such as
    those of the tip of the nose. A negative `lift` moves them away, such as those of the hair at the back of the head.
    """

    def __init__(self, pose: Pose, pixels: int) -> None:
        # A turn of the head shortens the face across its axis (cosine), and moves near points more than far ones (sine
        # times depth). There is no perspective.
        self.unit_px = pose.zoom * pixels
        self._turn = turned(np.diag([math.cos(pose.yaw), math.cos(pose.pitch)]), pose.roll) * self.unit_px
        forward = turned(np.array([[math.sin(pose.yaw), math.sin(pose.pitch)]]), pose.roll)
        self._forward = forward * self.unit_px
        self._origin = np.array([[(0.5 + pose.x) * pixels, (0.525 + pose.y) * pixels]])
        self._rows: list[list[float]] = np.concatenate([self._turn, self._forward, self._origin]).tolist()

    def project(self, shape: Points, lift: float = 0.0) -> Points:
        # Points beyond the rim of the ellipsoid, such as long hair, have the depth of the rim.
        bulge = 1 - np.square(shape * _CURVATURE) @ _ONES
        depth = _DEPTH * np.sqrt(np.maximum(bulge, 0.0)) + lift
        return shape @ self._turn + (depth * self._forward + self._origin)

    def place(self, x: float, y: float, lift: float = 0.0) -> tuple[float, float]:
        """Projects one point. This is faster than `project` and gives the same result."""
        depth = _DEPTH * math.sqrt(max(1 - (x / 1.08) ** 2 - (y / 1.6) ** 2, 0.0)) + lift
        (xx, xy), (yx, yy), (zx, zy), (ox, oy) = self._rows
        return x * xx + y * yx + depth * zx + ox, x * xy + y * yy + depth * zy + oy


FINE = 3
"""Number of sub-pixels along each side of a pixel. The number of covered sub-pixels smooths the edges of shapes."""


@dataclass(frozen=True, slots=True)
class Patch:
    """Holds how much of each pixel a shape covers, from 0 to 255.

    The first pixel of `mask` is the pixel in row `top` and column `left` of the image.
    """

    top: int
    left: int
    mask: Image.Image

    def inside(self, other: "Patch") -> "Patch":
        """Returns the intersection with `other`. The coverage of a pixel is the product of the two coverages."""
        left, top = self.left - other.left, self.top - other.top
        there = other.mask.crop((left, top, left + self.mask.width, top + self.mask.height))
        return Patch(self.top, self.left, ImageChops.multiply(self.mask, there))

    def dropped(self, rows: int) -> "Patch":
        """Returns the same shape moved down by `rows` pixels."""
        return Patch(self.top + rows, self.left, self.mask)


@cache
def _spot(level: int) -> Image.Image:
    """Returns a mask with a round Gaussian spot whose highest value is `level`.

    The mask extends two and a half standard deviations from the middle of the spot to each side.
    """
    line = np.exp(-0.5 * np.square(np.linspace(-2.5, 2.5, 65)))
    return Image.fromarray(np.rint(level * np.outer(line, line)).astype(np.uint8))


class Canvas:
    """Paints shapes on an sRGB image, in place.

    A shape is first drawn on a sheet with `FINE` times the resolution of the image. The sheet is then reduced to the
    coverage of each pixel. One sheet serves all shapes: it is empty between two calls, because each call clears what it
    has drawn.
    """

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
        """Returns the coverage by the union of filled outlines; None if the shape lies outside of the image.

        Args:
            corners: Corners of all outlines, one outline after the other, in pixels.
            ends: For each outline, the index of its last corner in `corners`, plus 1.
            opacity: Greatest coverage, in [0, 1].
            soft_px: Radius of the blur, in pixels.
            hole: An outline whose inside is not covered.
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
        """Returns the box in pixels (left, top, right, bottom) that contains a shape and a margin around the shape.

        Args:
            flat: Corners of the shape on the fine sheet, as x, y, x, y and so on.
            margin: Width of the margin in pixels.

        Returns:
            The box, limited to the image; None if the box lies outside of the image.
        """
        across, down = flat[::2], flat[1::2]  # Lists this short are faster than arrays.
        left, top = (max(int(min(line) // FINE) - margin, 0) for line in (across, down))
        right, bottom = (min(int(max(line) // FINE) + 1 + margin, self.pixels) for line in (across, down))
        return (left, top, right, bottom) if left < right and top < bottom else None

    def _count(self, window: tuple[int, int, int, int], soft_px: float) -> Image.Image:
        """Returns how much of each pixel the shape covers, in the box `window`, and clears the fine sheet.

        The fine sheet is the image on which the shape is drawn, with `FINE` x `FINE` sub-pixels for each pixel.
        `soft_px` is the radius of the blur of the coverage, in pixels.
        """
        left, top, right, bottom = (FINE * edge for edge in window)
        mask = self._fine.reduce(FINE, (left, top, right, bottom))
        self._fine.paste(0, (left, top, right, bottom))
        return blurred(mask, soft_px)

    @contextmanager
    def within(self, patch: Patch | None) -> Generator[None]:
        """Limits all painting in the `with` block to the patch.

        At the end of the block, the pixels outside of the patch get the colours back that they had before the block. If
        the patch is None, all pixels do.
        """
        # To restore the outside once is cheaper than to cut each of the many strokes of a face.
        before = self.picture.copy()
        yield
        inside = Image.new("L", before.size)
        if patch:
            inside.paste(patch.mask, (patch.left, patch.top))
        self.picture.paste(before, (0, 0), ImageChops.invert(inside))

    def fill(self, colour: Colour) -> None:
        self.picture.paste(_ink(colour), (0, 0, self.pixels, self.pixels))

    def paint(self, patch: Patch | None, colour: Colour, opacity: float = 1.0) -> None:
        """Paints `colour` over the patch; does nothing if the patch is None."""
        if patch is None:
            return
        mask = patch.mask
        if opacity < 1.0:
            mask = ImageChops.multiply(mask, Image.new("L", mask.size, round(255 * opacity)))
        box = patch.left, patch.top, patch.left + mask.width, patch.top + mask.height
        self.picture.paste(_ink(colour), box, mask)

    def glow(self, x: float, y: float, rx: float, ry: float, opacity: float) -> Patch | None:
        """Returns a Gaussian spot around pixel (x, y), with standard deviations of `rx` and `ry` pixels.

        It returns None if the spot lies outside of the image.
        """
        left, width = round(x - 2.5 * rx), max(round(5 * rx), 1)
        top, height = round(y - 2.5 * ry), max(round(5 * ry), 1)
        cut = max(-left, 0), max(-top, 0), min(self.pixels - left, width), min(self.pixels - top, height)
        if cut[0] >= cut[2] or cut[1] >= cut[3]:
            return None
        # The spot of each opacity is computed once, and only enlarged here.
        spot = _spot(round(255 * opacity)).resize((width, height), Image.Resampling.BILINEAR)
        return Patch(top + cut[1], left + cut[0], spot.crop(cut))


def blurred(mask: Image.Image, soft_px: float) -> Image.Image:
    """Returns the mask blurred by about `soft_px` pixels; below half a pixel the mask is returned unchanged."""
    if soft_px < 0.5:
        return mask
    once = mask.filter(ImageFilter.BoxBlur(soft_px))
    return once if soft_px < 1.5 else once.filter(ImageFilter.BoxBlur(soft_px * 0.7))


def _ink(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = colour
    return round(255 * red), round(255 * green), round(255 * blue)


def _fine(outline: Points) -> list[float]:
    """Converts corners from pixels to sub-pixels of the fine sheet, as a list x, y, x, y and so on.

    Pillow truncates coordinates. Therefore this function shifts them by half a sub-pixel and rounds them.
    """
    return np.rint(outline * FINE - 0.5).ravel().tolist()


class Sketch:
    """Draws shapes on a canvas. The shapes are given in face units, and a view projects them to pixels.

    `View` explains the argument `lift`.
    """

    def __init__(self, canvas: Canvas, view: View) -> None:
        self.canvas = canvas
        self.view = view

    def cover(
        self,
        *outlines: Points,
        opacity: float = 1.0,
        soft: float = 0.0,
        lift: float = 0.0,
        within: Patch | None = None,
    ) -> Patch | None:
        """Returns the patch that filled outlines cover; None if the patch lies outside of the image.

        Args:
            outlines: Closed outlines in face units.
            opacity: Greatest coverage, in [0, 1].
            soft: Radius of the blur, in face units.
            lift: Distance from the surface of the head towards the viewer, in face units.
            within: A patch to which the result is limited.
        """
        corners = outlines[0] if len(outlines) == 1 else np.concatenate(outlines)
        ends = list(accumulate(len(outline) for outline in outlines))
        seen = self.view.project(corners, lift)
        patch = self.canvas.cover(seen, ends, opacity=opacity, soft_px=soft * self.view.unit_px)
        return patch if patch is None or within is None else patch.inside(within)

    def fill(
        self,
        *outlines: Points,
        colour: Colour,
        opacity: float = 1.0,
        soft: float = 0.0,
        lift: float = 0.0,
        within: Patch | None = None,
    ) -> None:
        if opacity > 0.01:
            self.canvas.paint(self.cover(*outlines, opacity=opacity, soft=soft, lift=lift, within=within), colour)

    def ring(self, outer: Points, inner: Points, *, colour: Colour, lift: float = 0.0) -> None:
        """Paints the area in `outer` that is not in `inner`."""
        rim, hole = self.view.project(outer, lift), self.view.project(inner, lift)
        self.canvas.paint(self.canvas.cover(rim, [len(rim)], hole=hole), colour)

    def strokes(
        self,
        *knots: Points,
        width: float,
        colour: Colour,
        opacity: float = 1.0,
        taper: tuple[float, float] = (0.0, 0.0),
        soft: float = 0.0,
        lift: float = 0.0,
        within: Patch | None = None,
    ) -> None:
        """Paints brush strokes that are thickest in the middle.

        All strokes have the same number of knots. `ribbon` explains `taper`. A stroke that would be thinner than half a
        pixel is painted half a pixel wide, and fainter instead.
        """
        fade = min(1.0, 2 * width * self.view.unit_px)
        if opacity * fade <= 0.01:
            return
        lines = ribbon(np.array(knots), width / fade, taper)
        self.fill(*lines, colour=colour, opacity=opacity * fade, soft=soft, lift=lift, within=within)

    def glow(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        *,
        colour: Colour,
        opacity: float,
        lift: float = 0.0,
        within: Patch | None = None,
    ) -> None:
        """Paints a soft spot of colour; `rx` and `ry` are its Gaussian standard deviations in face units."""
        if opacity <= 0.01:
            return
        cx, cy = self.view.place(x, y, lift)
        patch = self.canvas.glow(cx, cy, rx * self.view.unit_px, ry * self.view.unit_px, opacity)
        self.canvas.paint(patch if patch is None or within is None else patch.inside(within), colour)
