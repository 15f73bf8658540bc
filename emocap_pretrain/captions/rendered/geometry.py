"""Computes curves of the face in face units: x right, y down, 1 is half a face width, the origin is between the
cheeks.
"""

import math
from functools import cache

import numpy as np
from jaxtyping import Complex, Float

from emocap_pretrain.captions.rendered.scene import Pose

Points = Float[np.ndarray, "_ 2"]
Lines = Float[np.ndarray, "... _ 2"]


def points(*pairs: tuple[float, float]) -> Points:
    return np.array(pairs, dtype=np.float64)


def moved(shape: Points, x: float, y: float) -> Points:
    return shape + np.array((x, y))


def flipped(shape: Points, side: int) -> Points:
    """Returns the shape itself for `side` 1, and its mirror image for `side` -1."""
    return shape * (float(side), 1.0)


def mirrored(right: Points) -> Points:
    """Returns a closed symmetric outline, given its right half from top to bottom."""
    return np.concatenate([right, flipped(right[::-1], -1)])


def arched(right: Points) -> Points:
    """Returns an open symmetric arc from left to right, given its right half from its foot to its top."""
    return np.concatenate([flipped(right, -1), right[::-1]])


@cache
def _weights(steps: int) -> Float[np.ndarray, "steps 4"]:
    """Returns the Catmull-Rom weights of four neighbouring knots at `steps` places between the middle two."""
    t = np.arange(steps) / steps
    powers = np.stack([np.ones_like(t), t, t * t, t**3], 1)
    matrix = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2
    return powers @ matrix


@cache
def _blend(knots: int, steps: int, *, closed: bool) -> Float[np.ndarray, "count knots"]:
    """Returns the share of each knot in each point of a curve through them; an open curve mirrors its second knot."""
    count = knots if closed else knots - 1
    blend = np.zeros((count * steps + (not closed), knots))
    for segment in range(count):
        rows = slice(segment * steps, (segment + 1) * steps)
        for column, weight in zip(range(segment - 1, segment + 3), _weights(steps).T, strict=True):
            if closed or 0 <= column < knots:
                blend[rows, column % knots] += weight
            else:
                edge, inner = (0, 1) if column < 0 else (knots - 1, knots - 2)
                blend[rows, edge] += 2 * weight
                blend[rows, inner] -= weight
    if not closed:
        blend[-1, -1] = 1
    return blend


def spline(knots: Lines, steps: int = 6, *, closed: bool = False) -> Lines:
    """Returns a smooth curve through all `knots` (Catmull and Rom 1974)."""
    return _blend(knots.shape[-2], steps, closed=closed) @ knots


@cache
def _course(knots: int, steps: int) -> Float[np.ndarray, "twice knots"]:
    """Returns the weights of the knots in the points of an open curve, and below them the weights in its direction
    there.
    """
    blend = _blend(knots, steps, closed=False)
    return np.concatenate([blend, np.gradient(blend, axis=0)])


@cache
def _swell(count: int, taper: tuple[float, float]) -> Complex[np.ndarray, " count"]:
    """Returns half the width along a stroke whose middle is 1 wide, turned by a right angle."""
    t = np.linspace(0, 1, count)
    swell = np.sin(np.pi * t)
    return 0.5j * (swell + (1 - swell) * (taper[0] * (1 - t) + taper[1] * t))


def ribbon(knots: Lines, width: float, taper: tuple[float, float] = (0.0, 0.0), steps: int = 4) -> Lines:
    """Returns the outline of a stroke through `knots`: `width` in the middle, shares `taper` of it at start and end."""
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


_DEPTH = 0.75
_CURVATURE = np.array([1 / 1.08, 1 / 1.6])
_ONES = np.ones((2, 1))


class View:
    """Projects face units to pixels, through a head that is half an ellipsoid.

    `lift` is the distance of a point in front of that ellipsoid (a nose tip), or negative at its back (hair).
    """

    def __init__(self, pose: Pose, pixels: int) -> None:
        self.pixels = pixels
        self.unit_px = pose.zoom * pixels
        self._turn = turned(np.diag([math.cos(pose.yaw), math.cos(pose.pitch)]), pose.roll) * self.unit_px
        forward = turned(np.array([[math.sin(pose.yaw), math.sin(pose.pitch)]]), pose.roll)
        self._forward = forward * self.unit_px
        self._origin = np.array([[(0.5 + pose.x) * pixels, (0.525 + pose.y) * pixels]])
        self._rows: list[list[float]] = np.concatenate([self._turn, self._forward, self._origin]).tolist()

    def project(self, shape: Points, lift: float = 0.0) -> Points:
        bulge = 1 - np.square(shape * _CURVATURE) @ _ONES
        depth = _DEPTH * np.sqrt(np.maximum(bulge, 0.0)) + lift
        return shape @ self._turn + (depth * self._forward + self._origin)

    def place(self, x: float, y: float, lift: float = 0.0) -> tuple[float, float]:
        """Projects one point, as `project`."""
        depth = _DEPTH * math.sqrt(max(1 - (x / 1.08) ** 2 - (y / 1.6) ** 2, 0.0)) + lift
        (xx, xy), (yx, yy), (zx, zy), (ox, oy) = self._rows
        return x * xx + y * yx + depth * zx + ox, x * xy + y * yy + depth * zy + oy
