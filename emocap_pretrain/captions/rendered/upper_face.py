"""Draws the eyebrows, the forehead and the eyes.

As in `lower_face.py`, expressions are drawn from the action units alone, and `act[1]` is the intensity of action unit
(AU) 1, in [0, 1]. Rendered faces are symmetric: curves are computed for the eye or the eyebrow on the right of the
image, and then mirrored.
"""

from dataclasses import dataclass

import numpy as np

from emocap_pretrain.captions.rendered import palette
from emocap_pretrain.captions.rendered.canvas import Points, Sketch, ellipse, flipped, moved, points, ribbon
from emocap_pretrain.captions.rendered.face import Face, Identity


def brow_line(face: Face) -> Points:
    """Returns the centre line of the eyebrow on the right of the image, from the inner to the outer end.

    AU 1 raises the inner end, and AU 2 raises the arch and the outer end. AU 4 lowers the eyebrow and draws it towards
    the midline of the face. If AU 1 and AU 4 are active together, the inner end rises and moves inwards.
    """
    act, arch = face.actions, face.identity.brow_arch
    down = act[4] * (1 - 0.75 * act[1])
    inner = -0.17 * act[1] - 0.03 * act[2] + 0.15 * down + 0.05 * act[9]
    middle = -0.09 * act[1] - 0.11 * act[2] + 0.10 * down + 0.04 * act[9]
    outer = 0.02 * act[1] - 0.17 * act[2] + 0.01 * act[4]
    tail = 0.03 * act[1] - 0.15 * act[2]
    pinch = 0.075 * act[4] + 0.02 * act[9]
    return points(
        (0.19 - pinch, -0.375 + inner),
        (0.34 - 0.6 * pinch, -0.435 + middle - 0.5 * arch),
        (0.52 - 0.3 * pinch, -0.465 + 0.4 * middle + 0.6 * outer - arch),
        (0.74, -0.375 + tail),
    )


def draw_brows(sketch: Sketch, face: Face) -> None:
    person = face.identity
    ink = palette.brow(person.hair, person.skin)
    middle = brow_line(face)
    both = np.array([middle, flipped(middle, -1)])
    outlines = ribbon(both, 0.105 * person.brow_weight, (0.62, 0.1), steps=5)
    sketch.fill(*outlines, colour=ink, opacity=0.93, soft=0.008)


def draw_creases(sketch: Sketch, face: Face) -> None:
    _forehead(sketch, face)
    _frown(sketch, face)


def _forehead(sketch: Sketch, face: Face) -> None:
    """Draws horizontal lines on the forehead: in the middle for AU 1, and at the sides for AU 2.

    If AU 1 and AU 2 are both active, or if the person is old, the lines run across the whole forehead.
    """
    person, act = face.identity, face.actions
    deep = palette.fold(person.skin)
    across = 0.75 * min(act[1], act[2]) + 0.22 * max(person.age - 0.35, 0.0)
    centre, sides = 0.7 * max(act[1] - act[2], 0.0), 0.7 * max(act[2] - act[1], 0.0)
    rows = (-0.66, -0.76, -0.86)
    full = [
        points((-0.55, y + 0.03), (-0.3, y - 0.01), (0.0, y + 0.015), (0.3, y - 0.01), (0.55, y + 0.03)) for y in rows
    ]
    middle = [points((-0.24, y + 0.05), (0.0, y), (0.24, y + 0.05)) for y in rows]
    arcs = [points((0.28, y + 0.03), (0.5, y - 0.03), (0.72, y + 0.05)) for y in rows]
    outer = arcs + [flipped(arc, -1) for arc in arcs]
    for lines, force in ((full, across), (middle, centre), (outer, sides)):
        sketch.strokes(*lines, width=0.03, colour=deep, opacity=force)


def _frown(sketch: Sketch, face: Face) -> None:
    """Draws, for AU 4, two upright folds between the eyebrows, and a shadow around the folds."""
    person, act = face.identity, face.actions
    force = act[4]
    if force == 0:
        return
    deep, rise = palette.fold(person.skin), -0.12 * act[1]
    sketch.glow(0.0, -0.36 + rise, 0.13, 0.11, colour=palette.shadow(person.skin), opacity=0.5 * force)
    fold = points((0.085, -0.24 + rise), (0.065, -0.36 + rise), (0.10, -0.50 + rise))
    sketch.strokes(fold, flipped(fold, -1), width=0.042, colour=deep, opacity=0.85 * force, soft=0.006)


EYE_X = 0.43
EYE_Y = -0.08
_T = np.linspace(-1, 1, 19)


@dataclass(frozen=True, slots=True)
class Lids:
    """Holds curves of the eye on the right of the image, each from the inner to the outer corner, in face units.

    The other eye is the mirror image.

    Attributes:
        upper: Edge of the upper lid.
        lower: Edge of the lower lid.
        fold: Crease above the upper lid.
        bag: Crease below the lower lid.
        x: Distance of the middle of the eye from the midline of the face.
    """

    upper: Points
    lower: Points
    fold: Points
    bag: Points
    x: float


def eye_x(person: Identity) -> float:
    """Returns the distance of the middle of an eye from the midline of the face, in face units."""
    return EYE_X * person.eye_gap


def eye_half(person: Identity) -> float:
    """Returns half the width of an eye, in face units."""
    return 0.245 * person.eye_size


def lids(face: Face) -> Lids:
    """Returns the curves of the lids.

    AU 5 raises the upper lid and AU 43 lowers it. AU 6 pushes up the lower lid. AU 7 brings both lids together.
    """
    person, act = face.identity, face.actions
    x, half = eye_x(person), eye_half(person)
    rise = 0.135 * person.eye_size * (1 + 0.62 * act[5] - 0.42 * act[7] - 0.16 * act[6] - 0.15 * act[9])
    sink = 0.088 * person.eye_size * (1 + 0.15 * act[5] - 0.75 * act[7] - 0.75 * act[6] - 0.25 * act[9])
    sink = max(sink, 0.012)
    # A closing upper lid moves down to the lower lid, past the middle line of the eye.
    rise = rise * (1 - act[43]) - 0.8 * sink * act[43]
    line = EYE_Y - person.eye_tilt * _T
    arch, bowl = (1 - _T**2) ** 0.72 * (1 - 0.12 * _T), (1 - _T**2) ** 0.8 * (1 + 0.15 * _T)
    upper, lower = line - rise * arch, line + sink * bowl
    along = x + _T * half
    pouch = 0.10 + 0.02 * person.age - 0.03 * act[6] - 0.03 * act[7]
    over = 0.055 + 0.01 * act[43] - 0.02 * act[5]
    return Lids(
        upper=np.stack([along, upper], 1),
        lower=np.stack([along, lower], 1),
        fold=np.stack([along, np.minimum(upper, line - 0.06 * arch) - over * arch - 0.008], 1),
        bag=np.stack([along, lower + pouch * bowl + 0.01], 1),
        x=x,
    )


def draw_eyes(sketch: Sketch, face: Face) -> None:
    shape = lids(face)
    _sockets(sketch, face, shape)
    opening = sketch.cover(*_both(np.concatenate([shape.upper, shape.lower[::-1]])))
    sketch.canvas.paint(opening, (0.96, 0.95, 0.94))
    with sketch.canvas.within(opening):
        _eyeballs(sketch, face, shape)
    _lashes(sketch, face, shape)


def _both(right: Points) -> tuple[Points, Points]:
    return flipped(right, 1), flipped(right, -1)


def _sockets(sketch: Sketch, face: Face, shape: Lids) -> None:
    """Draws the hollows around both eyes, the upper lids, and the creases above and below the lids."""
    person, act = face.identity, face.actions
    shadow, deep = palette.shadow(person.skin), palette.fold(person.skin)
    for side in (-1, 1):
        sketch.glow(side * (shape.x - 0.04), EYE_Y - 0.10, 0.24, 0.13, colour=shadow, opacity=0.38)
    lid = np.concatenate([shape.fold, shape.upper[::-1]])
    tone = palette.mix(person.skin, shadow, 0.35)
    if person.liner > 0.7:
        tone = palette.mix(tone, person.cloth, 0.2)
    sketch.fill(*_both(lid), colour=tone, opacity=0.9, soft=0.008)
    sketch.strokes(*_both(shape.fold[1::4]), width=0.022, colour=deep, opacity=0.75)
    pouch = 0.12 + 0.25 * person.age + 0.35 * act[7] + 0.4 * act[6]
    sketch.strokes(*_both(shape.bag[2:-1:4]), width=0.024, colour=deep, opacity=min(pouch, 0.7), soft=0.008)


def _eyeballs(sketch: Sketch, face: Face, shape: Lids) -> None:
    person, (look_x, look_y) = face.identity, face.scene.gaze
    radius = 0.126 * person.eye_size
    y = EYE_Y - 0.014 + 0.05 * look_y
    xs = [side * shape.x + 0.07 * look_x for side in (-1, 1)]
    dark = palette.darker(person.iris, 0.55)
    sketch.fill(*(ellipse(x, y, radius, radius) for x in xs), colour=dark)
    inner = 0.80 * radius
    sketch.fill(*(ellipse(x, y, inner, inner) for x in xs), colour=person.iris)
    bright = palette.lighter(person.iris, 0.35)
    glints = [ellipse(x, y + 0.05, 0.055, 0.04) for x in xs]
    sketch.fill(*glints, colour=bright, opacity=0.6, soft=0.012)
    pupil = 0.44 * radius
    sketch.fill(*(ellipse(x, y, pupil, pupil, count=16) for x in xs), colour=(0.03, 0.02, 0.03))
    shade = moved(shape.upper, 0.0, 0.012)
    sketch.strokes(*_both(shade[::3]), width=0.085, colour=(0.25, 0.2, 0.22), opacity=0.45)
    spot = 0.04 if face.scene.light.x > 0 else -0.04
    lights = [ellipse(x + spot, y - 0.045, 0.032, 0.032, count=12) for x in xs]
    sketch.fill(*lights, colour=palette.WHITE, opacity=0.95)


def _lashes(sketch: Sketch, face: Face, shape: Lids) -> None:
    person = face.identity
    ink = palette.mix(palette.darker(person.hair, 0.65), palette.BLACK, 0.4)
    edge = shape.upper[::3].copy()
    edge[-1] += (0.03, -0.012 + 0.03 * face.actions[43])
    sketch.strokes(*_both(edge), width=0.042 + 0.026 * person.liner, colour=ink, taper=(0.35, 0.5))
    sketch.strokes(
        *_both(shape.lower[::3]), width=0.02, colour=palette.fold(person.skin), opacity=0.65, taper=(0.3, 0.3)
    )
    if person.liner > 0.5:
        sketch.strokes(*_lash_hairs(shape, face.actions[43]), width=0.024, colour=ink, taper=(1.0, 0.1))


def _lash_hairs(shape: Lids, closed: float) -> list[Points]:
    """Returns four lashes for the outer half of each upper lid.

    The lashes point up from an open eye and down from a closed one; `closed` is the intensity of AU 43.
    """
    roots = shape.upper[11:18:2]
    lean = np.linspace(0.25, 0.9, len(roots))[:, None] * (0.07, 0.0) + (0.0, -0.055 + 0.11 * closed)
    return [flipped(np.stack([r, r + 0.6 * d, r + d]), s) for r, d in zip(roots, lean, strict=True) for s in (-1, 1)]
