"""Reads the FER+ set (gray faces of 48 pixels, ten votes each) and yields its records with structured captions.

Local sentences describe the measured shape of a face, in comparison with the faces of the training split. The global
part and the summary of the splits "train" and "valid" also use the votes. **A caption of the split "test"
contains nothing that depends on the votes**: its global part is "A face.", its summary lists the measured cues, and no
vote decides whether a test image is included. The votes are in its labels, for the evaluation.

The images are read from the published tables (`load_tables`), or from an .npz file with `images` uint8 [n, 48, 48],
`votes` uint8 [n, 10], `vote_names` (the names of the ten columns of `votes`), `usage` (the split of each image) and
`name`. `emocap landmarks` writes the landmarks. Keep the faces, and all data derived from them, out of every
repository.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from emocap_shards.sample import Caption, Record
from jaxtyping import Float32, UInt8
from PIL import Image

from emocap_pretrain.captions.face_mesh.cues import find_cues
from emocap_pretrain.captions.face_mesh.geometry import Population, measure
from emocap_pretrain.captions.ferplus.captioner import caption, caption_without_votes
from emocap_pretrain.captions.ferplus.tables import PublishedImages, read_ferplus
from emocap_pretrain.captions.ferplus.votes import Votes, is_face, majority
from emocap_pretrain.captions.grammar.looks import RegionState
from emocap_pretrain.data.landmarks import read_landmarks
from emocap_pretrain.errors import DataError

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

_USAGE: Mapping[Split, str] = {"train": "Training", "valid": "PublicTest", "test": "PrivateTest"}
_MAX_SPREAD = 0.05
"""The greatest spread of the detections of a face, in eye distances, at which its landmarks are trusted."""


@dataclass(frozen=True, slots=True)
class Faces:
    """Holds the FER+ set in memory; row `i` of every field belongs to the same face.

    All landmarks of a face are NaN unless several detections of the face agree. A single landmark is NaN if it lies
    outside of the image. With None for `landmarks` the faces get no captions.
    """

    names: Sequence[str]
    images: UInt8[np.ndarray, "faces height width"]
    votes: Sequence[Votes]
    usage: Sequence[str]
    landmarks: Float32[np.ndarray, "faces 478 3"] | None

    def rows(self, split: Split) -> list[int]:
        return [row for row, usage in enumerate(self.usage) if usage == _USAGE[split]]


def load(npz_path: str | Path, landmarks_path: str | Path) -> Faces:
    """Reads the images and votes from one file and the landmarks from another; rows are matched by the images' names.

    Raises:
        ValueError: If an image has no row in the landmarks file.
    """
    with np.load(npz_path) as stored:
        names = [str(name) for name in stored["name"]]
        images, counts = stored["images"], stored["votes"].tolist()
        vote_names = [str(name) for name in stored["vote_names"]]
        usage = [str(usage) for usage in stored["usage"]]
    return Faces(
        names=names,
        images=images,
        votes=[dict(zip(vote_names, row, strict=True)) for row in counts],
        usage=usage,
        landmarks=_landmarks(landmarks_path, names, size_px=images.shape[1:]),
    )


def load_tables(table: Path, votes: Path, landmarks_path: Path | None) -> tuple[Faces, int]:
    """Reads the images and votes from the published tables, and the landmarks if their file is given.

    Returns the faces, and the number of rows that are left out because FER+ gives them no name.

    Raises:
        DataError: If a table or the file of landmarks cannot be read, if the tables do not belong together, or if an
            image has no row in the file of landmarks.
    """
    found = read_ferplus(table, votes)
    try:
        landmarks = None if landmarks_path is None else _landmarks_of(landmarks_path, found)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"the landmarks {landmarks_path} cannot be used ({str(error).rstrip('.')}).") from error
    return Faces(found.names, found.images, found.votes, found.usage, landmarks), found.left_out


def _landmarks_of(path: Path, found: PublishedImages) -> Float32[np.ndarray, "faces 478 3"]:
    """Returns the landmarks by the names of FER+, or by the rows of fer2013.csv if the file was made from that."""
    with np.load(path) as stored:
        is_by_row = found.rows[0] in set(stored["name"].tolist())
    return _landmarks(path, found.rows if is_by_row else found.names, size_px=found.images.shape[1:])


def fer2013_records(found: PublishedImages, split: Split) -> Iterator[Record]:
    """Yields the images of one split of FER2013 with the label `emotion` and without captions."""
    for row, usage in enumerate(found.usage):
        if usage == _USAGE[split]:
            yield Record(found.rows[row], _png(found.images[row]), "png", None, {"emotion": found.emotions[row]})


def records(faces: Faces, split: Split) -> Iterator[Record]:
    """Yields the faces of one split, in the order of the file: with captions if there are landmarks.

    Images for which `is_face` is False are left out, except in the split "test".
    """
    cues = None if faces.landmarks is None else find_all_cues(faces, faces.landmarks)
    for row in faces.rows(split):
        if split == "test" or is_face(faces.votes[row]):
            yield _record(faces, row, None if cues is None else cues[row], split)


def find_all_cues(faces: Faces, landmarks: Float32[np.ndarray, "faces 478 3"]) -> list[tuple[RegionState, ...]]:
    """Returns, for each face, its cues: the visible states of its regions.

    Each face is compared with the faces of the training split. So the cues of a test face do not depend on the other
    test faces.

    Raises:
        DataError: If too few faces of the training split have landmarks.
    """
    measurements = measure(landmarks)
    train = faces.rows("train")
    try:
        population = Population.fit({name: values[train] for name, values in measurements.items()})
    except ValueError as error:
        raise DataError(str(error)) from error
    columns = {name: values.tolist() for name, values in population.ranks(measurements).items()}
    return [find_cues({name: values[row] for name, values in columns.items()}) for row in range(len(faces.names))]


def labels(votes: Votes) -> dict[str, str | float]:
    """Returns the labels of a face.

    `emotion` is the emotion with a majority of the votes, or "". For each key `name` of `votes`, `share_<name>` is the
    fraction of all votes that are for `name`.
    """
    total = sum(votes.values())
    shares = {f"share_{name}": round(count / total, 4) for name, count in votes.items()}
    return {"emotion": majority(votes), **shares}


def _record(faces: Faces, row: int, cues: Sequence[RegionState] | None, split: Split) -> Record:
    key = Path(faces.names[row]).stem
    votes = faces.votes[row]
    text = None if cues is None else _caption(votes, cues, key, split)
    return Record(key=key, image=_png(faces.images[row]), extension="png", caption=text, labels=labels(votes))


def _caption(votes: Votes, cues: Sequence[RegionState], key: str, split: Split) -> Caption:
    return caption_without_votes(cues, key) if split == "test" else caption(votes, cues, key)


def _png(image: UInt8[np.ndarray, "height width"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _landmarks(path: str | Path, names: Sequence[str], *, size_px: tuple[int, int]) -> np.ndarray[Any, Any]:
    stored = read_landmarks(Path(path))
    if stored.spread is None:
        raise ValueError(f"{path} has no array `spread`: let `emocap landmarks` write it again.")
    row_of = {name: row for row, name in enumerate(stored.names)}
    missing = [name for name in names if name not in row_of]
    if missing:
        raise ValueError(
            f"{path} has no row for {len(missing)} of {len(names)} images, the first is {missing[0]}; "
            "run `emocap landmarks` on the whole file."
        )
    order = [row_of[name] for name in names]
    landmarks = stored.points[order].astype(np.float32)
    # "Not at most" rather than "greater": the spread is NaN if only one pass has found the face.
    landmarks[~(stored.spread[order] <= _MAX_SPREAD)] = np.nan
    # The model of the mesh also places points outside of the image. Nothing is visible there, so they are not measured.
    height, width = size_px
    outside = (landmarks[..., :2] < 0) | (landmarks[..., :2] > (width, height))
    landmarks[outside.any(-1)] = np.nan
    return landmarks
