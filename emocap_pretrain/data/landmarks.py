"""Reads the landmarks of faces that `emocap landmarks` has written."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from emocap_shards.local_files import open_regular
from jaxtyping import Float

from emocap_pretrain.errors import DataError

POINTS = 478  # Of the MediaPipe face mesh with refined landmarks.


class FaceLandmarks(NamedTuple):
    """Holds the landmarks of the faces in some images.

    Attributes:
        names: The names of the images.
        points: x, y and depth of each point in pixels; NaN where no face was found.
        spread: How far the passes over an image differ, relative to the distance between the eyes; NaN if fewer than
            two passes found a face. None if the file does not say it.
    """

    names: Sequence[str]
    points: Float[np.ndarray, "images 478 3"]
    spread: Float[np.ndarray, " images"] | None

    @property
    def faces(self) -> int:
        """Returns the number of images in which a face was found."""
        return int(np.isfinite(self.points[:, 0, 0]).sum())


def read_landmarks(path: Path) -> FaceLandmarks:
    """Reads the arrays `name` and `landmarks`, [images, 478 * 3] or [images, 478, 3], and `spread`, if any.

    Raises:
        DataError: If the file cannot be read, or does not have these arrays.
    """
    try:
        with open(open_regular(path), "rb") as file, np.load(file, allow_pickle=False) as stored:  # noqa: PTH123 - a descriptor
            names, points = stored["name"], stored["landmarks"]
            spread = stored.get("spread")
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a file of `emocap landmarks`: {error}.") from error
    if points.shape == (len(names), POINTS * 3):
        points = points.reshape(-1, POINTS, 3)
    if names.ndim != 1 or points.shape != (len(names), POINTS, 3) or points.dtype.kind != "f":
        raise DataError(f"{path} has landmarks of the shape {list(points.shape)}, not [images, {POINTS}, 3].")
    if spread is not None and spread.shape != names.shape:
        raise DataError(f"{path} has {spread.size} values of the spread for {len(names)} images.")
    return FaceLandmarks([str(name) for name in names], points, spread)
