"""Draws the nose, its wrinkles, and the folds that run from it to the mouth."""

from emocap_pretrain.captions.rendered import palette
from emocap_pretrain.captions.rendered.face import Face
from emocap_pretrain.captions.rendered.geometry import ellipse, flipped, moved, points
from emocap_pretrain.captions.rendered.sketch import Sketch

NOSE_Y = 0.36


def draw(sketch: Sketch, face: Face) -> None:
    """Draws only shades: a lit ridge and tip, a shaded flank, wings and nostrils."""
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
    """Draws, for AU 9, oblique folds along the bridge, and one across its root."""
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
    """Draws the nasolabial folds, which pass outside the mouth `corner` of the right side.

    AU 12 bows them outwards, AU 10 deepens and squares their upper half, AU 9 their top.
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
