"""Builds the mesh points of a schematic face: a neutral one, and movements that displace its points.

No point comes from a real face.
"""

from collections.abc import Mapping

import numpy as np

# The right half and the middle of a neutral face in eye distances: x to the subject's left, y up, z to the viewer.
_RIGHT = {
    33: (-0.75, 0.0, 0.0), 133: (-0.25, 0.0, 0.05),
    160: (-0.58, 0.07, 0.06), 159: (-0.5, 0.08, 0.07), 158: (-0.42, 0.07, 0.06),
    144: (-0.58, -0.07, 0.05), 145: (-0.5, -0.08, 0.05), 153: (-0.42, -0.07, 0.05),
    55: (-0.21, 0.22, 0.14), 107: (-0.21, 0.28, 0.14), 52: (-0.5, 0.3, 0.12), 105: (-0.5, 0.36, 0.12),
    46: (-0.85, 0.22, 0.0), 53: (-0.75, 0.26, 0.05), 63: (-0.75, 0.32, 0.05), 70: (-0.85, 0.27, 0.0),
    61: (-0.4, -1.08, 0.1), 129: (-0.33, -0.58, 0.15), 82: (-0.1, -1.06, 0.22), 87: (-0.1, -1.09, 0.22),
}  # fmt: skip
_LEFT_OF = {
    33: 263, 133: 362, 160: 387, 159: 386, 158: 385, 144: 373, 145: 374, 153: 380, 55: 285, 107: 336, 52: 282,
    105: 334, 46: 276, 53: 283, 63: 293, 70: 300, 61: 291, 129: 358, 82: 312, 87: 317,
}  # fmt: skip
_MIDDLE = {
    168: (0.0, 0.0, 0.15), 2: (0.0, -0.75, 0.15), 152: (0.0, -1.85, 0.1),
    0: (0.0, -0.98, 0.25), 13: (0.0, -1.06, 0.23), 14: (0.0, -1.09, 0.23), 17: (0.0, -1.24, 0.22),
}  # fmt: skip

# The displacement of points of the right half by amount 1 of a movement; the left half mirrors it.
_BROWS, _UPPER_LIDS, _LOWER_LIDS = (55, 107, 52, 105, 46, 53, 63, 70), (160, 159, 158), (144, 145, 153)
MOVEMENTS: Mapping[str, Mapping[int, tuple[float, float]]] = {
    "raise brows": dict.fromkeys(_BROWS, (0.0, 0.15)),
    "slant brows": {55: (0, 0.1), 107: (0, 0.1), 46: (0, -0.04), 53: (0, -0.04), 63: (0, -0.04), 70: (0, -0.04)},
    "knit brows": {number: (0.04 if number in {55, 107} else 0.0, -0.12) for number in _BROWS},
    "widen eyes": {**dict.fromkeys(_UPPER_LIDS, (0.0, 0.05)), **dict.fromkeys(_LOWER_LIDS, (0.0, -0.02))},
    "squint": {**dict.fromkeys(_UPPER_LIDS, (0.0, -0.03)), **dict.fromkeys(_LOWER_LIDS, (0.0, 0.05))},
    "lower lids": dict.fromkeys(_UPPER_LIDS, (0.0, -0.09)),
    "smile": {61: (-0.15, 0.12), 129: (-0.06, 0.0)},
    "sink corners": {61: (0.0, -0.08)},
    "open mouth": {14: (0, -0.3), 87: (0, -0.3), 17: (0, -0.3), 152: (0, -0.2)},
    "press lips": {0: (0, -0.04), 17: (0, 0.08)},
    "lift upper lip": {0: (0, 0.1), 13: (0, 0.1), 82: (0, 0.1)},
}  # fmt: skip


def face(**amounts: float) -> np.ndarray:
    """Returns mesh points in head axes for amounts such as `raise_brows=1.0`; points that no measure reads are 0."""
    points = np.zeros((478, 3))
    right = {number: np.array(place) for number, place in _RIGHT.items()}
    middle = {number: np.array(place) for number, place in _MIDDLE.items()}
    for name, amount in amounts.items():
        for number, (dx, dy) in MOVEMENTS[name.replace("_", " ")].items():
            target = right if number in right else middle
            target[number] = target[number] + amount * np.array([dx, dy, 0.0])
    for number, place in right.items():
        points[number] = place
        points[_LEFT_OF[number]] = place * (-1, 1, 1)
    for number, place in middle.items():
        points[number] = place
    return points


def photographed(
    points: np.ndarray, *, roll_deg: float = 0, yaw_deg: float = 0, pitch_deg: float = 0, eyes_px: float = 16
) -> np.ndarray:
    """Returns the points of the rotated head in pixels of an image: y down, depth away from the viewer."""
    roll, yaw, pitch = np.radians([roll_deg, yaw_deg, pitch_deg])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    turned = points @ (about_z @ about_y @ about_x).T
    return turned * (1, -1, -1) * eyes_px + (24, 16, 0)


def crowd(number: int, seed: int = 0) -> np.ndarray:
    """Returns faces with many small movements in many poses: the population with which a face is compared."""
    rng = np.random.default_rng(seed)
    faces: list[np.ndarray] = []
    for _ in range(number):
        amounts = {name.replace(" ", "_"): float(rng.normal(0, 0.3)) for name in MOVEMENTS}
        amounts["open_mouth"] = abs(amounts["open_mouth"])
        points = face(**amounts)
        faces.append(
            photographed(points, yaw_deg=rng.normal(0, 10), pitch_deg=rng.normal(0, 8), roll_deg=rng.normal(0, 8))
        )
    return np.stack(faces)
