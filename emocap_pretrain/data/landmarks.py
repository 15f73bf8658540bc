"""Reads the landmarks of faces that launch/landmarks.py has written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from emocap_shards.local_files import open_regular

from emocap_pretrain.errors import DataError

POINTS = 478  # Of the MediaPipe face mesh with refined landmarks.


def read_landmarks(path: Path) -> tuple[Sequence[str], np.ndarray[Any, Any]]:
    """Returns the names of the images and their landmarks [images, 478, 3], in pixels; NaN where no face was found.

    Raises:
        DataError: If the file cannot be read, or does not have these arrays.
    """
    try:
        with open(open_regular(path), "rb") as file, np.load(file, allow_pickle=False) as stored:  # noqa: PTH123 - a descriptor
            names, landmarks = stored["name"], stored["landmarks"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a file of launch/landmarks.py: {error}.") from error
    if names.ndim != 1 or landmarks.shape != (len(names), POINTS, 3) or landmarks.dtype.kind != "f":
        raise DataError(f"{path} has landmarks of the shape {list(landmarks.shape)}, not [images, {POINTS}, 3].")
    return [str(name) for name in names], landmarks
