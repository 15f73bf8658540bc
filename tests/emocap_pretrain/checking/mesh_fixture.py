"""Reads the mesh points of rendered faces that lie next to this file, and the true action units of these faces.

The points are those that the measures need, of the faces 10 to 509 of `emocap synth --seed 5 --pixels 224`, in
hundredths of a pixel. The faces are drawn: no point comes from a person.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from emocap_pretrain.checking.population import FacePopulation


@cache
def rendered() -> tuple[np.ndarray, Mapping[int, np.ndarray]]:
    """Returns the landmarks [faces, 478, 3], where points that no measure needs are 0, and the intensities by unit."""
    with np.load(Path(__file__).with_name("rendered_landmarks.npz")) as stored:
        landmarks = np.zeros((len(stored["key"]), 478, 3))
        landmarks[:, stored["index"]] = stored["hundredths"] / 100
        units = {int(unit): column for unit, column in zip(stored["unit"], stored["intensity"].T, strict=True)}
    return landmarks, units


@cache
def people() -> FacePopulation:
    """Returns the population of all faces of `rendered`."""
    return FacePopulation.fit(rendered()[0], "rendered faces")
