"""Draws the head: neck and shoulders, ears, skin, beard and hair.

The numbers are positions and sizes in face units (half the width of an average face). x = 0 is the midline of the face,
and y = 0 lies just below the eyes. To see the effect of a change, run
`python -m emocap_pretrain.captions.rendered --preview faces.png`.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from emocap_pretrain.captions.rendered import palette
from emocap_pretrain.captions.rendered.canvas import (
    Patch,
    Points,
    Sketch,
    arched,
    ellipse,
    flipped,
    mirrored,
    points,
    spline,
)
from emocap_pretrain.captions.rendered.face import Face, Identity
from emocap_pretrain.captions.rendered.palette import Colour

CHIN_Y = 1.32


def jaw_fall(face: Face) -> float:
    """Returns how far the chin is below its position at rest, in face units; negative if it is above."""
    return 0.17 * face.actions[26] + 0.02 * face.actions[25] - 0.035 * face.actions[17]


def outline(face: Face) -> Points:
    """Returns the closed outline of the face, from the top of the skull to the chin and back."""
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
    """Paints the skin and returns the patch that it covers, or None if the face lies outside of the image.

    The features of the face must not be painted outside of this patch.
    """
    skin = face.identity.skin
    patch = sketch.cover(outline(face))
    sketch.canvas.paint(patch, palette.mix(skin, palette.shadow(skin), 0.5))
    return patch


def draw_relief(sketch: Sketch, face: Face) -> None:
    """Brightens the middle of the face, the forehead and the chin. The rim of the face stays dark."""
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
    """Draws stubble or a short full beard as a tint, through which the relief of the jaw remains visible."""
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
    """Draws a moustache: two tapered strokes under the nose, which move with the upper lip."""
    person = face.identity
    if person.beard not in {"moustache", "full"}:
        return
    rise = 0.07 * face.actions[10] + 0.05 * face.actions[12] + 0.03 * face.actions[9]
    wing = points((0.02, 0.56 - rise), (0.16, 0.56 - rise), (0.34, 0.64 - rise - 0.05 * face.actions[12]))
    wings = [flipped(wing, side) for side in (-1, 1)]
    sketch.strokes(
        *wings, width=0.11, colour=palette.brow(person.hair, person.skin), taper=(0.8, 0.1), opacity=0.9, soft=0.012
    )


Half = tuple[tuple[float, float], ...]
_LONG: Half = ((0.6, -1.3), (1.2, -0.5), (1.25, 0.6), (1.35, 1.6), (1.3, 2.6))
_CURTAINS: Mapping[str, Half] = {
    "bob": ((0.6, -1.3), (1.2, -0.5), (1.24, 0.4), (1.12, 0.98), (0.6, 1.1)),
    "long": _LONG,
    "wavy": _LONG,
    "scarf": ((0.6, -1.3), (1.15, -0.4), (1.15, 0.6), (1.2, 1.6), (1.5, 2.6)),
}
"""The right halves of the hair or the cloth at the back of the neck, from top to bottom."""


def draw_hair_behind(sketch: Sketch, face: Face) -> None:
    """Draws the hair behind the head and neck."""
    person = face.identity
    match person.hair_style:
        case "bun":
            shape = ellipse(0.0, -1.52 * person.forehead, 0.42, 0.36)
        case "afro":
            shape = ellipse(0.0, -0.62, 1.48 * person.width, 1.26)
        case "curly":
            shape = ellipse(0.0, -0.45, 1.24 * person.width, 1.12)
        case style if style in _CURTAINS:
            shape = spline(mirrored(np.array(_CURTAINS[style]) * (person.width, 1.0)), closed=True)
        case _:
            return
    sketch.fill(shape, colour=palette.darker(_colour(person), 0.28), lift=-0.25)


def draw_hair(sketch: Sketch, face: Face, skin: Patch) -> None:
    """Draws the hair that covers the skull, with its strands, its gloss and its shadow on the patch `skin`."""
    person = face.identity
    if person.hair_style == "bald":
        sketch.glow(0.2 * face.scene.light.x, -1.0, 0.3, 0.12, colour=palette.WHITE, opacity=0.25, within=skin)
        return
    if person.hair_style == "buzz":
        tone = palette.mix(person.skin, person.hair, 0.75)
        sketch.fill(_cap(person, 0.02, _HIGH), colour=tone, opacity=0.9, soft=0.03)
        return
    shapes = _FRONTS[person.hair_style](person)
    colour = _colour(person)
    patch = sketch.cover(*shapes)
    if patch:
        thrown = patch.dropped(round(0.06 * sketch.view.unit_px)).inside(skin)
        sketch.canvas.paint(thrown, palette.shadow(person.skin), 0.42)
    sketch.canvas.paint(patch, colour)
    _shine(sketch, face, patch, colour)


def _colour(person: Identity) -> Colour:
    return person.cloth if person.hair_style == "scarf" else person.hair


def _shine(sketch: Sketch, face: Face, patch: Patch | None, colour: Colour) -> None:
    """Draws dark and light strands of hair, and a soft gloss on the lit side, all inside of `patch`."""
    person = face.identity
    rng = np.random.default_rng(person.marks)
    if person.hair_style not in {"curly", "afro", "scarf"}:
        roots = rng.uniform(-0.95, 0.95, 12)
        strands = [_strand(float(x), float(rng.uniform(0.7, 1.0))) for x in roots]
        sketch.strokes(*strands[:6], width=0.035, colour=palette.darker(colour, 0.35), opacity=0.5, within=patch)
        sketch.strokes(*strands[6:], width=0.03, colour=palette.lighter(colour, 0.25), opacity=0.45, within=patch)
    side = face.scene.light.x
    gloss = palette.lighter(colour, 0.35)
    sketch.glow(0.45 * side, -1.18, 0.34, 0.11, colour=gloss, opacity=0.4, within=patch)


def _strand(x: float, spread: float) -> Points:
    """Returns a strand of hair that starts near the crown and falls to one side of the head.

    `x` in [-1, 1] is the horizontal position of the strand: -1 is at the left of the image, and 0 in the middle. A
    `spread` below 1 brings the upper part of the strand nearer to the middle.
    """
    return points((0.25 * x, -1.48), (0.75 * x * spread, -1.22), (1.05 * x, -0.75), (1.12 * x, -0.2))


_HIGH = ((0.93, -0.15), (0.90, -0.55), (0.70, -0.88), (0.38, -0.98), (0.12, -1.0))
_MIDDLE = ((0.95, -0.05), (0.90, -0.50), (0.74, -0.80), (0.40, -0.88), (0.12, -0.86))
_FRINGE = ((0.96, 0.0), (0.88, -0.45), (0.74, -0.62), (0.40, -0.67), (0.12, -0.68))


def _crown(person: Identity, volume: float, peak: float = 0.0) -> Points:
    """Returns the outer edge of the right half of the hair, from beside the ear up to the top.

    `volume` is the thickness of the hair, and `peak` is additional height at the top, both in face units.
    """
    wide, top = person.width, person.forehead
    return points(
        (0.98 * wide + 0.3 * volume, -0.02),
        (1.01 * wide + volume, -0.50),
        (0.90 * wide + volume, -1.02 * top - 0.3 * volume),
        (0.50 * wide + 0.5 * volume, -1.31 * top - volume - 0.6 * peak),
        (0.14 * wide, -1.36 * top - volume - peak),
    )


def _cap(person: Identity, volume: float, hairline: Half, peak: float = 0.0) -> Points:
    """Returns the outline of hair between its outer edge and a symmetric hairline.

    `hairline` is the right half of the hairline, from beside the ear to the middle. `volume` is the thickness of the
    hair, and `peak` is additional height at the top, both in face units.
    """
    outer = _crown(person, volume, peak)
    inner = np.array(hairline) * (person.width, 1.0)
    return np.concatenate([spline(arched(outer)), spline(arched(inner))[::-1]])


def _sweep(person: Identity, volume: float, hairline: Half) -> Points:
    """Returns the outline of hair between its outer edge and an asymmetric hairline.

    `hairline` runs from left to right, and `volume` is the thickness of the hair in face units. For half of all people
    the outline is mirrored.
    """
    side = 1 if person.marks % 2 else -1
    outer = spline(arched(_crown(person, volume)))
    inner = spline(np.array(hairline) * (person.width, 1.0))
    return flipped(np.concatenate([outer, inner[::-1]]), side)


def _short(person: Identity) -> list[Points]:
    return [_cap(person, 0.09, _MIDDLE)]


def _swept(person: Identity) -> list[Points]:
    line = (
        (-0.95, -0.1), (-0.90, -0.55), (-0.62, -0.93), (-0.42, -1.0), (-0.1, -0.80), (0.35, -0.68),
        (0.72, -0.64), (0.90, -0.42), (0.96, -0.05),
    )  # fmt: skip
    return [_sweep(person, 0.13, line)]


def _quiff(person: Identity) -> list[Points]:
    tuft = [ellipse(x, -1.28 - 0.12 * math.cos(1.6 * x), 0.34, 0.26, tilt=0.3) for x in (-0.36, 0.0, 0.36)]
    return [_cap(person, 0.05, _HIGH), *tuft]


def _curly(person: Identity) -> list[Points]:
    angles = np.linspace(-2.95, -0.19, 12)
    ring = [ellipse(1.03 * math.cos(a), -0.35 + 1.08 * math.sin(a), 0.25, 0.25, count=18) for a in angles.tolist()]
    front = [ellipse(x, -0.93 - 0.1 * math.cos(2.2 * x), 0.2, 0.17, count=18) for x in (-0.6, -0.3, 0.0, 0.3, 0.6)]
    return [_cap(person, 0.12, _HIGH), *ring, *front]


def _afro(person: Identity) -> list[Points]:
    return [_cap(person, 0.28, _MIDDLE, 0.08)]


def _bob(person: Identity) -> list[Points]:
    lock = points((1.02, -0.9), (1.22, -0.2), (1.20, 0.5), (1.06, 0.92), (0.86, 0.84), (0.93, 0.3), (0.86, -0.5))
    curtain = spline(lock, closed=True)
    return [_cap(person, 0.13, _FRINGE), curtain, flipped(curtain, -1)]


def _long(person: Identity) -> list[Points]:
    lock = points(
        (0.70, -1.2), (1.12, -0.8), (1.20, 0.0), (1.22, 0.9), (1.30, 2.2), (0.9, 2.2), (0.98, 0.9), (0.93, 0.1),
        (0.87, -0.5), (0.74, -0.95),
    )  # fmt: skip
    curtain = spline(lock, closed=True)
    part = ((0.95, -0.1), (0.88, -0.50), (0.66, -0.78), (0.35, -0.98), (0.05, -1.14))
    return [_cap(person, 0.12, part), curtain, flipped(curtain, -1)]


def _wavy(person: Identity) -> list[Points]:
    side = 1 if person.marks % 2 else -1
    ys = np.linspace(-0.6, 1.7, 9)
    waves = [ellipse(s * (1.13 + 0.04 * (-1) ** k), y, 0.19, 0.3, count=18) for k, y in enumerate(ys) for s in (-1, 1)]
    line = (
        (-0.98, 0.0), (-0.90, -0.50), (-0.70, -0.85), (-0.40, -1.08), (-0.05, -0.90), (0.40, -0.76), (0.75, -0.62),
        (0.90, -0.35), (0.98, 0.1),
    )  # fmt: skip
    return [_sweep(person, 0.17, line), *(flipped(wave, side) for wave in waves)]


def _bun(person: Identity) -> list[Points]:
    return [_cap(person, 0.05, _MIDDLE)]


def _scarf(person: Identity) -> list[Points]:
    outer = arched(points((0.95, 1.7), (1.05, 1.0), (1.18, 0.3), (1.16, -0.5), (0.92, -1.2), (0.4, -1.48)))
    inner = arched(points((0.45, 1.45), (0.80, 0.86), (0.93, 0.3), (0.92, -0.3), (0.74, -0.8), (0.35, -0.98)))
    return [np.concatenate([spline(outer), spline(inner)[::-1]]) * (person.width, 1.0)]


_FRONTS: Mapping[str, Callable[[Identity], list[Points]]] = {
    "short": _short,
    "swept": _swept,
    "quiff": _quiff,
    "curly": _curly,
    "afro": _afro,
    "bob": _bob,
    "long": _long,
    "wavy": _wavy,
    "bun": _bun,
    "scarf": _scarf,
}
