"""Finds the 478 landmarks of the face in each image that arrives on standard input.

`landmarks.py` starts this file with the Python of an environment of its own (`environment.py`), because mediapipe
needs an older numpy than this project. So the file imports nothing of this project.

Each image is its height and its width (two unsigned 32-bit integers), and its RGB values with 8 bits. The answer to an
image is a 32-bit float array: the number of passes that found a face, the spread of the passes, and then x, y and depth
of each landmark in pixels of the image. Without a face, all values except the first one are NaN.

Tight crops are difficult for a face detector, and faces that are only 48 pixels large are difficult for a face mesh.
Therefore every image is analysed in several passes. Each pass surrounds the image with a margin of another width,
filled with the image's mean colour. The landmarks are the median of all passes that find a face.
"""

import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image

POINTS = 478
MARGINS = (0.15, 0.25, 0.4)  # Width of the margin of each pass, relative to the longer side of the image.
SIDE_PX = 336  # Side of the square that the face mesh receives.
MIN_CONFIDENCE = 0.2  # Confidence of the detector from which on a face counts.
EYES = (33, 263)
"""The indices of the landmarks at the outer corners of the two eyes."""

SIZE = struct.Struct("<II")
READY = b"ready\n"  # The program writes it when the face mesh is loaded.

Find = Callable[[np.ndarray], np.ndarray | None]


def padded(image: np.ndarray, margin: float) -> tuple[np.ndarray, float, float, float]:
    """Returns the image in the middle of a square, enlarged to `SIDE_PX`; `margin` is relative to the longer side.

    The rest of the square has the mean colour of the image. Also returns the factor of the enlargement, and the left
    and top offset of the image in the square before the enlargement.
    """
    height, width = image.shape[:2]
    side = round(max(height, width) * (1 + 2 * margin))
    left, top = (side - width) // 2, (side - height) // 2
    square = np.empty((side, side, 3), np.uint8)
    square[:] = image.reshape(-1, 3).mean(0)
    square[top : top + height, left : left + width] = image
    enlarged = Image.fromarray(square).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
    return np.asarray(enlarged), SIDE_PX / side, left, top


def found_in(image: np.ndarray, find: Find) -> np.ndarray:
    """Finds the landmarks once with each margin in `MARGINS`, and returns the answer to the image, float32 [1436].

    `find` returns the landmarks of an image as shares of its width and height (see `mesh`). The spread is the mean
    distance of landmarks from the median, divided by the distance between the eyes; it is NaN if only one pass finds a
    face.
    """
    passes: list[np.ndarray] = []
    for margin in MARGINS:
        enlarged, scale, left, top = padded(image, margin)
        unit = find(enlarged)
        if unit is not None:
            # Back from shares of the square to its pixels before the enlargement, and from there to those of the image.
            passes.append(unit * (SIDE_PX / scale) - np.array([left, top, 0.0]))
    answer = np.full(2 + 3 * POINTS, np.nan, np.float32)
    answer[0] = len(passes)
    if not passes:
        return answer
    stack = np.stack(passes)
    middle = np.median(stack, axis=0)
    answer[2:] = middle.ravel()
    if len(passes) > 1:
        eye_distance_px = float(np.linalg.norm(middle[EYES[0]] - middle[EYES[1]]))
        # Only the places in the image count for the agreement of the passes, not the depths.
        apart_px = np.linalg.norm((stack - middle)[..., :2], axis=-1).mean()
        answer[1] = apart_px / max(eye_distance_px, 1e-6)
    return answer


def mesh() -> Find:
    """Loads the face mesh, and returns a function that finds one face in an RGB image.

    The function returns the landmarks as fractions of the image's width and height, or None if it finds no face.
    """
    # Only the environment of this file contains mediapipe; tests import the other functions in every environment.
    import mediapipe  # pyright: ignore[reportMissingImports]

    model = cast("Any", mediapipe).solutions.face_mesh.FaceMesh(
        static_image_mode=True,
        refine_landmarks=True,
        max_num_faces=1,
        min_detection_confidence=MIN_CONFIDENCE,
    )

    def find(image: np.ndarray) -> np.ndarray | None:
        faces = model.process(image).multi_face_landmarks
        return np.array([(p.x, p.y, p.z) for p in faces[0].landmark]) if faces else None

    return find


def answer_all(images: BinaryIO, answers: BinaryIO, find: Find) -> None:
    """Answers images until `images` ends."""
    while header := images.read(SIZE.size):
        height, width = SIZE.unpack(header)
        pixels = np.frombuffer(images.read(height * width * 3), np.uint8).reshape(height, width, 3)
        answers.write(found_in(pixels, find).tobytes())
        answers.flush()


if __name__ == "__main__":
    loaded = mesh()
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    answer_all(sys.stdin.buffer, sys.stdout.buffer, loaded)
