"""Finds the 478 landmarks of every face in a folder or an .npz of face images, and writes them as one .npz.

The script is separate because mediapipe needs numpy < 2, with which this project does not run. Give it its own
environment:

    python3.11 -m venv .venv-landmarks
    .venv-landmarks/bin/pip install mediapipe==0.10.21      # this wheel contains the models
    .venv-landmarks/bin/python launch/landmarks.py faces.npz landmarks.npz

The input is a folder of images, the file fer2013.csv of FER2013, or an .npz with `images` uint8 [n, height, width] or
[n, height, width, 3] and `name` [n]. The rows of fer2013.csv have the names fer2013-00000, fer2013-00001, ..., by which
`emocap import ferplus --landmarks` finds them.

The output contains these arrays:

    name       the names of the images [n]
    landmarks  float32 [n, 478, 3] in pixels of the original image, with depth in the same unit; NaN without a face
    found      bool [n], whether a face was found
    spread     float32 [n], how far the passes (see below) differ, relative to the distance between the eyes

Tight crops are difficult for a face detector, and faces that are only 48 pixels large are difficult for a face mesh.
Therefore every image is analysed in several passes. Each pass surrounds the image with a margin of another width,
filled with the image's mean colour. The median of the landmarks of all passes is stored. An interrupted run resumes,
because finished parts are stored next to the output.
"""

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

POINTS = 478
MARGINS = (0.15, 0.25, 0.4)  # Width of the margin of each pass, relative to the longer side of the image.
SIDE_PX = 336  # Side of the square that the face mesh receives.
MIN_CONFIDENCE = 0.2  # Confidence of the detector from which on a face counts.
PART = 1000
"""The number of images in one part. An interrupted run repeats only the parts that are not finished."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
EYES = (33, 263)
"""The indices of the landmarks at the outer corners of the two eyes."""

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


def points_of(image: np.ndarray, find: Find) -> tuple[np.ndarray, float] | None:
    """Finds the landmarks once with each margin in `MARGINS`, and returns the median of these passes and their spread.

    `find` returns the landmarks of an image (see `mesh`). The landmarks are in pixels of `image`. The spread is the
    mean distance of landmarks from the median, divided by the distance between the eyes; it is NaN if only one pass
    finds a face. Returns None if no pass finds a face.
    """
    passes: list[np.ndarray] = []
    for margin in MARGINS:
        enlarged, scale, left, top = padded(image, margin)
        unit = find(enlarged)
        if unit is not None:
            # Back from shares of the square to its pixels before the enlargement, and from there to those of the image.
            passes.append(unit * (SIDE_PX / scale) - np.array([left, top, 0.0]))
    if not passes:
        return None
    stack = np.stack(passes)
    middle = np.median(stack, axis=0)
    eye_distance_px = float(np.linalg.norm(middle[EYES[0]] - middle[EYES[1]]))
    # Only the places in the image count for the agreement of the passes, not the depths.
    apart_px = np.linalg.norm((stack - middle)[..., :2], axis=-1).mean()
    return middle, float(apart_px / max(eye_distance_px, 1e-6)) if len(passes) > 1 else float("nan")


def mesh() -> Find:
    """Loads the face mesh, and returns a function that finds one face in an RGB image.

    The function returns the landmarks as fractions of the image's width and height, or None if it finds no face.
    """
    # Only this script's own environment contains mediapipe, and --help must work in every environment.
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


def source(path: Path) -> tuple[list[str], Callable[[int], np.ndarray]]:
    """Returns the names of all images, and a function that returns the RGB image with a given index."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        names = [p.relative_to(path).as_posix() for p in files]
        return names, lambda number: np.asarray(Image.open(files[number]).convert("RGB"))
    if path.suffix.lower() == ".csv":
        images = pixels_of(path)
        names = [f"fer2013-{number:05d}" for number in range(len(images))]
    else:
        with np.load(path) as stored:
            images, names = stored["images"], [str(name) for name in stored["name"]]
    return names, lambda number: np.asarray(Image.fromarray(images[number]).convert("RGB"))


def pixels_of(path: Path) -> np.ndarray:
    """Returns the grey images of a CSV file like fer2013.csv, uint8 [n, side, side].

    The column `pixels` lists the numbers of the pixels of a square image.
    """
    images: list[np.ndarray] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.reader(file)
        column = [name.strip().lower() for name in next(table, [])].index("pixels")
        for row in table:
            values = np.array(row[column].split(), dtype=int).astype(np.uint8)
            images.append(values.reshape(math.isqrt(len(values)), -1))
    return np.stack(images)


def part_files(folder: Path, total: int) -> Iterator[tuple[Path, range]]:
    """Yields, for each part of the images, the file of its landmarks in `folder` and the indices of its images.

    A part has up to `PART` images. `total` is the number of all images.
    """
    for start in range(0, total, PART):
        yield folder / f"{start:08d}.npz", range(start, min(start + PART, total))


def measure_part(file: Path, numbers: range, image_of: Callable[[int], np.ndarray], find: Find) -> int:
    """Writes the landmarks of the images with the indices `numbers` to `file`. Returns the number of found faces."""
    landmarks = np.full((len(numbers), POINTS, 3), np.nan, np.float32)
    spread = np.full(len(numbers), np.nan, np.float32)
    for row, number in enumerate(numbers):
        result = points_of(image_of(number), find)
        if result is not None:
            landmarks[row], spread[row] = result
    # The file is renamed when it is complete, so that an existing part is always complete.
    half = file.with_suffix(".half.npz")
    np.savez(half, landmarks=landmarks, spread=spread)
    half.rename(file)
    return int(np.isfinite(landmarks[:, 0, 0]).sum())


def main() -> None:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faces", type=Path, help="fer2013.csv, an .npz of crops, or a folder of images")
    parser.add_argument("out", type=Path, help="the .npz to write")
    parser.add_argument("--limit", type=int, help="analyse only the first LIMIT images")
    arguments = parser.parse_args()
    out = cast("Path", arguments.out)

    names, image_of = source(arguments.faces)
    names = names[: arguments.limit]
    folder = out.with_suffix(".parts")
    folder.mkdir(parents=True, exist_ok=True)
    find = mesh()
    for file, numbers in part_files(folder, len(names)):
        if file.exists():
            continue
        started_s = time.monotonic()
        faces = measure_part(file, numbers, image_of, find)
        each_ms = 1000 * (time.monotonic() - started_s) / len(numbers)
        sys.stderr.write(f"{numbers.stop}/{len(names)}: {faces} faces of {len(numbers)}, {each_ms:.0f} ms each\n")

    parts = [np.load(file) for file, _ in part_files(folder, len(names))]
    landmarks = np.concatenate([part["landmarks"] for part in parts])
    spread = np.concatenate([part["spread"] for part in parts])
    found = np.isfinite(landmarks[:, 0, 0])
    np.savez(out, name=np.array(names), landmarks=landmarks, found=found, spread=spread)
    sys.stderr.write(f"{int(found.sum())} faces in {len(names)} images -> {out}\n")


if __name__ == "__main__":
    main()
