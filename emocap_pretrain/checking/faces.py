"""Reads the captioned faces of a packed dataset with their landmarks, and their population."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from emocap_shards.annotation import load_annotation
from emocap_shards.decode import image_header
from emocap_shards.library import Library
from emocap_shards.sample import Encoded
from emocap_shards.writing.row import key_of
from jaxtyping import Float

from emocap_pretrain.checking.check import CaptionedFace
from emocap_pretrain.checking.population import MIN_FACES, FacePopulation
from emocap_pretrain.data.landmarks import FaceLandmarks, read_landmarks
from emocap_pretrain.errors import DataError

MAX_SPREAD = 0.05
"""The greatest spread of the detections of a face, in eye distances, at which its landmarks are trusted."""

TOGETHER = 256
"""Samples that are read together."""

_MOST_FACES = 20_000  # A population is fitted to at most so many faces, spread evenly over the file.
RENDERED = Path(__file__).with_name("rendered_faces.json")
"""The population of rendered faces, for datasets with too few faces for one of their own."""


@dataclass(frozen=True, slots=True, eq=False)
class TrustedLandmarks:
    """Holds the landmarks of faces on which the detections agree; the rows of the others are NaN.

    Attributes:
        points: x, y and depth of each point in pixels.
        rows: The row of each image, by the key that `emocap pack` gives it and by its name without folders and suffix.
    """

    points: Float[np.ndarray, "images 478 3"]
    rows: Mapping[str, int]

    @classmethod
    def read(cls, path: Path) -> "TrustedLandmarks":
        """Reads a file that `emocap landmarks` has written. It is held in memory, with 6 kB for each face.

        Raises:
            DataError: If the file cannot be read, or does not have the arrays of `emocap landmarks`.
        """
        return cls.of(read_landmarks(path))

    @classmethod
    def of(cls, stored: FaceLandmarks) -> "TrustedLandmarks":
        points = stored.points
        if stored.spread is not None:
            # "Not at most" rather than "greater": the spread is NaN if only one pass has found the face.
            points = np.where((stored.spread <= MAX_SPREAD)[:, None, None], points, np.nan)
        rows = {Path(name).stem: row for row, name in enumerate(stored.names)}
        rows |= {key_of(name): row for row, name in enumerate(stored.names)}
        return cls(points, rows)

    def population(self, source: str) -> FacePopulation | None:
        """Returns the population of these faces; None if they are fewer than `MIN_FACES`."""
        found = np.flatnonzero(np.isfinite(self.points[:, 0, 0]))
        if len(found) < MIN_FACES:
            return None
        every = -(-len(found) // _MOST_FACES)
        try:
            return FacePopulation.fit(self.points[found[::every]].astype(np.float64), source)
        except ValueError as error:
            raise DataError(str(error)) from error

    def of_sample(self, sample: Encoded) -> Float[np.ndarray, "478 3"] | None:
        """Returns the landmarks of a sample; None if no face was found, or the file does not have the sample.

        Points outside of the image are NaN: the mesh model places them where nothing is visible.
        """
        row = self.rows.get(sample.key)
        if row is None or not np.isfinite(self.points[row]).any():
            return None
        points = self.points[row].astype(np.float64)
        _, width, height = image_header(sample.image)
        points[((points[:, :2] < 0) | (points[:, :2] > (width, height))).any(1)] = np.nan
        return points


def faces_of(library: Library, landmarks: TrustedLandmarks | None, first: int = 0) -> Iterator[list[CaptionedFace]]:
    """Yields the samples of a dataset from number `first` on, some at a time, in the order of its manifest.

    Raises:
        DamagedSample: If a sample is damaged.
        ImageError: If an image cannot be read.
    """
    numbers = iter(range(first, sum(library.samples)))
    while some := list(islice(numbers, TOGETHER)):
        found: list[CaptionedFace] = []
        for sample in library.fetch(np.array(some), direct=True):
            if isinstance(sample, Exception):
                raise sample
            captions, labels = load_annotation(sample.annotation)
            points = landmarks.of_sample(sample) if landmarks else None
            found.append(CaptionedFace(key=sample.key, captions=captions, labels=labels, landmarks=points))
        yield found
