"""Cuts faces out of images, in named and versioned ways.

An alignment is a similarity of the plane: it turns, scales and moves the image, and keeps its proportions. How faces
are cut out changes the scores of a model (docs/evaluation.md), so the name and the version of the alignment are stored
with the faces. A change of what an alignment does to pixels gets a new version.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from emocap_pretrain.captions.face_mesh.geometry import LEFT, RIGHT

AlignmentName: TypeAlias = Literal["eyes_mouth", "box"]

VERSIONS: Mapping[AlignmentName, str] = {"eyes_mouth": "eyes_mouth-1", "box": "box-1"}

EYES_AND_MOUTH = ((0.35, 0.39), (0.65, 0.39), (0.50, 0.69))
"""Places of the middles of the right eye, the left eye and the mouth of the subject, as shares of the square's side.

The right eye of the subject is on the left side of the square.
"""

BOX_SCALE = 1.3
"""Side of the square of the alignment "box", relative to the longer side of the box around all landmarks."""


class AlignedFace(NamedTuple):
    """Holds a face that was cut out.

    Attributes:
        image: The square.
        landmarks: The landmarks in pixels of the square; depths are scaled like the image.
        inside: Share of the square that lies in the image. The rest has the mean colour of the image.
    """

    image: UInt8[np.ndarray, "pixels pixels 3"]
    landmarks: Float[np.ndarray, "478 3"]
    inside: float


def aligned(
    image: UInt8[np.ndarray, "height width 3"], landmarks: Float[np.ndarray, "478 3"], name: AlignmentName, pixels: int
) -> AlignedFace:
    """Cuts a face out.

    Args:
        image: The image.
        landmarks: The landmarks of the face in pixels of the image, with depth in the same unit.
        name: "eyes_mouth" turns the face upright, and brings eyes and mouth to fixed places (`EYES_AND_MOUTH`). "box"
            cuts out a square around all landmarks, without turning it.
        pixels: Side of the square.
    """
    factor, offset = _similarity(landmarks, name)
    factor, offset = factor * pixels, offset * pixels
    flat = landmarks[:, 0] + 1j * landmarks[:, 1]
    moved = factor * flat + offset
    points = np.stack([moved.real, moved.imag, landmarks[:, 2] * abs(factor)], axis=1)
    return AlignedFace(_cut(image, factor, offset, pixels), points, _inside(image.shape, factor, offset, pixels))


def _similarity(landmarks: Float[np.ndarray, "478 3"], name: AlignmentName) -> tuple[complex, complex]:
    """Returns the factor and the offset by which a place z = x + iy in pixels gets its place in a square of side 1."""
    if name == "box":
        low, high = landmarks[:, :2].min(0), landmarks[:, :2].max(0)
        side = BOX_SCALE * float((high - low).max())
        corner = (low + high) / 2 - side / 2
        return complex(1 / side), complex(*(-corner / side))
    middles: Sequence[np.ndarray] = (
        landmarks[list(RIGHT.eye), :2].mean(0),
        landmarks[list(LEFT.eye), :2].mean(0),
        landmarks[[RIGHT.lip_corner, LEFT.lip_corner], :2].mean(0),
    )
    places = np.array([complex(*middle) for middle in middles])
    wanted = np.array([complex(*place) for place in EYES_AND_MOUTH])
    # Least squares in complex numbers: both sets are centred, and the factor turns and scales one onto the other.
    centred = places - places.mean()
    factor = complex(np.vdot(centred, wanted - wanted.mean()) / np.vdot(centred, centred).real)
    return factor, complex(wanted.mean() - factor * places.mean())


def _cut(
    image: UInt8[np.ndarray, "height width 3"], factor: complex, offset: complex, pixels: int
) -> UInt8[np.ndarray, "pixels pixels 3"]:
    picture = Image.fromarray(image)
    # Bicubic interpolation reads four pixels in each direction, so a much larger face is first made smaller by whole
    # numbers, with the mean of the pixels.
    reduction = max(1, math.floor(1 / abs(factor)))
    if reduction > 1:
        picture = picture.reduce(reduction)
    # Pillow wants the inverse: for a place in the square, its place in the (smaller) image.
    inverse = 1 / (factor * reduction)
    start = -offset * inverse
    return np.asarray(
        picture.transform(
            (pixels, pixels),
            Image.Transform.AFFINE,
            (inverse.real, -inverse.imag, start.real, inverse.imag, inverse.real, start.imag),
            Image.Resampling.BICUBIC,
            fillcolor=tuple(image.reshape(-1, 3).mean(0).round().astype(int).tolist()),
        )
    )


def _inside(shape: Sequence[int], factor: complex, offset: complex, pixels: int) -> float:
    grid = (np.arange(32) + 0.5) / 32 * pixels
    places = (grid[None] + 1j * grid[:, None] - offset) / factor
    height, width = shape[:2]
    return float(np.mean((places.real >= 0) & (places.real < width) & (places.imag >= 0) & (places.imag < height)))
