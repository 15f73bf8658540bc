"""Defines how the face is seen: pose, light and background."""

import math
from dataclasses import dataclass

import numpy as np

from emocap_pretrain.captions.rendered import palette
from emocap_pretrain.captions.rendered.palette import Colour


@dataclass(frozen=True, slots=True)
class Pose:
    """Rotation of the head in radians, and its position.

    Attributes:
        yaw: Positive turns the face to the right of the image.
        pitch: Positive looks down.
        roll: Positive tilts clockwise.
        zoom: Half a face width, as a share of the image width.
        x: Offset of the face from the middle, as a share of the image width.
        y: The same, downwards.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    zoom: float = 0.36
    x: float = 0.0
    y: float = 0.0


@dataclass(frozen=True, slots=True)
class Light:
    """A soft lamp.

    Attributes:
        x: Side from which the light comes, -1 left to 1 right.
        y: Height from which the light comes, -1 above to 1 below.
        strength: Contrast between the lit and the dark side, in [0, 1].
        warmth: -1 cool to 1 warm.
    """

    x: float = -0.5
    y: float = -0.6
    strength: float = 0.5
    warmth: float = 0.0


@dataclass(frozen=True, slots=True)
class Backdrop:
    """A gradient from `near` to `far` along `angle` in radians, and `lamps` blurred discs placed by `seed`."""

    near: Colour
    far: Colour
    angle: float
    lamps: int
    seed: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Pose, light and background of a face; `gaze` is the direction of the eyes, right and down, in [-1, 1]."""

    pose: Pose
    light: Light
    backdrop: Backdrop
    gaze: tuple[float, float]


def scene(rng: np.random.Generator) -> Scene:
    """Samples a view that is near enough to the front for every action to be visible."""
    return Scene(_pose(rng), _light(rng), _backdrop(rng), _gaze(rng))


def _pose(rng: np.random.Generator) -> Pose:
    yaw, pitch, roll = (float(a) for a in np.clip(rng.normal(0.0, (0.13, 0.07, 0.07)), -0.3, 0.3))
    x, y = (float(a) for a in rng.uniform(-0.025, 0.025, 2))
    return Pose(yaw, pitch, roll, float(rng.uniform(0.325, 0.385)), x, y)


def _light(rng: np.random.Generator) -> Light:
    x, y, strength, warmth = rng.uniform((-1, -1, 0.2, -1), (1, 0.1, 1, 1))
    return Light(float(x), float(y), float(strength), float(warmth))


def _backdrop(rng: np.random.Generator) -> Backdrop:
    near = palette.backdrop(rng)
    far = palette.mix(palette.backdrop(rng), near, 0.45)
    lamps = int(rng.integers(3, 8)) if rng.random() < 0.3 else 0
    return Backdrop(near, far, float(rng.uniform(0, 2 * math.pi)), lamps, int(rng.integers(2**31)))


def _gaze(rng: np.random.Generator) -> tuple[float, float]:
    x, y = np.clip(rng.normal(0.0, (0.3, 0.15)), (-0.7, -0.3), (0.7, 0.4))
    return float(x), float(y)
