"""Renders a face to pixels. The layers are painted from the background to the front, and the light is applied last."""

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from emocap_pretrain.captions.rendered import head, lower_face, palette, upper_face
from emocap_pretrain.captions.rendered.canvas import (
    Canvas,
    Patch,
    Points,
    Sketch,
    View,
    ellipse,
    flipped,
    moved,
    points,
)
from emocap_pretrain.captions.rendered.face import Backdrop, Face, Light
from emocap_pretrain.captions.rendered.upper_face import EYE_Y, eye_x


def render(face: Face, pixels: int) -> UInt8[np.ndarray, "{pixels} {pixels} 3"]:
    """Draws `face` as a square sRGB image of `pixels` x `pixels`, anti-aliased; the same face gives the same bytes.

    Raises:
        ValueError: If `pixels` is too small to distinguish faces.
    """
    if pixels < 16:
        raise ValueError(f"pixels={pixels} is too small for a face; the minimum is 16, the usual size 112.")
    # Each layer covers the ones before it, so the order is that from far to near.
    sketch = Sketch(Canvas(pixels), View(face.scene.pose, pixels))
    _draw_backdrop(sketch.canvas, face.scene.backdrop)
    head.draw_hair_behind(sketch, face)
    head.draw_body(sketch, face)
    head.draw_ears(sketch, face)
    _draw_features(sketch, face)
    _draw_glasses(sketch, face)
    _draw_earrings(sketch, face)
    return _shine(sketch.canvas.picture, face.scene.light)


def _draw_features(sketch: Sketch, face: Face) -> None:
    skin = head.draw_face(sketch, face)
    if skin is None:  # The face lies outside of the image.
        return
    # Folds, glows and the beard may reach beyond the face. One cut along its outline removes what does.
    with sketch.canvas.within(skin):
        _draw_on_skin(sketch, face)
    head.draw_hair(sketch, face, skin)
    upper_face.draw_brows(sketch, face)


def _draw_on_skin(sketch: Sketch, face: Face) -> None:
    lips = lower_face.lips(face)
    head.draw_relief(sketch, face)
    head.draw_beard(sketch, face)
    lower_face.draw_cheeks(sketch, face)
    head.draw_marks(sketch, face)
    upper_face.draw_creases(sketch, face)
    lower_face.draw_folds(sketch, face, lips.corner)
    lower_face.draw_chin(sketch, face, float(lips.bottom[:, 1].max()))
    lower_face.draw_nose(sketch, face)
    head.draw_moustache(sketch, face)
    lower_face.draw_mouth(sketch, face, lips)
    upper_face.draw_eyes(sketch, face)


_GLARE = points((-0.12, -0.16), (-0.02, -0.20), (-0.12, 0.10), (-0.2, 0.04))
_COARSE = 32
"""Size in pixels at which a gradient is computed before it is enlarged."""


def _draw_backdrop(canvas: Canvas, backdrop: Backdrop) -> None:
    """Draws a soft gradient, and blurred discs of light on top of it."""
    across = np.linspace(-0.75, 0.75, _COARSE)
    share = 0.5 + math.cos(backdrop.angle) * across + math.sin(backdrop.angle) * across[:, None]
    coarse = Image.fromarray((255 * np.clip(share, 0, 1)).astype(np.uint8))
    canvas.fill(backdrop.near)
    canvas.paint(Patch(0, 0, coarse.resize(canvas.picture.size, Image.Resampling.BILINEAR)), backdrop.far)
    if backdrop.lamps:
        _draw_lamps(canvas, backdrop)


def _draw_lamps(canvas: Canvas, backdrop: Backdrop) -> None:
    rng = np.random.default_rng(backdrop.seed)
    for x, y, size in rng.uniform((0.0, 0.0, 0.04), (1.0, 1.0, 0.10), (backdrop.lamps, 3)).tolist():
        spot = canvas.glow(*(canvas.pixels * length for length in (x, y, size, size)), opacity=0.5)
        canvas.paint(spot, palette.lighter(backdrop.far, 0.45))


def _draw_glasses(sketch: Sketch, face: Face) -> None:
    person = face.identity
    if person.glasses == "none":
        return
    frame, x = palette.darker(person.cloth, 0.75), eye_x(person)
    for side in (-1, 1):
        outer, inner = _lens(person.glasses, side * x, 0.34), _lens(person.glasses, side * x, 0.295)
        sketch.ring(outer, inner, colour=frame, lift=0.05)
        glare = moved(_GLARE, side * x, EYE_Y + 0.04)
        sketch.fill(glare, colour=palette.WHITE, opacity=0.13, lift=0.05)
    bridge = points((-0.11, EYE_Y + 0.03), (0.0, EYE_Y - 0.02), (0.11, EYE_Y + 0.03))
    sketch.strokes(bridge, width=0.05, colour=frame, taper=(1.0, 1.0), lift=0.05)
    temple = points((x + 0.31, EYE_Y - 0.02), (0.9, EYE_Y - 0.02), (1.02, EYE_Y))
    sketch.strokes(temple, flipped(temple, -1), width=0.05, colour=frame, taper=(1.0, 1.0))


def _lens(style: str, x: float, size: float) -> Points:
    if style == "round":
        return ellipse(x, EYE_Y + 0.04, size, size)
    t = np.arange(32) * (math.pi / 16)
    corner = np.stack([np.cos(t), np.sin(t)], 1)
    box = np.sign(corner) * np.abs(corner) ** 0.5
    return box * (size, 0.8 * size) + (x, EYE_Y + 0.04)


def _draw_earrings(sketch: Sketch, face: Face) -> None:
    person = face.identity
    if not person.earrings or person.hair_style in {"scarf", "long", "wavy", "bob"}:
        return
    drops = [ellipse(side * (0.99 * person.width + 0.02), 0.36, 0.05, 0.065, count=14) for side in (-1, 1)]
    sketch.fill(*drops, colour=(0.86, 0.72, 0.36))


def _shine(picture: Image.Image, light: Light) -> UInt8[np.ndarray, "rows columns 3"]:
    """Returns the picture with its lighting: brighter on the side of the lamp, and tinted by the warmth of the lamp."""
    size = picture.width
    across = np.linspace(-1, 1, size, dtype=np.float32)
    tint = np.array([1 + 0.035 * light.warmth, 1.0, 1 - 0.045 * light.warmth], np.float32)
    sideways = 1 + np.float32(0.24 * light.strength * light.x) * np.tanh(2.2 * across)
    down = np.float32(0.15 * light.strength * light.y) * across[:, None]
    # Columns and channels share one axis, because NumPy is slow if the last axis is short.
    lit = down * np.tile(tint, size)
    lit += np.outer(sideways, tint).ravel()
    lit *= np.asarray(picture, np.uint8).reshape(size, 3 * size)
    lit += np.float32(0.5)  # The conversion to bytes truncates, so this rounds.
    return np.minimum(lit, np.float32(255), out=lit).astype(np.uint8).reshape(size, size, 3)
