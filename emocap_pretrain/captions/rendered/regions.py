"""Returns where the regions of a rendered face lie in its picture, from the curves by which it is drawn.

A region is a little larger than the part of the face, because a sentence about the eyes also describes the skin around
them. Hair and glasses may cover a region; its outlines do not change then.
"""

from collections.abc import Mapping

import numpy as np

from emocap_pretrain.captions.rendered import lower_face, upper_face
from emocap_pretrain.captions.rendered.canvas import Points, View, ellipse, flipped, moved, points
from emocap_pretrain.captions.rendered.face import Face
from emocap_pretrain.captions.rendered.head import CHIN_Y, jaw_fall
from emocap_pretrain.data.regions import Outline, outline

_BROW, _EYE, _MOUTH = 0.09, 0.06, 0.05  # Width of the margin around each part, in face units.


def areas(face: Face) -> dict[str, tuple[Outline, ...]]:
    """Returns the outlines of each region of a rendered face, by the names of regions in `grammar/recognition.py`."""
    # With one pixel, the projected points are shares of the side of the picture, which is square.
    view = View(face.scene.pose, 1)
    return {
        name: tuple(outline(view.project(shape, lift)) for shape in shapes)
        for name, (lift, shapes) in _shapes(face).items()
    }


def _shapes(face: Face) -> Mapping[str, tuple[float, tuple[Points, ...]]]:
    """Returns for each region how far it lies in front of the surface of the head, and its outlines, in face units."""
    lips = lower_face.lips(face)
    low = float(lips.bottom[:, 1].max())
    return {
        "eyebrows": (0.0, _both(_band(upper_face.brow_line(face), _BROW))),
        "eyes": (0.0, _both(_eye(face))),
        "cheeks": (0.0, _both(_cheek(face))),
        "nose": (0.05, (_nose(face), *_both(_fold(face, lips.corner)))),
        "mouth": (0.0, (_mouth(lips),)),
        "chin": (0.0, (_chin(face, low),)),
    }


def _both(right: Points) -> tuple[Points, Points]:
    return right, flipped(right, -1)


def _band(line: Points, half: float) -> Points:
    """Returns the outline of a band around a line that runs from left to right.

    The band reaches the distance `half` above and below the line, and beyond both of its ends.
    """
    ends = line + np.array([[-half, 0.0], *[[0.0, 0.0]] * (len(line) - 2), [half, 0.0]])
    return np.concatenate([moved(ends, 0.0, -half), moved(ends[::-1], 0.0, half)])


def _eye(face: Face) -> Points:
    lids = upper_face.lids(face)
    upper, lower = moved(lids.fold[::3], 0.0, -_EYE), moved(lids.bag[::3], 0.0, _EYE)
    side = np.array([_EYE, 0.0])
    return np.concatenate(
        [[upper[0] - side], upper, [upper[-1] + side], [lower[-1] + side], lower[::-1], [lower[0] - side]]
    )


def _cheek(face: Face) -> Points:
    act = face.actions
    y = 0.34 - 0.09 * act[6] - 0.04 * act[12]  # As in `lower_face.draw_cheeks`.
    return ellipse(0.58, y + 0.03, 0.26, 0.22, count=16)


def _nose(face: Face) -> Points:
    person = face.identity
    base, wide = lower_face.NOSE_Y * person.nose_length, 0.25 * person.nose_width
    right = points((0.10, -0.28), (0.10, 0.0), (wide, base - 0.16), (wide + 0.02, base - 0.02), (0.12, base + 0.09))
    return np.concatenate([right, flipped(right, -1)[::-1]])


def _fold(face: Face, corner: tuple[float, float]) -> Points:
    """Returns the outline around the nasolabial fold, which runs from the nose to the corner of the mouth (`corner`).

    It belongs to the region of the nose, because sentences about the nose also describe the fold.
    """
    x, y = corner
    inner = points((0.22 * face.identity.nose_width, 0.22), (0.32, 0.38), (x + 0.04, y - 0.05))
    outer = points((x + 0.18, y - 0.05), (0.46, 0.34), (0.28 * face.identity.nose_width, 0.16))
    return np.concatenate([inner, outer])


def _mouth(lips: lower_face.Lips) -> Points:
    top, bottom = moved(lips.top[::4], 0.0, -_MOUTH), moved(lips.bottom[::4], 0.0, _MOUTH)
    side = np.array([_MOUTH + 0.03, 0.0])
    return np.concatenate([[lips.upper[0] - side], top, [lips.upper[-1] + side], bottom[::-1]])


def _chin(face: Face, low: float) -> Points:
    """Returns the outline of the chin, whose upper edge lies just below `low`, the lowest y of the lower lip."""
    bottom = CHIN_Y * face.identity.chin + jaw_fall(face)
    right = points((0.28, low + 0.05), (0.36, 0.5 * (low + bottom)), (0.22, bottom - 0.02))
    return np.concatenate([right, flipped(right, -1)[::-1]])
