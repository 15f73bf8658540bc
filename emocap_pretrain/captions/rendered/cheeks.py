"""Draws the cheeks, the corners of the eyes and the chin: soft relief that actions raise."""

import numpy as np

from emocap_pretrain.captions.rendered import palette
from emocap_pretrain.captions.rendered.eyes import EYE_Y, eye_half, eye_x
from emocap_pretrain.captions.rendered.face import Face
from emocap_pretrain.captions.rendered.geometry import ellipse, flipped, points
from emocap_pretrain.captions.rendered.head import jaw_fall
from emocap_pretrain.captions.rendered.sketch import Sketch


def draw(sketch: Sketch, face: Face) -> None:
    """Draws a blush, and for AU 6 a raised and rounded apple with a fold above it."""
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
    """Draws, for AU 6, the shaded underside of the raised cheek and the furrow below the lower lid."""
    raised = face.actions[6]
    deep = palette.fold(face.identity.skin)
    under = points((0.40, y + 0.17), (0.58, y + 0.25), (0.78, y + 0.15), (0.84, y + 0.0))
    sketch.strokes(under, flipped(under, -1), width=0.10, colour=deep, opacity=0.38 * raised, soft=0.03)
    furrow = points((0.22, EYE_Y + 0.15), (0.42, EYE_Y + 0.195), (0.66, EYE_Y + 0.12))
    sketch.strokes(furrow, flipped(furrow, -1), width=0.035, colour=deep, opacity=0.55 * raised)


def _crow_feet(sketch: Sketch, face: Face) -> None:
    """Draws rays from the outer corners of the eyes, for AU 6 and a little for age."""
    force = 0.8 * face.actions[6] + 0.25 * max(face.identity.age - 0.4, 0.0)
    x, y = eye_x(face.identity) + eye_half(face.identity) + 0.055, EYE_Y - face.identity.eye_tilt
    rays = [points((x, y + 0.3 * d), (x + 0.06, y + 0.7 * d), (x + 0.125, y + d)) for d in (-0.09, 0.015, 0.11)]
    both = [flipped(ray, side) for ray in rays for side in (-1, 1)]
    deep = palette.fold(face.identity.skin)
    sketch.strokes(*both, width=0.028, colour=deep, opacity=force, taper=(0.5, 0.1))


def draw_chin(sketch: Sketch, face: Face, lip_y: float) -> None:
    """Draws the hollow under the lower lip, which ends at `lip_y`; AU 17 bunches and dimples the chin below it."""
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
