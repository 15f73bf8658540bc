"""Makes copies of face images as several tools would crop them: whole, by the box of a detector, or by landmarks.

The caller gives the places of the eyes, the mouth and the box in the original image. Random errors are added to these
places, as a tool makes errors when it finds a face.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image

from emocap_pretrain.benchmarks.alignment import EYES
from emocap_pretrain.data.landmarks import POINTS

Crop: TypeAlias = tuple[Image.Image, np.ndarray]
"""An image, and the positions of the middles of both eyes in it [2, 2]; the one on the left of the image first."""

OFFICIAL_PX, BOX_PX = 100, 112


def _warped(image: Image.Image, matrix: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Returns the image after an affine map, a 2 x 3 matrix from positions in `image` to positions in the new image.

    Pixels of the new image that lie outside of `image` are black.
    """
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    # The edges of a pixel, not its middle, are at whole numbers.
    return image.transform(size, Image.Transform.AFFINE, inverse.ravel().tolist(), Image.Resampling.BICUBIC)


def _moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def _turn(degrees: float, middle: np.ndarray, scale: float = 1.0) -> np.ndarray:
    angle = np.radians(degrees)
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([rotation, middle - rotation @ middle])


def crops(
    image: Image.Image,
    eyes: np.ndarray,
    mouth: np.ndarray,
    box: np.ndarray,
    random: np.random.Generator,
    jitter: float = 1.0,
) -> Mapping[str, Crop]:
    """Returns the crops of one photograph by their kind, each with the positions of the eyes in the crop [2, 2].

    The head is first turned by a random angle (a standard deviation of 8 degrees), as heads in photographs are.

    - official: a similarity moves both eyes and the mouth to fixed positions as well as it can. The positions that it
      is given have errors with a standard deviation of 1.5 % of the distance between the eyes.
    - box: a square around the box with a margin, not turned, as a detector such as MTCNN gives it. The errors of its
      middle and of its side have a standard deviation of 4 % and 5 % of the side.
    - whole: the photograph with a random margin at each side, up to half the size of the photograph itself.

    Beyond the edges of the photograph its outermost pixels are repeated, as a plain background continues. So a crop has
    black corners only if it reaches far beyond the photograph.

    Args:
        image: The photograph.
        eyes: Positions of the middles of both eyes [2, 2], in pixels; the one on the left of the image first.
        mouth: Position of the middle of the mouth [2].
        box: Left, top, right and bottom of the face.
        random: Draws the angle, all errors and the margins.
        jitter: Factor of the angle and of all errors, but not of the margins of the whole photograph.
    """
    width, height = image.size
    margin = np.array([width, height]) // 2
    widened = np.pad(np.asarray(image), ((margin[1],) * 2, (margin[0],) * 2, (0, 0)), mode="edge")
    image = Image.fromarray(widened)
    eyes, mouth, box = eyes + margin, mouth + margin, box + np.tile(margin, 2)
    turn = _turn(float(random.normal(0, 8)) * jitter, eyes.mean(0))
    corners = np.array([[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]]])
    eyes, mouth, corners = _moved(turn, eyes), _moved(turn, mouth[None])[0], _moved(turn, corners)
    apart = float(np.linalg.norm(eyes[1] - eyes[0]))
    found: dict[str, Crop] = {}

    seen = np.vstack([eyes, mouth]) + random.normal(0, 0.015 * apart * jitter, (3, 2))
    template = np.array([[0.30, 0.36], [0.70, 0.36], [0.50, 0.78]]) * OFFICIAL_PX
    similar = _similarity(seen, template)
    found["official"] = _made(image, turn, similar, (OFFICIAL_PX, OFFICIAL_PX), eyes)

    middle, side = corners.mean(0), float(np.ptp(corners, axis=0).max())
    middle = middle + random.normal(0, 0.04 * side * jitter, 2)
    side *= 1.1 * float(np.exp(random.normal(0, 0.05) * jitter))
    side = min(side, *image.size)
    corner = np.clip(middle - side / 2, 0, np.array(image.size) - side)
    scale = BOX_PX / side
    found["box"] = _made(image, turn, np.column_stack([np.eye(2) * scale, -corner * scale]), (BOX_PX, BOX_PX), eyes)

    left, right = random.uniform(0, margin[0], 2)
    top, bottom = random.uniform(0, margin[1], 2)
    size = round(width + left + right), round(height + top + bottom)
    shift = np.array([[1, 0, left - margin[0]], [0, 1, top - margin[1]]])
    found["whole"] = _made(image, turn, shift, size, eyes)
    return found


def _similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns the similarity that maps the points `source` to the points `target` with the least squared error.

    A similarity turns, scales and shifts. It is returned as a 2 x 3 matrix.
    """
    rows: list[Sequence[float]] = []
    values: list[float] = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, -y, 1, 0], [y, x, 0, 1]]
        values += [u, v]
    a, b, tx, ty = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    return np.array([[a, -b, tx], [b, a, ty]])


def _made(image: Image.Image, turn: np.ndarray, crop: np.ndarray, size: tuple[int, int], eyes: np.ndarray) -> Crop:
    """Returns the image after `turn` and then `crop`, and the positions of the eyes in the result.

    `turn` and `crop` are 2 x 3 matrices. `eyes` are the positions of the eyes after `turn` and before `crop`.
    """
    both = (np.vstack([crop, [0, 0, 1]]) @ np.vstack([turn, [0, 0, 1]]))[:2]
    return _warped(image, both, size), _moved(crop, eyes)


def landmarks_of(eyes: np.ndarray) -> np.ndarray:
    """Returns the 478 landmarks of the face mesh for two eyes: the corners of the eyes, and zero for all others.

    `eyes` are the positions of the middles of the eyes [2, 2].
    """
    points = np.zeros((POINTS, 3), np.float32)
    half = np.array([np.linalg.norm(eyes[1] - eyes[0]) * 0.2, 0.0])
    for middle, (outer, inner), side in zip(eyes, EYES, (-1, 1), strict=True):
        points[outer, :2], points[inner, :2] = middle + side * half, middle - side * half
    return points
