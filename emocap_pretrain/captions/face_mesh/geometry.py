"""Measures faces from their 478 mesh points, and ranks the measurements among those of many faces.

A face is first rotated into the axes of its own head, so that roll, yaw and pitch of the head have little effect. x
runs from the subject's right eye to the left one, and y runs up along the bridge of the nose. The unit is the distance
between the eyes. The input is the MediaPipe face mesh with refined landmarks, with all three coordinates in pixels.

Only a comparison with other faces shows whether an eye is wide. Therefore each measurement is replaced by its rank in a
population of faces.

`measure` computes the measurements of many faces at once, as arrays with one number for each face. `Population.fit`
learns the distribution of each measurement. `Population.ranks` replaces measurements by ranks, from which `cues.py`
derives the visible states of the regions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

PerFace = Float[np.ndarray, "faces"]
Landmarks = Float[np.ndarray, "faces 478 3"]
Measurements = Mapping[str, PerFace]


@dataclass(frozen=True, slots=True)
class Side:
    """Holds the indices of the mesh points of one half of the face, left or right from the subject's point of view."""

    eye: tuple[int, int]  # outer, inner corner
    upper_lid: tuple[int, ...]
    lower_lid: tuple[int, ...]
    brow_inner: tuple[int, ...]
    brow_middle: tuple[int, ...]
    brow_outer: tuple[int, ...]
    lip_corner: int
    nose_wing: int


# The numbers are indices of points of the MediaPipe face mesh. LEFT has the mirror images of the points of RIGHT.
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

FAR_HALF_HIDDEN_DEG = 40.0
"""The smallest yaw at which only the near half of the face counts, because the mesh model guesses the far half."""

MAX_YAW_DEG, MAX_PITCH_DEG = 40.0, 35.0
"""Beyond these angles too little of the face is visible to measure it."""


@dataclass(frozen=True, slots=True)
class Head:
    """Holds the mesh points of many faces, each in the axes of its own head, in units of the distance between its eyes.

    `yaw_deg` is positive if the left half of the face is farther away than the right half. `pitch_deg` is positive if
    the forehead is farther away than the chin.
    """

    points: Landmarks
    yaw_deg: PerFace
    pitch_deg: PerFace

    def at(self, *numbers: int) -> Float[np.ndarray, "faces 3"]:
        """Returns the mean position of the mesh points with these indices."""
        return self.points[:, numbers].mean(1)

    def height(self, *numbers: int) -> PerFace:
        return self.at(*numbers)[:, 1]

    def both(self, measure: Callable[[Side], PerFace]) -> PerFace:
        """Computes `measure` for each half of the face, and returns the weighted mean of the two values.

        The more the head is turned to a side, the greater is the weight of the half that is nearer to the camera. At a
        yaw of `FAR_HALF_HIDDEN_DEG` or more, only the nearer half counts.
        """
        # `lean` is 1 if the right half is much nearer, -1 if the left half is, and 0 for a face from the front.
        lean = np.clip(self.yaw_deg / FAR_HALF_HIDDEN_DEG, -1, 1)
        return (measure(RIGHT) * (1 + lean) + measure(LEFT) * (1 - lean)) / 2


def _distance(a: Float[np.ndarray, "faces 3"], b: Float[np.ndarray, "faces 3"]) -> PerFace:
    return np.linalg.norm(a - b, axis=-1)


def _unit(vectors: Float[np.ndarray, "faces 3"]) -> Float[np.ndarray, "faces 3"]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def head(landmarks: Landmarks) -> Head:
    """Rotates every face into the axes of its own head.

    A point that is NaN stays NaN. The corners of the eyes, the bridge and the base of the nose define the axes: if one
    of these points is NaN, all points of that face become NaN.
    """
    # The axes of the head: x joins the eyes, y is the part of the nose's direction that is perpendicular to x, and the
    # third axis is perpendicular to both (Gram-Schmidt). They have unit length, so they form a rotation.
    right, left = (landmarks[:, side.eye].mean(1) for side in (RIGHT, LEFT))
    x = _unit(left - right)
    nose = landmarks[:, NOSE_BRIDGE] - landmarks[:, NOSE_BASE]
    y = _unit(nose - (nose * x).sum(-1, keepdims=True) * x)
    axes = np.stack([x, y, np.cross(x, y)], axis=1)
    middle = (right + left) / 2
    eye_distance = _distance(left, right)
    points = np.einsum("fij,fkj->fki", axes, landmarks - middle[:, None]) / eye_distance[:, None, None]
    # The depth of an axis of unit length is the sine of the angle by which the axis is turned out of the image.
    return Head(
        points=points,
        yaw_deg=np.degrees(np.arcsin(x[:, 2])),
        pitch_deg=np.degrees(np.arcsin(y[:, 2])),
    )


def _inner_brow(face: Head, side: Side) -> PerFace:
    return face.height(*side.brow_inner) - face.height(*side.eye)


def _middle_brow(face: Head, side: Side) -> PerFace:
    return face.height(*side.brow_middle) - face.height(*side.eye)


def _outer_brow(face: Head, side: Side) -> PerFace:
    return face.height(*side.brow_outer) - face.height(*side.eye)


def _aperture(face: Head, side: Side) -> PerFace:
    """Returns the gap between the lids, divided by the length of the eye."""
    outer, inner = side.eye
    return _distance(face.at(*side.upper_lid), face.at(*side.lower_lid)) / _distance(face.at(outer), face.at(inner))


def _lower_lid(face: Head, side: Side) -> PerFace:
    """Returns the height of the lower lids above the eye corners. A squint lifts the lids; a lowered gaze does not."""
    return face.height(*side.lower_lid) - face.height(*side.eye)


def _brow_inner(face: Head) -> PerFace:
    return face.both(lambda side: _inner_brow(face, side))


def _brow_middle(face: Head) -> PerFace:
    return face.both(lambda side: _middle_brow(face, side))


def _brow_outer(face: Head) -> PerFace:
    return face.both(lambda side: _outer_brow(face, side))


def _brow_slant(face: Head) -> PerFace:
    """Returns how far the inner ends of the eyebrows are above the outer ends, as in the oblique eyebrows of grief."""
    return _brow_inner(face) - _brow_outer(face)


def _brow_gap(face: Head) -> PerFace:
    return _distance(face.at(RIGHT.brow_inner[0]), face.at(LEFT.brow_inner[0]))


def _eye_aperture(face: Head) -> PerFace:
    return face.both(lambda side: _aperture(face, side))


def _lower_lid_lift(face: Head) -> PerFace:
    return face.both(lambda side: _lower_lid(face, side))


def _mouth_width(face: Head) -> PerFace:
    return _distance(face.at(RIGHT.lip_corner), face.at(LEFT.lip_corner))


def _mouth_opening(face: Head) -> PerFace:
    return _distance(face.at(*UPPER_LIP_INNER), face.at(*LOWER_LIP_INNER))


def _corner_curve(face: Head) -> PerFace:
    """Returns the height of the lip corners above the middle of the mouth; it is positive for a smile."""
    middle = face.height(*UPPER_LIP_INNER, *LOWER_LIP_INNER)
    return face.both(lambda side: face.height(side.lip_corner)) - middle


def _corner_lift(face: Head) -> PerFace:
    """Returns the mean of two heights of the lip corners: above the middle of the mouth and above the base of the nose.

    Without a smile, a dropped jaw raises the first height, and a short upper lip raises the second. Only a smile raises
    both.
    """
    to_nose = face.both(lambda side: face.height(side.lip_corner)) - face.height(NOSE_BASE)
    return (_corner_curve(face) + to_nose) / 2


def _lip_thickness(face: Head) -> PerFace:
    """Returns the visible thickness of both lips together; pressed lips are thin."""
    upper = _distance(face.at(UPPER_LIP_OUTER), face.at(UPPER_LIP_INNER[1]))
    return upper + _distance(face.at(LOWER_LIP_INNER[1]), face.at(LOWER_LIP_OUTER))


def _upper_lip_drop(face: Head) -> PerFace:
    """Returns how far the outer edge of the upper lip is below the base of the nose.

    A raised upper lip makes this distance shorter.
    """
    return face.height(NOSE_BASE) - face.height(UPPER_LIP_OUTER)


def _nose_width(face: Head) -> PerFace:
    """Returns the distance between the wings of the nose. A smile pulls the wings outwards."""
    return _distance(face.at(RIGHT.nose_wing), face.at(LEFT.nose_wing))


def _jaw_drop(face: Head) -> PerFace:
    return _distance(face.at(NOSE_BASE), face.at(CHIN))


MEASURES: Mapping[str, Callable[[Head], PerFace]] = {
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

# The measures that one half of the face has, by the names that they have for both halves.
_ONE_SIDED: Mapping[str, Callable[[Head, Side], PerFace]] = {
    "brow_inner": _inner_brow,
    "brow_middle": _middle_brow,
    "brow_outer": _outer_brow,
    "brow_slant": lambda face, side: _inner_brow(face, side) - _outer_brow(face, side),
    "eye_aperture": _aperture,
    "lower_lid_lift": _lower_lid,
    "corner_curve": lambda face, side: face.height(side.lip_corner) - face.height(*UPPER_LIP_INNER, *LOWER_LIP_INNER),
    "corner_lift": lambda face, side: (
        face.height(side.lip_corner) - (face.height(*UPPER_LIP_INNER, *LOWER_LIP_INNER) + face.height(NOSE_BASE)) / 2
    ),
}
AHEAD = "_ahead"  # The end of the names of the measures that compare one half with the other.


def measure_side(landmarks: Landmarks, side: Literal["left", "right"]) -> Measurements:
    """Returns the measures of one half of the face, from the subject's point of view.

    For each measure such as "brow_inner", "brow_inner_ahead" is its value less the value of the other half. "turn_deg"
    is how far this half is turned away from the camera, negative if it is the nearer one. "yaw_deg" and "pitch_deg"
    are those of `measure`. NaN as there.
    """
    face = head(landmarks)
    own, other = (LEFT, RIGHT) if side == "left" else (RIGHT, LEFT)
    turn_deg = face.yaw_deg if side == "left" else -face.yaw_deg
    seen = (np.abs(face.yaw_deg) <= MAX_YAW_DEG) & (np.abs(face.pitch_deg) <= MAX_PITCH_DEG)
    values: dict[str, PerFace] = {}
    for name, function in _ONE_SIDED.items():
        values[name] = np.where(seen, function(face, own), np.nan)
        values[f"{name}{AHEAD}"] = values[name] - function(face, other)
    return {**values, "yaw_deg": face.yaw_deg, "pitch_deg": face.pitch_deg, "turn_deg": turn_deg}


def measure(landmarks: Landmarks) -> Measurements:
    """Returns every measure of `MEASURES`, and the "yaw_deg" and "pitch_deg" of the head.

    "eye_aperture" is a ratio. The other measures are lengths, in units of the distance between the eyes. A measure is
    NaN if it needs a point that is NaN; a caller sets points outside of the picture to NaN. All measures of a face are
    NaN if its head is turned by more than `MAX_YAW_DEG` or `MAX_PITCH_DEG`.
    """
    face = head(landmarks)
    seen = (np.abs(face.yaw_deg) <= MAX_YAW_DEG) & (np.abs(face.pitch_deg) <= MAX_PITCH_DEG)
    values = {name: np.where(seen, function(face), np.nan) for name, function in MEASURES.items()}
    return {**values, "yaw_deg": face.yaw_deg, "pitch_deg": face.pitch_deg}


# How far the mouth opens is not corrected for the pose, although both correlate: people tilt their heads back to laugh.
_POSE = frozenset({"yaw_deg", "pitch_deg", "turn_deg"})
_FREE_OF_POSE = frozenset({"mouth_opening", "jaw_drop"})
_GRID = np.linspace(0, 1, 101)  # The shares at which the quantiles of a measure are stored.
_MIN_FACES = 20  # The fewest faces whose quantiles are computed.


@dataclass(frozen=True, slots=True)
class Reference:
    """Describes one measure over a population of faces.

    Attributes:
        quantiles: Quantiles of the measure at 0, 1, ... 100 %, after the effect of the head's pose was removed.
        per_pitch_deg: Change of the measure for each degree of pitch.
        per_turn_deg: Change of the measure for each degree of yaw to either side; for a measure of one half of the
            face, for each degree by which this half is turned away.
    """

    quantiles: tuple[float, ...]
    per_pitch_deg: float
    per_turn_deg: float

    def upright(self, values: PerFace, *, pitch_deg: PerFace, turn_deg: PerFace) -> PerFace:
        """Returns the values without the effect of the pose; `turn_deg` is the result of `_turn_deg`."""
        return values - self.per_pitch_deg * pitch_deg - self.per_turn_deg * turn_deg


@dataclass(frozen=True, slots=True)
class Population:
    """Holds the distribution of every measure over a set of faces, with which other faces are compared."""

    references: Mapping[str, Reference]

    @classmethod
    def fit(cls, measurements: Measurements) -> "Population":
        """Returns the population of the measured faces. For each measure, faces whose value is NaN are left out.

        Raises:
            ValueError: If fewer than `_MIN_FACES` faces have a value of some measure.
        """
        return cls({name: _fit(name, measurements) for name in measurements if name not in _POSE})

    def ranks(self, measurements: Measurements) -> Measurements:
        """Returns, for each measure, the rank of each face: the fraction of the population with smaller values.

        NaN stays NaN.
        """
        pitch_deg, turn_deg = measurements["pitch_deg"], _turn_deg(measurements)
        # Interpolation between the quantiles turns a value into the share below it. Values outside of the population's
        # range get 0 or 1.
        return {
            name: np.interp(
                reference.upright(measurements[name], pitch_deg=pitch_deg, turn_deg=turn_deg),
                reference.quantiles,
                _GRID,
            )
            for name, reference in self.references.items()
        }


def _turn_deg(measurements: Measurements) -> PerFace:
    """Returns how far each half was turned away if the halves were measured apart, otherwise the absolute yaw."""
    return measurements["turn_deg"] if "turn_deg" in measurements else np.abs(measurements["yaw_deg"])


def _fit(name: str, measurements: Measurements) -> Reference:
    known = np.isfinite(measurements[name]) & np.isfinite(measurements["pitch_deg"])
    if known.sum() < _MIN_FACES:
        raise ValueError(
            f"{name} is known of {known.sum()} of {known.size} faces, but quantiles need {_MIN_FACES} or more; "
            "check the landmarks file."
        )
    # What the rotation in `head` leaves of the effect of the pose is fitted by least squares, linear in pitch and turn
    # with a constant, and is removed before the quantiles are computed.
    values, pitch_deg = measurements[name][known], measurements["pitch_deg"][known]
    turn_deg = _turn_deg(measurements)[known]
    slopes = np.zeros(2)
    if name not in _FREE_OF_POSE:
        design = np.stack([pitch_deg, turn_deg, np.ones_like(pitch_deg)], axis=1)
        slopes = np.linalg.lstsq(design, values, rcond=None)[0][:2]
    reference = Reference((), per_pitch_deg=float(slopes[0]), per_turn_deg=float(slopes[1]))
    rest = reference.upright(values, pitch_deg=pitch_deg, turn_deg=turn_deg)
    return replace(reference, quantiles=tuple(float(quantile) for quantile in np.quantile(rest, _GRID)))
