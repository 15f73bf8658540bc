"""Measures how well a face can be seen: its size, pose, sharpness and exposure."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from emocap_pretrain.captions.face_mesh.geometry import LEFT, RIGHT, head

SIDE_PX = 112
"""Side of the square in which sharpness and exposure are measured."""

_DARK, _BRIGHT = 2, 253  # At or beyond these values a pixel counts as clipped.


class FaceQuality(NamedTuple):
    """Holds the measures of one face.

    Attributes:
        eyes_px: Distance between the middles of the eyes in the original image, in pixels. A turned head shortens it.
        roll_deg: How far the line through the eyes is turned from the horizontal; positive is clockwise in the image.
        yaw_deg: Positive if the left half of the face is farther away than the right half (`geometry.Head`).
        pitch_deg: Positive if the forehead is farther away than the chin.
        sharpness: Standard deviation of the Laplacian of the grey values, divided by the standard deviation of the grey
            values. It does not depend on contrast; blur and enlargement make it smaller.
        brightness: Mean grey value in [0, 1].
        clipped: Share of the pixels that are almost black or white.
    """

    eyes_px: float
    roll_deg: float
    yaw_deg: float
    pitch_deg: float
    sharpness: float
    brightness: float
    clipped: float


def quality(square: UInt8[np.ndarray, "pixels pixels 3"], landmarks: Float[np.ndarray, "478 3"]) -> FaceQuality:
    """Measures a face that was cut out.

    Args:
        square: The face (`alignment.aligned`).
        landmarks: Its landmarks in pixels of the original image.
    """
    grey = np.asarray(Image.fromarray(square).convert("L").resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR))
    values = grey.astype(np.float64)
    laplacian = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:] - 4 * values[1:-1, 1:-1]
    contrast = float(values.std())
    pose = head(landmarks[None].astype(np.float64))
    across = landmarks[list(LEFT.eye), :2].mean(0) - landmarks[list(RIGHT.eye), :2].mean(0)
    return FaceQuality(
        eyes_px=float(np.hypot(*across)),
        roll_deg=float(np.degrees(np.arctan2(across[1], across[0]))),
        yaw_deg=float(pose.yaw_deg[0]),
        pitch_deg=float(pose.pitch_deg[0]),
        sharpness=float(laplacian.std()) / contrast if contrast else 0.0,
        brightness=float(values.mean()) / 255,
        clipped=float(np.mean((grey <= _DARK) | (grey >= _BRIGHT))),
    )
