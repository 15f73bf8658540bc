"""Draws the eyebrows, and the creases of the forehead that they fold."""

import numpy as np

from emocap_pretrain.captions.rendered import palette
from emocap_pretrain.captions.rendered.face import Face
from emocap_pretrain.captions.rendered.geometry import Points, flipped, points, ribbon
from emocap_pretrain.captions.rendered.sketch import Sketch


def line(face: Face) -> Points:
    """Returns the middle line of the right brow of the image, from its head to its tail.

    AU 1 raises the head, AU 2 the arch and tail. AU 4 lowers the brow and draws it towards the midline. If AU 1 and AU
    4 act together, the head rises and moves inwards.
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


def draw(sketch: Sketch, face: Face) -> None:
    person = face.identity
    ink = palette.brow(person.hair, person.skin)
    middle = line(face)
    both = np.array([middle, flipped(middle, -1)])
    outlines = ribbon(both, 0.105 * person.brow_weight, (0.62, 0.1), steps=5)
    sketch.fill(*outlines, colour=ink, opacity=0.93, soft=0.008)


def draw_creases(sketch: Sketch, face: Face) -> None:
    _forehead(sketch, face)
    _frown(sketch, face)


def _forehead(sketch: Sketch, face: Face) -> None:
    """Draws horizontal lines: in the middle for AU 1, at the sides for AU 2, and across for both or for age."""
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
    """Draws the two upright folds between the brows, and the shade there."""
    person, act = face.identity, face.actions
    force = act[4]
    if force == 0:
        return
    deep, rise = palette.fold(person.skin), -0.12 * act[1]
    sketch.glow(0.0, -0.36 + rise, 0.13, 0.11, colour=palette.shadow(person.skin), opacity=0.5 * force)
    fold = points((0.085, -0.24 + rise), (0.065, -0.36 + rise), (0.10, -0.50 + rise))
    sketch.strokes(fold, flipped(fold, -1), width=0.042, colour=deep, opacity=0.85 * force, soft=0.006)
