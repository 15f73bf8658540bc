"""Finds faces and their 478 landmarks in each image that arrives on standard input.

`landmarks.py` and `detection.py` start this file with the Python of an environment of its own (`environment.py`),
because mediapipe needs an older numpy than this project. So the file imports nothing of this project.

The argument is "mesh" or "faces". Each image is its height and its width (two unsigned 32-bit integers), and its RGB
values with 8 bits.

- "mesh": the image shows one face. The answer (`found_in`) is a 32-bit float array: the number of passes that found a
  face, the spread of the passes, and then x, y and depth of each landmark in pixels of the image. Without a face, all
  values except the first one are NaN.
- "faces": the image shows any number of faces. The argument is followed by the smallest side of a face in pixels. The
  answer is the number of faces (an unsigned 32-bit integer) and, for each face, the confidence of the detector, the box
  of the face in pixels (left, top, right, bottom) and an answer as above. Larger boxes come first.

Tight crops are difficult for a face detector, and faces that are only 48 pixels large are difficult for a face mesh.
Therefore every face is analysed in several passes. Each pass surrounds the image with a margin of another width, filled
with the image's mean colour. The landmarks are the median of all passes that find a face.
"""

import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image

POINTS = 478
MARGINS = (0.15, 0.25, 0.4)  # Width of the margin of each pass, relative to the longer side of the image.
SIDE_PX = 336  # Side of the square that the face mesh receives.
MIN_CONFIDENCE = 0.2  # Confidence of the detector from which on a face counts.
EYES = (33, 263)
"""The indices of the landmarks at the outer corners of the two eyes."""

FAR_CONFIDENCE = 0.5  # Confidence of the detector for photographs of several people.
TILES_OF_FACE = 8.0  # A face whose side is this fraction of the side of a tile is still found.
STEP_OF_TILES = 0.75  # Distance of neighbouring tiles, relative to their side.
SAME_FACE = 0.5  # Share of the smaller box that two boxes have in common, from which on they are one face.
AROUND = 1.7  # Side of the surroundings in which the mesh is looked for, relative to that of the box.

SIZE = struct.Struct("<II")
COUNT = struct.Struct("<I")
READY = b"ready\n"  # The program writes it when the face mesh is loaded.

Find = Callable[[np.ndarray], np.ndarray | None]
Detect = Callable[[np.ndarray], np.ndarray]


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


def detector() -> Detect:
    """Loads the face detector, and returns a function that finds faces in an RGB image.

    The function returns float64 [faces, 5]: the confidence, and the box as shares of the image's width and height.
    """
    import mediapipe  # pyright: ignore[reportMissingImports]

    solutions = cast("Any", mediapipe).solutions
    # Model 1 finds faces within 5 m of the camera, model 0 those within 2 m.
    model = solutions.face_detection.FaceDetection(model_selection=1, min_detection_confidence=FAR_CONFIDENCE)

    def detect(image: np.ndarray) -> np.ndarray:
        found = model.process(image).detections or []
        boxes = [(each.score[0], each.location_data.relative_bounding_box) for each in found]
        rows = [(score, box.xmin, box.ymin, box.xmin + box.width, box.ymin + box.height) for score, box in boxes]
        return np.array(rows, np.float64).reshape(-1, 5)

    return detect


def tiles(height: int, width: int, smallest_px: float) -> Iterator[tuple[int, int, int, int]]:
    """Yields the whole image, and then tiles (left, top, right, bottom) until the smallest face can be found in one."""
    yield 0, 0, width, height
    side = max(height, width)
    while side > TILES_OF_FACE * smallest_px:
        side = (side + 1) // 2
        for top in _starts(height, side):
            for left in _starts(width, side):
                yield left, top, min(left + side, width), min(top + side, height)


def _starts(length: int, side: int) -> list[int]:
    if length <= side:
        return [0]
    count = int(np.ceil((length - side) / (STEP_OF_TILES * side))) + 1
    return [round(start) for start in np.linspace(0, length - side, count)]


def boxes_in(image: np.ndarray, detect: Detect, smallest_px: float) -> np.ndarray:
    """Returns the confidence and the box in pixels of each face, float64 [faces, 5], the largest box first.

    Faces whose box has a side below `smallest_px` are left out.
    """
    found: list[np.ndarray] = []
    for left, top, right, bottom in tiles(image.shape[0], image.shape[1], smallest_px):
        rows = detect(np.ascontiguousarray(image[top:bottom, left:right]))
        scale = np.array([1.0, right - left, bottom - top, right - left, bottom - top])
        found.append(rows * scale + np.array([0, left, top, left, top]))
    rows = np.concatenate(found)
    rows = rows[np.minimum(rows[:, 3] - rows[:, 1], rows[:, 4] - rows[:, 2]) >= smallest_px]
    kept: list[np.ndarray] = []
    for row in rows[np.argsort(-rows[:, 0], kind="stable")]:
        if all(_overlap(row[1:], other[1:]) < SAME_FACE for other in kept):
            kept.append(row)
    kept.sort(key=lambda row: -float((row[3] - row[1]) * (row[4] - row[2])))
    return np.array(kept).reshape(-1, 5)


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the area that two boxes have in common, divided by the area of the smaller one.

    A tile that cuts a face gives a box of a part of it, which has little in common with the union of both.
    """
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    smaller = min(np.prod(one[2:] - one[:2]), np.prod(other[2:] - other[:2]))
    return float(np.prod(np.maximum(sides, 0)) / max(smaller, 1e-9))


def faces_in(image: np.ndarray, detect: Detect, find: Find, smallest_px: float) -> list[np.ndarray]:
    """Returns the answer for each face, float32 [5 + 1436]. Boxes in which no mesh is found are left out."""
    answers: list[np.ndarray] = []
    for row in boxes_in(image, detect, smallest_px):
        centre, side = (row[1:3] + row[3:5]) / 2, AROUND * float((row[3:5] - row[1:3]).max())
        left, top = np.maximum(np.floor(centre - side / 2), 0).astype(int)
        right, bottom = np.minimum(np.ceil(centre + side / 2), image.shape[1::-1]).astype(int)
        answer = found_in(np.ascontiguousarray(image[top:bottom, left:right]), find)
        if answer[0]:
            answer[2::3] += left
            answer[3::3] += top
            answers.append(np.concatenate([row.astype(np.float32), answer]))
    return answers


def images_of(stream: BinaryIO) -> Iterator[np.ndarray]:
    """Yields the images that arrive, until the stream ends."""
    while header := stream.read(SIZE.size):
        height, width = SIZE.unpack(header)
        yield np.frombuffer(stream.read(height * width * 3), np.uint8).reshape(height, width, 3)


def answer_all(images: BinaryIO, answers: BinaryIO, answer: Callable[[np.ndarray], bytes]) -> None:
    """Says that the program is ready, and answers images until they end."""
    answers.write(READY)
    answers.flush()
    for image in images_of(images):
        answers.write(answer(image))
        answers.flush()


def main() -> None:
    find = mesh()
    if sys.argv[1] == "mesh":
        answer_all(sys.stdin.buffer, sys.stdout.buffer, lambda image: found_in(image, find).tobytes())
        return
    detect, smallest_px = detector(), float(sys.argv[2])

    def answer(image: np.ndarray) -> bytes:
        found = faces_in(image, detect, find, smallest_px)
        return COUNT.pack(len(found)) + b"".join(each.tobytes() for each in found)

    answer_all(sys.stdin.buffer, sys.stdout.buffer, answer)


if __name__ == "__main__":
    main()
