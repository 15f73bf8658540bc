"""Named measurements of a face from its 478 mesh points: pure geometry, no data set and no emotion in it.

A face is first turned into axes of its own head, so that roll, turn and nod of the head change little: x runs from
the right eye of the subject to the left one, y up along the bridge of the nose, and the unit is the distance between
the eyes. The points are those of the MediaPipe face mesh with refined landmarks, in pixels, depth in the same unit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Faces = Float[np.ndarray, "faces"]
Landmarks = Float[np.ndarray, "faces 478 3"]
Measurements = Mapping[str, Faces]


@dataclass(frozen=True, slots=True)
class Side:
    """Mesh points of one half of the face."""

    eye: tuple[int, int]  # outer, inner corner
    upper_lid: tuple[int, ...]
    lower_lid: tuple[int, ...]
    brow_inner: tuple[int, ...]
    brow_middle: tuple[int, ...]
    brow_outer: tuple[int, ...]
    lip_corner: int
    nose_wing: int


RIGHT = Side(
    eye=(33, 133),
    upper_lid=(160, 159, 158),
    lower_lid=(144, 145, 153),
    brow_inner=(55, 107),
    brow_middle=(52, 105),
    brow_outer=(46, 53, 63, 70),
    lip_corner=61,
    nose_wing=129,
)
LEFT = Side(
    eye=(263, 362),
    upper_lid=(387, 386, 385),
    lower_lid=(373, 374, 380),
    brow_inner=(285, 336),
    brow_middle=(282, 334),
    brow_outer=(276, 283, 293, 300),
    lip_corner=291,
    nose_wing=358,
)
NOSE_BRIDGE, NOSE_BASE, CHIN = 168, 2, 152
UPPER_LIP_OUTER, UPPER_LIP_INNER = 0, (82, 13, 312)
LOWER_LIP_INNER, LOWER_LIP_OUTER = (87, 14, 317), 17

# From this turn on only the near half of the face counts; the far one is the mesh model's guess.
FULL_TURN_DEG = 40.0
# Beyond these, too little of the face is seen to measure it.
MAX_TURN_DEG, MAX_NOD_DEG = 40.0, 35.0


@dataclass(frozen=True, slots=True)
class Head:
    """Faces in the axes of their own heads; the unit is the distance between the eye centres.

    `yaw_deg` is positive where the left half of the face is farther away, `pitch_deg` where the forehead is.
    """

    points: Landmarks
    yaw_deg: Faces
    pitch_deg: Faces

    def at(self, *numbers: int) -> Float[np.ndarray, "faces 3"]:
        """Mean position of these mesh points."""
        return self.points[:, numbers].mean(1)

    def height(self, *numbers: int) -> Faces:
        return self.at(*numbers)[:, 1]

    def both(self, measure: Callable[[Side], Faces]) -> Faces:
        """Mean of the two halves, leaning to the nearer one the more the head is turned."""
        lean = np.clip(self.yaw_deg / FULL_TURN_DEG, -1, 1)
        return (measure(RIGHT) * (1 + lean) + measure(LEFT) * (1 - lean)) / 2


def _distance(a: Float[np.ndarray, "faces 3"], b: Float[np.ndarray, "faces 3"]) -> Faces:
    return np.linalg.norm(a - b, axis=-1)


def _unit(vectors: Float[np.ndarray, "faces 3"]) -> Float[np.ndarray, "faces 3"]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def head(landmarks: Landmarks) -> Head:
    """Puts every face into the axes of its own head. A point of NaN stays NaN; without eyes or nose all do."""
    right, left = (landmarks[:, side.eye].mean(1) for side in (RIGHT, LEFT))
    x = _unit(left - right)
    nose = landmarks[:, NOSE_BRIDGE] - landmarks[:, NOSE_BASE]
    y = _unit(nose - (nose * x).sum(-1, keepdims=True) * x)
    axes = np.stack([x, y, np.cross(x, y)], axis=1)
    middle = (right + left) / 2
    eye_distance = _distance(left, right)
    points = np.einsum("fij,fkj->fki", axes, landmarks - middle[:, None]) / eye_distance[:, None, None]
    return Head(
        points=points,
        yaw_deg=np.degrees(np.arcsin(x[:, 2])),
        pitch_deg=np.degrees(np.arcsin(y[:, 2])),
    )


def _brow_inner(face: Head) -> Faces:
    return face.both(lambda side: face.height(*side.brow_inner) - face.height(*side.eye))


def _brow_middle(face: Head) -> Faces:
    return face.both(lambda side: face.height(*side.brow_middle) - face.height(*side.eye))


def _brow_outer(face: Head) -> Faces:
    return face.both(lambda side: face.height(*side.brow_outer) - face.height(*side.eye))


def _brow_slant(face: Head) -> Faces:
    """Inner ends above outer ends: the oblique brows of grief."""
    return _brow_inner(face) - _brow_outer(face)


def _brow_gap(face: Head) -> Faces:
    return _distance(face.at(RIGHT.brow_inner[0]), face.at(LEFT.brow_inner[0]))


def _eye_aperture(face: Head) -> Faces:
    """Gap between the lids over the length of the eye."""

    def aperture(side: Side) -> Faces:
        outer, inner = side.eye
        return _distance(face.at(*side.upper_lid), face.at(*side.lower_lid)) / _distance(face.at(outer), face.at(inner))

    return face.both(aperture)


def _lower_lid_lift(face: Head) -> Faces:
    """Lower lids against the eye corners: a squint lifts them, a lowered gaze does not."""
    return face.both(lambda side: face.height(*side.lower_lid) - face.height(*side.eye))


def _mouth_width(face: Head) -> Faces:
    return _distance(face.at(RIGHT.lip_corner), face.at(LEFT.lip_corner))


def _mouth_opening(face: Head) -> Faces:
    return _distance(face.at(*UPPER_LIP_INNER), face.at(*LOWER_LIP_INNER))


def _corner_curve(face: Head) -> Faces:
    """Lip corners above the middle of the mouth: positive for a curve like a bowl."""
    middle = face.height(*UPPER_LIP_INNER, *LOWER_LIP_INNER)
    return face.both(lambda side: face.height(side.lip_corner)) - middle


def _corner_lift(face: Head) -> Faces:
    """Lip corners above the middle of the mouth and towards the nose.

    A dropped jaw fakes the first, a short upper lip the second; their mean is fooled by neither alone.
    """
    to_nose = face.both(lambda side: face.height(side.lip_corner)) - face.height(NOSE_BASE)
    return (_corner_curve(face) + to_nose) / 2


def _lip_thickness(face: Head) -> Faces:
    """Red of both lips together; pressed or rolled-in lips are thin."""
    upper = _distance(face.at(UPPER_LIP_OUTER), face.at(UPPER_LIP_INNER[1]))
    return upper + _distance(face.at(LOWER_LIP_INNER[1]), face.at(LOWER_LIP_OUTER))


def _upper_lip_drop(face: Head) -> Faces:
    """Returns the distance from the base of the nose to the upper lip's edge; a raised upper lip makes it short."""
    return face.height(NOSE_BASE) - face.height(UPPER_LIP_OUTER)


def _nose_width(face: Head) -> Faces:
    """Across the wings of the nose, which the nasolabial folds pull outwards as they deepen."""
    return _distance(face.at(RIGHT.nose_wing), face.at(LEFT.nose_wing))


def _jaw_drop(face: Head) -> Faces:
    return _distance(face.at(NOSE_BASE), face.at(CHIN))


MEASURES: Mapping[str, Callable[[Head], Faces]] = {
    "brow_inner": _brow_inner,
    "brow_middle": _brow_middle,
    "brow_outer": _brow_outer,
    "brow_slant": _brow_slant,
    "brow_gap": _brow_gap,
    "eye_aperture": _eye_aperture,
    "lower_lid_lift": _lower_lid_lift,
    "mouth_width": _mouth_width,
    "mouth_opening": _mouth_opening,
    "corner_curve": _corner_curve,
    "corner_lift": _corner_lift,
    "lip_thickness": _lip_thickness,
    "upper_lip_drop": _upper_lip_drop,
    "nose_width": _nose_width,
    "jaw_drop": _jaw_drop,
}


def measure(landmarks: Landmarks) -> Measurements:
    """Every measure of `MEASURES` in eye distances, and the head's "yaw_deg" and "pitch_deg".

    A measure that needs a point of NaN is NaN: set to NaN what lies outside the picture. So is every measure of a
    face that is turned away or bent too far.
    """
    face = head(landmarks)
    seen = (np.abs(face.yaw_deg) <= MAX_TURN_DEG) & (np.abs(face.pitch_deg) <= MAX_NOD_DEG)
    values = {name: np.where(seen, function(face), np.nan) for name, function in MEASURES.items()}
    return {**values, "yaw_deg": face.yaw_deg, "pitch_deg": face.pitch_deg}
