"""Finds all faces in images, cuts them out, and measures how well they can be seen."""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, UInt8
from PIL import Image

from emocap_pretrain.bulk.compute import Advance, PartComputation, Work, computed_part
from emocap_pretrain.bulk.pictures import Picture
from emocap_pretrain.bulk.scorers import Columns, Field, FoundRows, vector_field
from emocap_pretrain.faces.alignment import AlignmentName, aligned
from emocap_pretrain.faces.mediapipe_program import COUNT, POINTS
from emocap_pretrain.faces.processes import ImageProcesses, program
from emocap_pretrain.faces.quality import FaceQuality, quality
from emocap_pretrain.inference.embedder import Crop

Encoding: TypeAlias = Literal["png", "jpg", "webp"]
_OPTIONS: dict[Encoding, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    "webp": ("WEBP", {"quality": 95}),
}
NO_FACE = "no face was found"


class DetectedFace(NamedTuple):
    """Holds a face as the detector has found it.

    Attributes:
        confidence: Confidence of the detector in [0, 1].
        box: Left, top, right and bottom in pixels of the image. The box may reach beyond the image.
        spread: How far the passes over the face differ (`mediapipe_program.found_in`).
        landmarks: The landmarks in pixels of the image.
    """

    confidence: float
    box: Float32[np.ndarray, "4"]
    spread: float
    landmarks: Float32[np.ndarray, "478 3"]


@dataclass(frozen=True, slots=True)
class FaceCut:
    """Holds how faces are cut out.

    Attributes:
        alignment: The name of the alignment (`alignment.aligned`).
        pixels: Side of the squares.
        encoding: Format of the squares.
    """

    alignment: AlignmentName = "eyes_mouth"
    pixels: int = 224
    encoding: Encoding = "png"


class FaceScorer(ImageProcesses[list[DetectedFace]]):
    """Implements `bulk.scorers.RowScorer`: one row for each face of an image, the largest first."""

    def __init__(self, command: Sequence[str], processes: int, cut: FaceCut) -> None:
        """Starts the processes (`ImageProcesses`)."""
        super().__init__(command, _faces, processes)
        self._cut = cut

    @property
    def fields(self) -> Sequence[Field]:
        numbers = ("confidence", *FaceQuality._fields, "inside", "spread")
        return [
            pa.field("key", pa.string()),
            pa.field("face", pa.int32()),
            *(pa.field(name, pa.float32()) for name in numbers),
            vector_field("box", 4),
            vector_field("landmarks", 3 * POINTS),
            pa.field("image", pa.binary()),
        ]

    def rows(self, pictures: Sequence[Picture], crops: Sequence[Crop]) -> FoundRows:
        answers = self.ask(crops)
        columns: dict[str, list[Any]] = {field.name: [] for field in self.fields}
        for picture, crop, faces in zip(pictures, crops, answers, strict=True):
            for number, face in enumerate(faces):
                for name, value in self._row(picture, crop, number, face).items():
                    columns[name].append(value)
        arrays: Columns = {
            name: np.stack(values) if name in {"box", "landmarks"} and values else values
            for name, values in columns.items()
        }
        return FoundRows([len(faces) for faces in answers], arrays, NO_FACE)

    def _row(self, picture: Picture, crop: Crop, number: int, face: DetectedFace) -> dict[str, Any]:
        cut = aligned(crop, face.landmarks, self._cut.alignment, self._cut.pixels)
        return {
            "key": key_of_face(picture, number),
            "face": number,
            "confidence": face.confidence,
            **quality(cut.image, face.landmarks)._asdict(),
            "inside": cut.inside,
            "spread": face.spread,
            "box": face.box,
            "landmarks": cut.landmarks.astype(np.float32).ravel(),
            "image": _encoded(cut.image, self._cut.encoding),
        }


def key_of_face(picture: Picture, number: int) -> str:
    """Returns the key of a face, which is a hash, so that it does not contain the name of the image."""
    place = f"{picture.name}\0{picture.frame}\0{number}"
    return hashlib.blake2b(place.encode(), digest_size=12).hexdigest()


def _encoded(image: UInt8[np.ndarray, "pixels pixels 3"], encoding: Encoding) -> bytes:
    name, options = _OPTIONS[encoding]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, name, **options)
    return buffer.getvalue()


def _faces(take: Callable[[int], bytes]) -> list[DetectedFace]:
    (count,) = COUNT.unpack(take(COUNT.size))
    return [_face(np.frombuffer(take(4 * (7 + 3 * POINTS)), np.float32)) for _ in range(count)]


def _face(values: Float32[np.ndarray, " answer"]) -> DetectedFace:
    return DetectedFace(float(values[0]), values[1:5], float(values[6]), values[7:].reshape(POINTS, 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceComputation(PartComputation):
    """Computes parts of faces.

    Attributes:
        cut: How faces are cut out.
        smallest_px: The smallest side of the box of a face, in pixels.
        processes: Number of processes that find faces, each with one thread.
    """

    cut: FaceCut
    smallest_px: float
    processes: int

    def scorer(self) -> FaceScorer:
        """Starts the processes; the environment is made first if there is none.

        Raises:
            ConfigError: If the environment cannot be made (`IsolatedEnvironment.python`).
            DataError: If a process ends at its start.
        """
        return FaceScorer(program("faces", str(self.smallest_px)), self.processes, self.cut)

    def started(self) -> Callable[[Work], Advance]:
        """Starts the processes, and returns the function that computes one part (`map_items`)."""
        return partial(computed_part, self, self.scorer())
