"""The FER+ set (48-pixel gray faces, ten votes each) -> records with structured captions.

Local sentences come from measured geometry in every split, compared with the faces of the training split. Global part
and summary come from the votes and the geometry for train and valid. **A caption of the test split holds nothing of
the votes**: its global part is "A face.", its summary lists the measured cues; and no vote decides whether a test
image is there. Votes are in its labels, for the evaluation.

    python -m emocap_pretrain.captions.ferplus.captioner --npz ferplus_48.npz --landmarks landmarks.npz --out ferplus

The first file holds `images` uint8 [n, 48, 48], `votes` uint8 [n, 10], `vote_names`, `usage` and `name`; the second is
made by launch/landmarks.py. Keep faces and what is derived from them out of every repository.
"""

import argparse
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from emocap_shards.sample import Caption, Record
from emocap_shards.writer import write_shards
from jaxtyping import Float32, UInt8
from PIL import Image

from emocap_pretrain.captions.ferplus import votes as ballot
from emocap_pretrain.captions.ferplus.cues import Cue, Strength, find_cues
from emocap_pretrain.captions.ferplus.geometry import Measurements, measure
from emocap_pretrain.captions.ferplus.population import Population
from emocap_pretrain.captions.wording import listed, local_sentences, phrases

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
TEST_WHOLE = "A face."

_USAGE: Mapping[Split, str] = {"train": "Training", "valid": "PublicTest", "test": "PrivateTest"}
# Passes of the mesh that lie farther apart than this, in eye distances, did not see the same face.
_MAX_SPREAD = 0.05


@dataclass(frozen=True, slots=True)
class Faces:
    """The set in memory; row `i` of everything is one face. A landmark that is not to be trusted is NaN."""

    names: Sequence[str]
    images: UInt8[np.ndarray, "faces height width"]
    votes: Sequence[ballot.Votes]
    usage: Sequence[str]
    landmarks: Float32[np.ndarray, "faces 478 3"]

    def rows(self, split: Split) -> list[int]:
        return [row for row, usage in enumerate(self.usage) if usage == _USAGE[split]]


def load(npz_path: str | Path, landmarks_path: str | Path) -> Faces:
    """Joins images and landmarks by name.

    Raises:
        ValueError: If an image has no row in the landmarks file, or votes carry other names.
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


def records(npz_path: str | Path, landmarks_path: str | Path, split: Split) -> Iterator[Record]:
    """The captioned faces of one split, in the order of the file."""
    return records_of(load(npz_path, landmarks_path), split)


def records_of(faces: Faces, split: Split) -> Iterator[Record]:
    """Yields the records of a set in memory. Faces that people could not read are left out, but never of "test"."""
    cues = find_all_cues(faces)
    for row in faces.rows(split):
        if split == "test" or ballot.is_face(faces.votes[row]):
            yield _record(faces, row, cues[row], split)


def find_all_cues(faces: Faces) -> list[tuple[Cue, ...]]:
    """The cues of every row, each face compared with those of the training split."""
    measurements = measure(faces.landmarks)
    train = faces.rows("train")
    population = Population.fit({name: values[train] for name, values in measurements.items()})
    ranks: Measurements = population.ranks(measurements)
    columns = {name: values.tolist() for name, values in ranks.items()}
    return [find_cues({name: values[row] for name, values in columns.items()}) for row in range(len(faces.names))]


def caption(votes: ballot.Votes, cues: Sequence[Cue], key: str) -> Caption:
    mix = ballot.mixture(votes, expressive=any(cue.strength is Strength.STRONG for cue in cues))
    return Caption(
        global_=ballot.whole(mix, key),
        local=local_sentences(cues, key),
        summary=ballot.summary(mix, phrases(cues), key),
    )


def caption_without_votes(cues: Sequence[Cue], key: str) -> Caption:
    """All that may be said of a test face: what was measured on it."""
    parts = phrases(cues)
    summary = f"A face with {listed(parts)}." if parts else TEST_WHOLE
    return Caption(global_=TEST_WHOLE, local=local_sentences(cues, key), summary=summary)


def labels(votes: ballot.Votes) -> dict[str, str | float]:
    """`emotion`, "" without a majority, and the share of each vote as `share_<name>`."""
    total = sum(votes.values())
    shares = {f"share_{name}": round(count / total, 4) for name, count in votes.items()}
    return {"emotion": ballot.majority(votes), **shares}


def _record(faces: Faces, row: int, cues: Sequence[Cue], split: Split) -> Record:
    key = Path(faces.names[row]).stem
    votes = faces.votes[row]
    return Record(
        key=key,
        image=_png(faces.images[row]),
        extension="png",
        caption=caption_without_votes(cues, key) if split == "test" else caption(votes, cues, key),
        labels=labels(votes),
    )


def _png(image: UInt8[np.ndarray, "height width"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _landmarks(path: str | Path, names: Sequence[str], *, size_px: tuple[int, int]) -> np.ndarray[Any, Any]:
    with np.load(path) as stored:
        row_of = {str(name): row for row, name in enumerate(stored["name"])}
        missing = [name for name in names if name not in row_of]
        if missing:
            raise ValueError(
                f"{path} has no row for {len(missing)} of {len(names)} images, the first is {missing[0]}; "
                "run launch/landmarks.py on the whole file."
            )
        order = [row_of[name] for name in names]
        landmarks = stored["landmarks"][order].astype(np.float32)
        landmarks[~(stored["spread"][order] <= _MAX_SPREAD)] = np.nan
    height, width = size_px
    outside = (landmarks[..., :2] < 0) | (landmarks[..., :2] > (width, height))
    landmarks[outside.any(-1)] = np.nan
    return landmarks


def main() -> None:
    parser = argparse.ArgumentParser(description="Packs the FER+ set with captions into train, valid and test.")
    parser.add_argument("--npz", required=True, help="images, votes, usage and names")
    parser.add_argument("--landmarks", required=True, help="what launch/landmarks.py wrote for the same images")
    parser.add_argument(
        "--out", required=True, help="folder or URL; the datasets train, valid and test come to lie in it"
    )
    arguments = parser.parse_args()
    faces = load(arguments.npz, arguments.landmarks)
    for split in SPLITS:
        manifest = write_shards(records_of(faces, split), f"{arguments.out.rstrip('/')}/{split}")
        sys.stderr.write(f"{split}: {sum(shard.samples for shard in manifest.shards)} samples\n")


if __name__ == "__main__":
    main()
