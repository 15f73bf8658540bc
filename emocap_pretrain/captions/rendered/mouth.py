"""Draws the mouth: lips, teeth, tongue and the marks beside its corners."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from emocap_pretrain.captions.rendered import palette
from emocap_pretrain.captions.rendered.face import Face
from emocap_pretrain.captions.rendered.geometry import Points, flipped, moved, points
from emocap_pretrain.captions.rendered.sketch import Sketch

MOUTH_Y = 0.755
_T = np.linspace(-1, 1, 29)


@dataclass(frozen=True, slots=True)
class Lips:
    """Four edges from the left to the right corner, from top to bottom, and the height of the gap, in face units."""

    top: Points
    upper: Points
    lower: Points
    bottom: Points
    gap: float

    @property
    def corner(self) -> tuple[float, float]:
        """The right corner."""
        return float(self.upper[-1, 0]), float(self.upper[-1, 1])

    @property
    def inside(self) -> Points:
        return np.concatenate([self.upper, self.lower[::-1]])


def lips(face: Face) -> Lips:
    """Returns the edges of the lips; each action moves corners, middle line, gap or thickness."""
    act = face.actions
    half = _half(face)
    middle = MOUTH_Y + _line(face)
    gap = 0.13 * act[25] + 0.06 * act[25] * (act[12] + act[10] + act[20]) + 0.36 * act[26]
    square = 2.0 + 2.5 * act[20] + 1.5 * act[10] * act[25] + 0.8 * act[12] * act[25]
    hole = (1 - np.abs(_T) ** square) ** 0.75
    up = 0.35 * (gap - 0.36 * act[26]) + 0.05 * act[26]
    upper, lower = middle - up * hole, middle + (gap - up) * hole
    thick_top, thick_bottom = _thickness(face)
    bow = (1 - np.abs(_T) ** 1.9) ** 0.9 * (1 - 0.24 * np.exp(-((_T / 0.17) ** 2)))
    cushion = (1 - _T**2) ** 0.7
    rows = upper - thick_top * bow, upper, lower, lower + thick_bottom * cushion
    top, upper_edge, lower_edge, bottom = (np.stack([_T * half, row], 1) for row in rows)
    return Lips(top, upper_edge, lower_edge, bottom, gap)


def _half(face: Face) -> float:
    """Returns half the width: AU 12, 14 and 20 stretch it, AU 23 and a dropped jaw narrow it."""
    act = face.actions
    stretch = 0.12 * act[12] + 0.04 * act[14] + 0.15 * act[20] + 0.02 * act[15]
    return 0.37 * face.identity.mouth_width + stretch - 0.07 * act[23] - 0.07 * act[26] * (1 - act[12])


def _line(face: Face) -> Float[np.ndarray, " columns"]:
    """Returns the height of the line between the lips relative to rest, which describes how corners and middle move."""
    act = face.actions
    corners = -0.018 - 0.20 * act[12] + 0.16 * act[15] + 0.05 * act[20] * (1 - act[25]) - 0.02 * act[14]
    centre = 0.04 * act[12] - 0.07 * act[17] - 0.03 * act[15] - 0.05 * act[10] + 0.01 * act[25]
    return corners * np.abs(_T) ** 1.9 + centre * (1 - _T**2) ** 1.2 - 0.012 * np.cos(3 * np.pi * _T) * (1 - _T**2)


def _thickness(face: Face) -> tuple[float, float]:
    act, full = face.actions, face.identity.lips
    thin = (1 - 0.68 * act[23]) * (1 - 0.25 * act[12]) * (1 - 0.3 * act[20]) * (1 - 0.12 * act[26])
    return 0.085 * full * thin * (1 - 0.1 * act[10]), 0.105 * full * thin * (1 + 0.2 * act[17])


def draw(sketch: Sketch, face: Face, shape: Lips) -> None:
    _groove(sketch, face, shape)
    _corners(sketch, face, shape)
    if shape.gap > 0:
        _inside(sketch, face, shape)
    _lips(sketch, face, shape)


def _groove(sketch: Sketch, face: Face, shape: Lips) -> None:
    """Draws the philtrum above the lips and the shade below them; for AU 23 also lines that radiate from tight lips."""
    person = face.identity
    shadow = palette.shadow(person.skin)
    sketch.glow(0.0, shape.top[14, 1] - 0.07, 0.035, 0.05, colour=shadow, opacity=0.35)
    force = face.actions[23]
    if force == 0:
        return
    pale = palette.lighter(person.skin, 0.3)
    sketch.glow(0.0, shape.bottom[14, 1] + 0.05, 0.22, 0.04, colour=pale, opacity=0.5 * force)
    sketch.glow(0.0, shape.top[14, 1] - 0.05, 0.24, 0.04, colour=pale, opacity=0.5 * force)
    rays = [_ray(shape, column) for column in (4, 8, 12, 16, 20, 24)]
    deep = palette.fold(person.skin)
    sketch.strokes(*rays, width=0.022, colour=deep, opacity=0.65 * force)


def _ray(shape: Lips, column: int) -> Points:
    x, y = shape.top[column].tolist()
    return points((x, y - 0.005), (x * 1.06, y - 0.05), (x * 1.12, y - 0.09))


def _corners(sketch: Sketch, face: Face, shape: Lips) -> None:
    """Draws marks beside the corners: dimples (14, a little 12), hanging folds (15), stretched folds (20)."""
    act, (x, y) = face.actions, shape.corner
    deep = palette.fold(face.identity.skin)
    dimple = points((x + 0.045, y - 0.085), (x + 0.085, y - 0.01), (x + 0.05, y + 0.075))
    hang = points((x + 0.0, y + 0.02), (x + 0.055, y + 0.09), (x + 0.04, y + 0.20))
    stretch = points((x + 0.10, y - 0.12), (x + 0.14, y + 0.0), (x + 0.11, y + 0.14))
    for mark, force, width in (
        (dimple, act[14] + 0.3 * act[12], 0.055),
        (hang, act[15], 0.05),
        (stretch, act[20], 0.04),
    ):
        both = mark, flipped(mark, -1)
        sketch.strokes(*both, width=width, colour=deep, opacity=min(0.8 * force, 0.9), soft=0.008)
    for side in (-1, 1):
        pit = 0.5 * act[14]
        sketch.glow(side * (x + 0.04), y, 0.05, 0.05, colour=deep, opacity=pit)


def _inside(sketch: Sketch, face: Face, shape: Lips) -> None:
    """Draws the dark inside of the mouth with tongue and teeth."""
    act = face.actions
    hole = sketch.cover(shape.inside)
    sketch.canvas.paint(hole, (0.24, 0.07, 0.08))
    floor = float(shape.lower[14, 1])
    if shape.gap > 0.16:
        sketch.glow(0.0, floor, 0.20, 0.09, colour=(0.80, 0.38, 0.38), opacity=0.85, within=hole)
    show = min(1.0, 0.25 + act[12] + 0.9 * act[10] + 0.6 * act[20])
    upper = sketch.cover(_teeth(shape.upper, min(0.15 * show, 0.62 * shape.gap + 0.02)), within=hole)
    sketch.canvas.paint(upper, (0.97, 0.95, 0.91))
    bared = min(1.0, act[20] + act[10]) * (1 - act[12])
    if bared > 0.2:
        lower = _teeth(shape.lower, -min(0.12 * bared, 0.38 * shape.gap))
        sketch.fill(lower, colour=(0.93, 0.90, 0.86), within=hole)
    joints = [points((x, shape.upper[14, 1] - 0.1), (x, floor)) for x in np.linspace(-0.3, 0.3, 7).tolist()]
    sketch.strokes(*joints, width=0.012, colour=(0.55, 0.45, 0.42), opacity=0.28, within=upper, taper=(1.0, 1.0))
    sketch.strokes(moved(shape.upper[::4], 0.0, 0.015), width=0.05, colour=(0.2, 0.06, 0.07), opacity=0.35, within=hole)


def _teeth(edge: Points, height: float) -> Points:
    """Returns a row of teeth that hangs from `edge`, or rises from it if `height` is negative."""
    other = edge + np.stack([np.zeros_like(_T), height * (1 - _T**6)], 1)
    return np.concatenate([edge, other[::-1]])


def _lips(sketch: Sketch, face: Face, shape: Lips) -> None:
    person = face.identity
    rim = palette.darker(person.lip, 0.14)
    sketch.fill(np.concatenate([shape.top, shape.upper[::-1]]), colour=rim, opacity=0.95)
    sketch.fill(np.concatenate([shape.lower, shape.bottom[::-1]]), colour=person.lip, opacity=0.95)
    thick = float(shape.bottom[14, 1] - shape.lower[14, 1])
    shine = palette.lighter(person.lip, 0.5)
    y = float(shape.lower[14, 1]) + 0.45 * thick
    sketch.glow(0.0, y, 0.13, 0.25 * thick + 0.004, colour=shine, opacity=0.4)
    ink = palette.mix(palette.darker(person.lip, 0.62), palette.fold(person.skin), 0.3)
    seam = np.concatenate([[shape.upper[0] + (-0.02, 0.0)], shape.upper[1:-1:3], [shape.upper[-1] + (0.02, 0.0)]])
    sketch.strokes(seam, width=0.034, colour=ink, taper=(0.5, 0.5), opacity=1.0 if shape.gap == 0 else 0.5)
    y = float(shape.bottom[14, 1])
    lift = points((-0.12, y + 0.035), (0.0, y + 0.05), (0.12, y + 0.035))
    sketch.strokes(lift, width=0.03, colour=palette.fold(person.skin), opacity=0.35, soft=0.01)
