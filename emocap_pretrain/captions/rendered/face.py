"""Defines a synthetic face, from which both the picture and the caption are made.

A `Face` consists of an `Identity` (the person), a `Scene` (pose, light, background, gaze), `Actions` (the intensities
of action units) and the emotion from which these intensities were sampled. All of them are immutable values. The
functions `sample_...` draw them at random.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from emocap_pretrain.captions.grammar.action_units import VISIBLE
from emocap_pretrain.captions.rendered import palette
from emocap_pretrain.captions.rendered.palette import Colour

DRAWN = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 43)
"""The action units (AU) that the renderer can draw. An intensity below VISIBLE counts as 0."""


@dataclass(frozen=True, slots=True)
class Actions:
    """Holds the intensities of the active action units (AU) of a face.

    `actions[12]` is the intensity of AU 12, which is 0 if AU 12 is not active.

    Raises:
        ValueError: If `strength` has an action unit that is not in `DRAWN`, or an intensity outside of [VISIBLE, 1].
    """

    strength: Mapping[int, float] = field(default_factory=dict[int, float])

    def __post_init__(self) -> None:
        for unit, value in self.strength.items():
            if unit not in DRAWN:
                raise ValueError(f"AU{unit} cannot be drawn; give one of {list(DRAWN)}.")
            if not VISIBLE <= value <= 1:
                raise ValueError(f"AU{unit}={value} is outside [{VISIBLE}, 1]; leave out units that are not active.")

    def __getitem__(self, unit: int) -> float:
        return self.strength.get(unit, 0.0)

    def __contains__(self, unit: object) -> bool:
        return unit in self.strength

    def __iter__(self) -> Iterator[int]:
        """Iterates over the numbers of the active units, in ascending order."""
        return iter(sorted(self.strength))

    def any(self, *units: int) -> bool:
        return any(unit in self.strength for unit in units)


def actions(strength: Mapping[int, float]) -> Actions:
    """Returns `strength` as `Actions`.

    The intensities are clipped to [0, 1] and rounded to hundredths. Those below VISIBLE are left out.
    """
    clipped = {unit: round(min(max(float(value), 0.0), 1.0), 2) for unit, value in strength.items()}
    return Actions({unit: value for unit, value in clipped.items() if value >= VISIBLE})


HAIR_STYLES = ("bald", "buzz", "short", "swept", "quiff", "curly", "afro", "bob", "long", "wavy", "bun", "scarf")
BEARDS = ("none", "stubble", "moustache", "full")
GLASSES = ("none", "round", "square")


@dataclass(frozen=True, slots=True)
class Identity:
    """Describes a person, independent of emotion and scene. Sizes without a unit are relative to the average face.

    Attributes:
        age: 0 is about twenty years old, 1 about eighty.
        eye_tilt: Rise of the outer eye corner, in face units (half the width of an average face).
        brow_arch: Extra height of the arch of the eyebrows, in face units.
        liner: Thickness of the lash line, in [0, 1]. Above 0.5, lashes are drawn too.
        freckles: Opacity of the freckles, in [0, 1]. Below 0.5, the face has no freckles.
        marks: Seed of small details, such as freckles and strands of hair.
    """

    age: float
    width: float
    jaw: float
    chin: float
    forehead: float
    eye_size: float
    eye_gap: float
    eye_tilt: float
    brow_weight: float
    brow_arch: float
    nose_width: float
    nose_length: float
    mouth_width: float
    lips: float
    liner: float
    freckles: float
    blush: float
    skin: Colour
    hair: Colour
    iris: Colour
    lip: Colour
    cloth: Colour
    hair_style: str
    beard: str
    glasses: str
    earrings: bool
    marks: int


def sample_identity(rng: np.random.Generator) -> Identity:
    """Samples a person. No trait depends on the emotion, so that a trait cannot reveal the emotion."""
    age = float(rng.beta(1.3, 2.2))
    skin = palette.skin(float(rng.random()), float(rng.uniform(-1, 1)))
    style = _pick(rng, HAIR_STYLES, (0.06, 0.06, 0.13, 0.11, 0.08, 0.09, 0.06, 0.1, 0.11, 0.08, 0.08, 0.04))
    # A person with one of these styles may have a beard, and has neither lipstick nor earrings.
    bearded = style in {"bald", "buzz", "short", "swept", "quiff", "curly", "afro"}
    return Identity(
        age=age,
        width=_around(rng, 0.05),
        jaw=_around(rng, 0.08),
        chin=_around(rng, 0.05),
        forehead=_around(rng, 0.04),
        eye_size=_around(rng, 0.08),
        eye_gap=_around(rng, 0.04),
        eye_tilt=float(rng.normal(0.015, 0.02)),
        brow_weight=_around(rng, 0.22),
        brow_arch=float(rng.normal(0.0, 0.02)),
        nose_width=_around(rng, 0.12),
        nose_length=_around(rng, 0.06),
        mouth_width=_around(rng, 0.07),
        lips=_around(rng, 0.18),
        liner=float(rng.random()) * (0.5 if bearded else 1.0),
        freckles=float(rng.random()) if rng.random() < 0.3 else 0.0,
        blush=float(rng.random()),
        skin=skin,
        hair=palette.hair(rng, age),
        iris=palette.iris(rng),
        lip=palette.lip(skin, float(rng.random()), made_up=not bearded and rng.random() < 0.35),
        cloth=palette.cloth(rng),
        hair_style=style,
        beard=_pick(rng, BEARDS, (0.5, 0.22, 0.12, 0.16)) if bearded else "none",
        glasses=_pick(rng, GLASSES, (0.8, 0.1, 0.1)),
        earrings=not bearded and bool(rng.random() < 0.4),
        marks=int(rng.integers(2**31)),
    )


def _around(rng: np.random.Generator, spread: float) -> float:
    """Samples a factor around 1 with the standard deviation `spread`, clipped to two standard deviations."""
    return float(np.clip(rng.normal(1.0, spread), 1 - 2 * spread, 1 + 2 * spread))


def _pick(rng: np.random.Generator, names: tuple[str, ...], odds: tuple[float, ...]) -> str:
    return names[int(np.searchsorted(np.cumsum(odds), rng.random() * sum(odds), side="right"))]


@dataclass(frozen=True, slots=True)
class Pose:
    """Holds the rotation of the head in radians, and its size and position in the image.

    Attributes:
        yaw: A positive value turns the face to the right of the image.
        pitch: A positive value turns the face down.
        roll: A positive value tilts the head clockwise.
        zoom: Half the width of an average face, as a fraction of the image width.
        x: Offset of the face to the right of the middle, as a fraction of the image width.
        y: Offset of the face downwards, as a fraction of the image height.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    zoom: float = 0.36
    x: float = 0.0
    y: float = 0.0


@dataclass(frozen=True, slots=True)
class Light:
    """Describes the light of a scene, which comes from one soft lamp.

    Attributes:
        x: Side from which the light comes, from -1 (left) to 1 (right).
        y: Height from which the light comes, from -1 (above) to 1 (below).
        strength: Contrast between the lit and the dark side, in [0, 1].
        warmth: Colour of the light, from -1 (cool) to 1 (warm).
    """

    x: float = -0.5
    y: float = -0.6
    strength: float = 0.5
    warmth: float = 0.0


@dataclass(frozen=True, slots=True)
class Backdrop:
    """Describes a background: a gradient of two colours and some blurred discs of light.

    Attributes:
        near: Colour at one end of the gradient.
        far: Colour at the other end.
        angle: Direction from `near` to `far`, in radians; 0 is to the right.
        lamps: Number of discs.
        seed: Seed of the positions and sizes of the discs.
    """

    near: Colour
    far: Colour
    angle: float
    lamps: int
    seed: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Holds the pose, light and background of a face, and the direction of its gaze.

    `gaze` has two numbers in [-1, 1]: how far the eyes look to the right and how far they look down.
    """

    pose: Pose
    light: Light
    backdrop: Backdrop
    gaze: tuple[float, float]


def sample_scene(rng: np.random.Generator) -> Scene:
    """Samples a scene in which the head is turned so little that every action unit remains visible."""
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


@dataclass(frozen=True, slots=True)
class Face:
    """Describes a synthetic face: a person in a scene who shows an emotion.

    Attributes:
        identity: All traits that an expression does not change.
        scene: Pose, light, background and gaze.
        actions: The active action units. The emotion influences the picture and the local sentences only through them.
        emotion: One of `emotion.EMOTIONS`.
        shade: Name of the variant of the emotion (`emotion.Prototype`), such as "joy" for happiness.
        intensity: Intensity of the emotion, in [0, 1].
        valence: Pleasantness of the emotion, in [-1, 1].
        arousal: Activation of the emotion, in [-1, 1].
        wording: Seed of the choice of words in the caption.
    """

    identity: Identity
    scene: Scene
    actions: Actions
    emotion: str
    shade: str
    intensity: float
    valence: float
    arousal: float
    wording: int
