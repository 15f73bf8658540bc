"""Draws the hair in two layers: one that hangs behind the head, and one that lies on it."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from emocap_pretrain.captions.rendered import palette
from emocap_pretrain.captions.rendered.canvas import Patch
from emocap_pretrain.captions.rendered.face import Face
from emocap_pretrain.captions.rendered.geometry import Points, arched, ellipse, flipped, mirrored, points, spline
from emocap_pretrain.captions.rendered.identity import Identity
from emocap_pretrain.captions.rendered.palette import Colour
from emocap_pretrain.captions.rendered.sketch import Sketch

_BEHIND = -0.25


def draw_behind(sketch: Sketch, face: Face) -> None:
    """Draws the hair behind the head and neck."""
    person = face.identity
    shapes = _BACKS[person.hair_style](person) if person.hair_style in _BACKS else []
    if shapes:
        sketch.fill(*shapes, colour=palette.darker(_colour(person), 0.28), lift=_BEHIND)


def draw(sketch: Sketch, face: Face, skin: Patch | None) -> None:
    """Draws the hair that covers the skull, with strands and a gloss."""
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
    if patch and skin:
        thrown = patch.dropped(round(0.06 * sketch.view.unit_px)).inside(skin)
        sketch.canvas.paint(thrown, palette.shadow(person.skin), 0.42)
    sketch.canvas.paint(patch, colour)
    _shine(sketch, face, patch, colour)


def _colour(person: Identity) -> Colour:
    return person.cloth if person.hair_style == "scarf" else person.hair


def _shine(sketch: Sketch, face: Face, patch: Patch | None, colour: Colour) -> None:
    """Draws strands, darker edges and one soft gloss on the lit side."""
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
    """Returns a hair that starts near the crown and falls to the side on which it grows."""
    return points((0.25 * x, -1.48), (0.75 * x * spread, -1.22), (1.05 * x, -0.75), (1.12 * x, -0.2))


_HIGH = ((0.93, -0.15), (0.90, -0.55), (0.70, -0.88), (0.38, -0.98), (0.12, -1.0))
_MIDDLE = ((0.95, -0.05), (0.90, -0.50), (0.74, -0.80), (0.40, -0.88), (0.12, -0.86))
_FRINGE = ((0.96, 0.0), (0.88, -0.45), (0.74, -0.62), (0.40, -0.67), (0.12, -0.68))
Half = tuple[tuple[float, float], ...]


def _crown(person: Identity, volume: float, peak: float = 0.0) -> Points:
    """Returns the outer edge of the right half, from beside the ear up to the top."""
    wide, top = person.width, person.forehead
    return points(
        (0.98 * wide + 0.3 * volume, -0.02),
        (1.01 * wide + volume, -0.50),
        (0.90 * wide + volume, -1.02 * top - 0.3 * volume),
        (0.50 * wide + 0.5 * volume, -1.31 * top - volume - 0.6 * peak),
        (0.14 * wide, -1.36 * top - volume - peak),
    )


def _cap(person: Identity, volume: float, hairline: Half, peak: float = 0.0) -> Points:
    """Returns everything between the crown and a symmetric hairline."""
    outer = _crown(person, volume, peak)
    inner = np.array(hairline) * (person.width, 1.0)
    return np.concatenate([spline(arched(outer)), spline(arched(inner))[::-1]])


def _sweep(person: Identity, volume: float, hairline: Half, peak: float = 0.0) -> Points:
    """Returns everything between the crown and a full hairline from left to right; half of all people part it the other
    way.
    """
    side = 1 if person.marks % 2 else -1
    outer = spline(arched(_crown(person, volume, peak)))
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


def _bun_behind(person: Identity) -> list[Points]:
    return [ellipse(0.0, -1.52 * person.forehead, 0.42, 0.36)]


def _afro_behind(person: Identity) -> list[Points]:
    return [ellipse(0.0, -0.62, 1.48 * person.width, 1.26)]


def _curly_behind(person: Identity) -> list[Points]:
    return [ellipse(0.0, -0.45, 1.24 * person.width, 1.12)]


def _bob_behind(person: Identity) -> list[Points]:
    return [
        spline(
            mirrored(points((0.6, -1.3), (1.2, -0.5), (1.24, 0.4), (1.12, 0.98), (0.6, 1.1)) * (person.width, 1.0)),
            closed=True,
        )
    ]


def _long_behind(person: Identity) -> list[Points]:
    return [
        spline(
            mirrored(points((0.6, -1.3), (1.2, -0.5), (1.25, 0.6), (1.35, 1.6), (1.3, 2.6)) * (person.width, 1.0)),
            closed=True,
        )
    ]


def _scarf_behind(person: Identity) -> list[Points]:
    return [
        spline(
            mirrored(points((0.6, -1.3), (1.15, -0.4), (1.15, 0.6), (1.2, 1.6), (1.5, 2.6)) * (person.width, 1.0)),
            closed=True,
        )
    ]


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
_BACKS: Mapping[str, Callable[[Identity], list[Points]]] = {
    "bun": _bun_behind,
    "afro": _afro_behind,
    "curly": _curly_behind,
    "bob": _bob_behind,
    "long": _long_behind,
    "wavy": _long_behind,
    "scarf": _scarf_behind,
}
