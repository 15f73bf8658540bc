"""Draws the cheeks, the nose, the mouth and the chin.

`act[12]` is the intensity of action unit (AU) 12, in [0, 1]; it is 0 if AU 12 is not active. So in a position such as
`y - 0.04 * act[12]`, the factor 0.04 is the movement at full intensity, in face units (half the width of an average
face). Expressions are drawn from the action units alone, and not from the emotion. So captions that describe the action
units are true of the picture.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from emocap_pretrain.captions.rendered import palette
from emocap_pretrain.captions.rendered.canvas import Points, Sketch, ellipse, flipped, moved, points
from emocap_pretrain.captions.rendered.face import Face
from emocap_pretrain.captions.rendered.head import jaw_fall
from emocap_pretrain.captions.rendered.upper_face import EYE_Y, eye_half, eye_x


def draw_cheeks(sketch: Sketch, face: Face) -> None:
    """Draws the blush and the shine of the cheeks. AU 6 raises and rounds the cheeks, with a fold above each."""
    person, act = face.identity, face.actions
    raised = act[6]
    y = 0.34 - 0.09 * raised - 0.04 * act[12]
    rose = palette.mix(palette.scale(person.skin, 1.0, 0.72, 0.70), (0.9, 0.45, 0.42), 0.25)
    bright = palette.lighter(person.skin, 0.35)
    for side in (-1, 1):
        blush = 0.16 + 0.25 * person.blush + 0.25 * raised
        sketch.glow(side * 0.58, y + 0.08, 0.20, 0.15, colour=rose, opacity=blush)
        shine = 0.14 + 0.22 * act[12] + 0.35 * raised
        sketch.glow(side * 0.55, y - 0.03, 0.13, 0.085, colour=bright, opacity=shine)
    _apples(sketch, face, y)
    _crow_feet(sketch, face)


def _apples(sketch: Sketch, face: Face, y: float) -> None:
    """Draws, for AU 6, the shaded underside of the raised cheeks and the furrows below the lower lids.

    `y` is the vertical position of the cheeks, in face units.
    """
    raised = face.actions[6]
    deep = palette.fold(face.identity.skin)
    under = points((0.40, y + 0.17), (0.58, y + 0.25), (0.78, y + 0.15), (0.84, y + 0.0))
    sketch.strokes(under, flipped(under, -1), width=0.10, colour=deep, opacity=0.38 * raised, soft=0.03)
    furrow = points((0.22, EYE_Y + 0.15), (0.42, EYE_Y + 0.195), (0.66, EYE_Y + 0.12))
    sketch.strokes(furrow, flipped(furrow, -1), width=0.035, colour=deep, opacity=0.55 * raised)


def _crow_feet(sketch: Sketch, face: Face) -> None:
    """Draws wrinkles that spread from the outer corners of the eyes.

    AU 6 makes the wrinkles dark. On an older face they are faintly visible without AU 6.
    """
    force = 0.8 * face.actions[6] + 0.25 * max(face.identity.age - 0.4, 0.0)
    x, y = eye_x(face.identity) + eye_half(face.identity) + 0.055, EYE_Y - face.identity.eye_tilt
    rays = [points((x, y + 0.3 * d), (x + 0.06, y + 0.7 * d), (x + 0.125, y + d)) for d in (-0.09, 0.015, 0.11)]
    both = [flipped(ray, side) for ray in rays for side in (-1, 1)]
    deep = palette.fold(face.identity.skin)
    sketch.strokes(*both, width=0.028, colour=deep, opacity=force, taper=(0.5, 0.1))


def draw_chin(sketch: Sketch, face: Face, lip_y: float) -> None:
    """Draws the hollow between the lower lip and the chin. AU 17 bunches and dimples the chin.

    `lip_y` is the position of the lower edge of the lower lip, in face units.
    """
    person, force = face.identity, face.actions[17]
    deep, bright = palette.fold(person.skin), palette.lighter(person.skin, 0.35)
    y = lip_y + 0.07 - 0.01 * force
    sketch.glow(0.0, y, 0.20, 0.05, colour=palette.shadow(person.skin), opacity=0.4)
    if force == 0:
        return
    boss = 1.07 + jaw_fall(face)
    sketch.glow(0.0, boss, 0.20, 0.12, colour=bright, opacity=0.55 * force)
    hollow = points((-0.26, y + 0.075), (-0.12, y + 0.005), (0.12, y + 0.005), (0.26, y + 0.075))
    sketch.strokes(hollow, width=0.05, colour=deep, opacity=0.75 * force, soft=0.01)
    below = points((-0.22, boss + 0.12), (0.0, boss + 0.17), (0.22, boss + 0.12))
    sketch.strokes(below, width=0.04, colour=deep, opacity=0.4 * force, soft=0.015)
    places = np.random.default_rng(person.marks).normal((0.0, boss), (0.10, 0.05), (9, 2))
    dimples = [ellipse(px, py, 0.022, 0.018, count=8) for px, py in places.tolist()]
    sketch.fill(*dimples, colour=deep, opacity=0.55 * force)


NOSE_Y = 0.36


def draw_nose(sketch: Sketch, face: Face) -> None:
    """Draws the nose without an outline: light on the bridge and the tip, a shaded side, the wings and the nostrils."""
    person, act = face.identity, face.actions
    wide, shadow = person.nose_width, palette.shadow(person.skin)
    lit = 1 if face.scene.light.x > 0 else -1
    base = NOSE_Y * person.nose_length
    rise = 0.055 * act[9] + 0.03 * act[10]
    flank = points((0.10, -0.28), (0.075, -0.05), (0.13 * wide, 0.18), (0.17 * wide, base - 0.04 - rise))
    sketch.strokes(flipped(flank, -lit), width=0.10, colour=shadow, opacity=0.5, soft=0.03)
    ridge = points((0.0, -0.22), (0.0, 0.0), (0.0, base - 0.1))
    bright = palette.lighter(person.skin, 0.4)
    sketch.strokes(moved(ridge, 0.02 * lit, 0.0), width=0.07, colour=bright, opacity=0.42, soft=0.025, lift=0.10)
    sketch.glow(0.0, base + 0.07, 0.17 * wide, 0.05, colour=shadow, opacity=0.65)
    sketch.glow(0.02 * lit, base - 0.06 - 0.5 * rise, 0.09, 0.075, colour=bright, opacity=0.5, lift=0.12)
    _wings(sketch, face, base, rise)
    _wrinkles(sketch, face)


def _wings(sketch: Sketch, face: Face, base: float, rise: float) -> None:
    person = face.identity
    wide = person.nose_width * (1 + 0.10 * face.actions[9] + 0.06 * face.actions[10])
    deep = palette.fold(person.skin)
    wing = points(
        (0.155 * wide, base - 0.13 - rise),
        (0.225 * wide, base - 0.05 - rise),
        (0.19 * wide, base + 0.025 - 0.6 * rise),
    )
    sketch.strokes(wing, flipped(wing, -1), width=0.035, colour=deep, opacity=0.75, taper=(0.1, 0.6), lift=0.05)
    holes = [
        ellipse(s * 0.095 * wide, base + 0.02 - 0.5 * rise, 0.058 * wide, 0.026, tilt=s * 0.25, count=14)
        for s in (-1, 1)
    ]
    dark = palette.darker(deep, 0.35)
    sketch.fill(*holes, colour=dark, opacity=0.85, lift=0.08)
    tip = points((-0.06, base + 0.04 - 0.3 * rise), (0.0, base + 0.055 - 0.3 * rise), (0.06, base + 0.04 - 0.3 * rise))
    sketch.strokes(tip, width=0.025, colour=deep, opacity=0.6, lift=0.1)


def _wrinkles(sketch: Sketch, face: Face) -> None:
    """Draws, for AU 9, oblique folds along the bridge of the nose and two folds across its root."""
    force = face.actions[9]
    if force == 0:
        return
    deep = palette.fold(face.identity.skin)
    slants = [points((0.05, y), (0.11, y - 0.035), (0.19, y - 0.10)) for y in (-0.05, 0.05, 0.15)]
    both = [flipped(slant, side) for slant in slants for side in (-1, 1)]
    sketch.strokes(*both, width=0.034, colour=deep, opacity=0.85 * force)
    roots = [points((-0.09, y), (0.0, y + 0.03), (0.09, y)) for y in (-0.22, -0.15)]
    sketch.strokes(*roots, width=0.032, colour=deep, opacity=0.8 * force)


def draw_folds(sketch: Sketch, face: Face, corner: tuple[float, float]) -> None:
    """Draws the nasolabial folds, which run from the wings of the nose around the corners of the mouth.

    AU 10 and AU 12 bow the folds outwards. AU 9 and AU 10 raise the upper half of the folds. AU 9, 10, 12 and 15 deepen
    the folds.

    Args:
        sketch: The drawing.
        face: The face.
        corner: The corner of the mouth on the right of the image, in face units.
    """
    person, act = face.identity, face.actions
    depth = 0.10 + 0.25 * person.age + 0.62 * act[12] + 0.62 * act[10] + 0.35 * act[9] + 0.2 * act[15]
    x, y = corner
    bow = 0.05 * act[12] + 0.06 * act[10]
    fold = points(
        (0.24 * person.nose_width, 0.24 - 0.05 * act[9] - 0.03 * act[10]),
        (0.34 + bow, 0.38 - 0.04 * act[10]),
        (0.5 * (0.42 + x) + 0.07 + bow, 0.5 * (0.50 + y) - 0.02),
        (x + 0.10 + 0.4 * bow, y + 0.02),
    )
    both = fold, flipped(fold, -1)
    deep, bright = palette.fold(person.skin), palette.lighter(person.skin, 0.25)
    light = moved(fold, 0.05, -0.01)
    lights = light, flipped(light, -1)
    force = min(depth, 1.0)
    sketch.strokes(*lights, width=0.09, colour=bright, opacity=0.35 * force, soft=0.03)
    sketch.strokes(*both, width=0.055, colour=deep, opacity=0.80 * force, soft=0.014, taper=(0.5, 0.1))


MOUTH_Y = 0.755
_T = np.linspace(-1, 1, 29)


@dataclass(frozen=True, slots=True)
class Lips:
    """Holds the four edges of the lips, each from left to right, and the height of the gap between the lips.

    `top` and `upper` are the upper and the lower edge of the upper lip. `lower` and `bottom` are the upper and the
    lower edge of the lower lip. All values are in face units.
    """

    top: Points
    upper: Points
    lower: Points
    bottom: Points
    gap: float

    @property
    def corner(self) -> tuple[float, float]:
        """Returns the position of the corner of the mouth on the right of the image."""
        return float(self.upper[-1, 0]), float(self.upper[-1, 1])

    @property
    def inside(self) -> Points:
        return np.concatenate([self.upper, self.lower[::-1]])


def lips(face: Face) -> Lips:
    """Returns the edges of the lips.

    The action units move the corners or the line between the lips, open the gap, or change the thickness of the lips.
    """
    # The middle line and the gap give the inner edges. `hole` is the shape of the opening, from 0 at the corners to 1
    # in the middle; a larger exponent `square` makes it more rectangular.
    act = face.actions
    half = _half(face)
    middle = MOUTH_Y + _line(face)
    gap = 0.13 * act[25] + 0.06 * act[25] * (act[12] + act[10] + act[20]) + 0.36 * act[26]
    square = 2.0 + 2.5 * act[20] + 1.5 * act[10] * act[25] + 0.8 * act[12] * act[25]
    hole = (1 - np.abs(_T) ** square) ** 0.75
    up = 0.35 * (gap - 0.36 * act[26]) + 0.05 * act[26]
    upper, lower = middle - up * hole, middle + (gap - up) * hole
    # The outer edges follow at the thickness of each lip; the Gaussian makes the dip of the upper lip (Cupid's bow).
    thick_top, thick_bottom = _thickness(face)
    bow = (1 - np.abs(_T) ** 1.9) ** 0.9 * (1 - 0.24 * np.exp(-((_T / 0.17) ** 2)))
    cushion = (1 - _T**2) ** 0.7
    rows = upper - thick_top * bow, upper, lower, lower + thick_bottom * cushion
    top, upper_edge, lower_edge, bottom = (np.stack([_T * half, row], 1) for row in rows)
    return Lips(top, upper_edge, lower_edge, bottom, gap)


def _half(face: Face) -> float:
    """Returns half the width of the mouth. AU 12, 14, 15 and 20 widen the mouth, AU 23 and 26 narrow it."""
    act = face.actions
    stretch = 0.12 * act[12] + 0.04 * act[14] + 0.15 * act[20] + 0.02 * act[15]
    return 0.37 * face.identity.mouth_width + stretch - 0.07 * act[23] - 0.07 * act[26] * (1 - act[12])


def _line(face: Face) -> Float[np.ndarray, " columns"]:
    """Returns how far each point of the line between the lips is below `MOUTH_Y`; negative for a point above it."""
    act = face.actions
    corners = -0.018 - 0.20 * act[12] + 0.16 * act[15] + 0.05 * act[20] * (1 - act[25]) - 0.02 * act[14]
    centre = 0.04 * act[12] - 0.07 * act[17] - 0.03 * act[15] - 0.05 * act[10] + 0.01 * act[25]
    return corners * np.abs(_T) ** 1.9 + centre * (1 - _T**2) ** 1.2 - 0.012 * np.cos(3 * np.pi * _T) * (1 - _T**2)


def _thickness(face: Face) -> tuple[float, float]:
    act, full = face.actions, face.identity.lips
    thin = (1 - 0.68 * act[23]) * (1 - 0.25 * act[12]) * (1 - 0.3 * act[20]) * (1 - 0.12 * act[26])
    return 0.085 * full * thin * (1 - 0.1 * act[10]), 0.105 * full * thin * (1 + 0.2 * act[17])


def draw_mouth(sketch: Sketch, face: Face, shape: Lips) -> None:
    _groove(sketch, face, shape)
    _corners(sketch, face, shape)
    if shape.gap > 0:
        _inside(sketch, face, shape)
    _lips(sketch, face, shape)


def _groove(sketch: Sketch, face: Face, shape: Lips) -> None:
    """Draws the groove between nose and upper lip.

    If AU 23 is active, the function also draws pale skin above and below the lips, and radial lines above them.
    """
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
    """Draws marks beside the corners of the mouth.

    The marks are dimples for AU 14 (fainter for AU 12), hanging folds for AU 15, and stretched folds for AU 20.
    """
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
    """Draws the dark inside of an open mouth, with tongue and teeth."""
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
    """Returns the outline of a row of teeth.

    The teeth extend down from `edge`, an edge of a lip, by `height`. If `height` is negative, they extend up.
    """
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
