"""Draws the skin: ears, neck, shoulders, the face itself and its soft shading."""

import numpy as np

from emocap_pretrain.captions.rendered import palette
from emocap_pretrain.captions.rendered.canvas import Patch
from emocap_pretrain.captions.rendered.face import Face
from emocap_pretrain.captions.rendered.geometry import Points, ellipse, flipped, mirrored, points, spline
from emocap_pretrain.captions.rendered.sketch import Sketch

CHIN_Y = 1.32


def jaw_fall(face: Face) -> float:
    """Returns how far the chin hangs below its position at rest, in face units."""
    return 0.17 * face.actions[26] + 0.02 * face.actions[25] - 0.035 * face.actions[17]


def outline(face: Face) -> Points:
    """Returns the edge of the face, closed, from the top of the skull to the chin and back."""
    person, fall = face.identity, jaw_fall(face)
    top, wide, low = person.forehead, person.width, person.chin
    cheek = 0.02 * face.actions[12] + 0.02 * face.actions[6] - 0.02 * face.actions[26]
    right = points(
        (0.42 * wide, -1.29 * top),
        (0.82 * wide, -1.02 * top),
        (0.97 * wide, -0.52),
        (0.99 * wide, 0.0),
        ((0.94 + cheek) * wide, 0.42),
        (0.80 * wide * person.jaw, 0.80 * low + 0.5 * fall),
        (0.50 * wide * person.jaw, 1.13 * low + 0.9 * fall),
        (0.19, CHIN_Y * low + fall),
    )
    return spline(mirrored(right), closed=True)


def draw_body(sketch: Sketch, face: Face) -> None:
    """Draws shoulders and neck, with the shadow of the head on them."""
    person = face.identity
    neck = mirrored(points((0.55, 0.6), (0.52, 1.25), (0.60, 1.62), (0.85, 2.0)))
    shoulders = mirrored(points((0.50, 1.52), (0.95, 1.66), (1.65, 1.86), (2.1, 2.3), (2.1, 3.2)))
    base = palette.mix(person.skin, palette.shadow(person.skin), 0.45)
    throat = sketch.cover(neck, lift=-0.3)
    sketch.canvas.paint(throat, base)
    chin = CHIN_Y * person.chin + jaw_fall(face)
    sketch.glow(0.0, chin - 0.08, 0.50, 0.19, colour=palette.shadow(person.skin), opacity=0.85, within=throat)
    sketch.fill(shoulders, colour=person.cloth, lift=-0.3)
    collar = points((-0.62, 1.50), (-0.4, 1.72), (0.0, 1.84), (0.4, 1.72), (0.62, 1.50))
    sketch.strokes(collar, width=0.10, colour=palette.darker(person.cloth, 0.3), taper=(1.0, 1.0), lift=-0.3)
    sketch.fill(spline(collar), colour=base, lift=-0.3)


def draw_ears(sketch: Sketch, face: Face) -> None:
    person = face.identity
    x = 0.99 * person.width
    shells = [ellipse(side * x, 0.04, 0.13, 0.25, tilt=side * 0.15) for side in (-1, 1)]
    hollows = [ellipse(side * (x + 0.03), 0.02, 0.06, 0.15, tilt=side * 0.15) for side in (-1, 1)]
    sketch.fill(*shells, colour=palette.mix(person.skin, palette.shadow(person.skin), 0.3))
    sketch.fill(*hollows, colour=palette.shadow(person.skin), opacity=0.7, soft=0.02)


def draw_face(sketch: Sketch, face: Face) -> Patch | None:
    """Paints the skin; returns the patch that it covers, or None if no face is visible.

    The patch bounds everything that lies on the skin.
    """
    skin = face.identity.skin
    patch = sketch.cover(outline(face))
    sketch.canvas.paint(patch, palette.mix(skin, palette.shadow(skin), 0.5))
    return patch


def draw_relief(sketch: Sketch, face: Face) -> None:
    """Draws light on the middle of the face, the forehead and the chin; the rim stays dark."""
    skin = face.identity.skin
    bright, side = palette.lighter(skin, 0.32), face.scene.light.x
    sketch.glow(0.0, -0.05, 0.68, 0.92, colour=skin, opacity=1.0)
    sketch.glow(0.25 * side, -0.72, 0.38, 0.22, colour=bright, opacity=0.45)
    sketch.glow(0.0, 1.10 + jaw_fall(face), 0.17, 0.10, colour=bright, opacity=0.28)


def draw_marks(sketch: Sketch, face: Face) -> None:
    """Draws freckles over nose and cheeks."""
    person = face.identity
    if person.freckles < 0.5:
        return
    rng = np.random.default_rng(person.marks)
    places = rng.normal((0.0, 0.26), (0.36, 0.10), (24, 2))
    spots = [ellipse(x, y, 0.014, 0.014, count=6) for x, y in places.tolist()]
    brown = palette.fold(person.skin)
    sketch.fill(*spots, colour=brown, opacity=0.35 * person.freckles)


def draw_beard(sketch: Sketch, face: Face) -> None:
    """Draws stubble or a short full beard: a tint of the jaw that leaves its relief visible."""
    person = face.identity
    if person.beard not in {"stubble", "full"}:
        return
    full = person.beard == "full"
    fall = jaw_fall(face)
    right = points((0.98, 0.10), (0.86, 0.48), (0.60, 0.72), (0.44, 0.58), (0.20, 0.50), (0.05, 0.52))
    jaw = points((1.1, 0.1), (1.05, 0.8), (0.7, 1.5 + fall), (0.0, 1.6 + fall))
    upper = np.concatenate([spline(right), flipped(spline(right)[::-1], -1)])
    lower = np.concatenate([flipped(jaw, -1), jaw[::-1]])
    tint = palette.mix(palette.brow(person.hair, person.skin), person.skin, 0.1 if full else 0.3)
    patch = sketch.cover(np.concatenate([upper, lower]), soft=0.05)
    sketch.canvas.paint(patch, tint, 0.72 if full else 0.3)


def draw_moustache(sketch: Sketch, face: Face) -> None:
    """Draws two tapered wings under the nose; they move with the upper lip."""
    person = face.identity
    if person.beard not in {"moustache", "full"}:
        return
    rise = 0.07 * face.actions[10] + 0.05 * face.actions[12] + 0.03 * face.actions[9]
    wing = points((0.02, 0.56 - rise), (0.16, 0.56 - rise), (0.34, 0.64 - rise - 0.05 * face.actions[12]))
    wings = [flipped(wing, side) for side in (-1, 1)]
    sketch.strokes(
        *wings, width=0.11, colour=palette.brow(person.hair, person.skin), taper=(0.8, 0.1), opacity=0.9, soft=0.012
    )
