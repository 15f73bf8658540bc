"""Renders a face to pixels, painting from the backdrop to the light."""

import numpy as np
from jaxtyping import UInt8

from emocap_pretrain.captions.rendered import brows, cheeks, eyes, hair, head, mouth, nose, props
from emocap_pretrain.captions.rendered.canvas import Canvas
from emocap_pretrain.captions.rendered.face import Face
from emocap_pretrain.captions.rendered.geometry import View
from emocap_pretrain.captions.rendered.sketch import Sketch


def render(face: Face, pixels: int) -> UInt8[np.ndarray, "{pixels} {pixels} 3"]:
    """Draws `face` as a square sRGB image of `pixels` x `pixels`, anti-aliased; the same face gives the same bytes.

    Raises:
        ValueError: If `pixels` is too small to distinguish faces.
    """
    if pixels < 16:
        raise ValueError(f"pixels={pixels} is too small for a face; the minimum is 16, the usual size 112.")
    sketch = Sketch(Canvas(pixels), View(face.scene.pose, pixels))
    props.draw_backdrop(sketch.canvas, face.scene.backdrop)
    hair.draw_behind(sketch, face)
    head.draw_body(sketch, face)
    head.draw_ears(sketch, face)
    _draw_features(sketch, face)
    props.draw_glasses(sketch, face)
    props.draw_earrings(sketch, face)
    return props.shine(sketch.canvas.picture, face.scene.light)


def _draw_features(sketch: Sketch, face: Face) -> None:
    skin = head.draw_face(sketch, face)
    if skin is None:
        return
    with sketch.canvas.within(skin):
        _draw_on_skin(sketch, face)
    hair.draw(sketch, face, skin)
    brows.draw(sketch, face)


def _draw_on_skin(sketch: Sketch, face: Face) -> None:
    lips = mouth.lips(face)
    head.draw_relief(sketch, face)
    head.draw_beard(sketch, face)
    cheeks.draw(sketch, face)
    head.draw_marks(sketch, face)
    brows.draw_creases(sketch, face)
    nose.draw_folds(sketch, face, lips.corner)
    cheeks.draw_chin(sketch, face, float(lips.bottom[:, 1].max()))
    nose.draw(sketch, face)
    head.draw_moustache(sketch, face)
    mouth.draw(sketch, face, lips)
    eyes.draw(sketch, face)
