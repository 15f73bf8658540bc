"""Writes synthetic copies of RAF-DB whose faces are cut out in known ways, and looks at them as the check does.

The kinds of copies are those of `crops`, and "original": the photographs as they are.
"""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness.machine import REPOSITORY
from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.alignment import EYES, LOOKED, Kind, SeenImage, look
from emocap_pretrain.benchmarks.check import check
from emocap_pretrain.data.landmarks import read_landmarks
from emocap_pretrain.errors import ConfigError

from .crops import Crop, crops, landmarks_of

TRUTH: Mapping[str, Kind] = {"official": "landmarks", "box": "box", "whole": "whole", "original": "whole"}
"""The right answer for each kind of copy."""

MOUTH = (61, 291)  # The corners of the mouth in the face mesh.
FEWEST_PERSONS = 4

People = Sequence[Sequence[SeenImage]]
"""What is known about the images of each person."""


@dataclass(frozen=True, slots=True)
class AlignmentPlan:
    """Holds what is cut out and where it is written.

    Attributes:
        photographs: A folder of photographs. The name of a file begins with its person, up to the first underscore.
        landmarks: The landmarks of the photographs (launch/landmarks.py).
        copies: The folder into which the synthetic copies are written. A complete copy is not written again.
        seeds: For each seed, all photographs are cut out anew, with other errors.
        finder: A Python interpreter that has mediapipe, with which launch/landmarks.py finds the landmarks of the
            copies. With None, the places of the eyes are exact, which those of a user never are.
    """

    photographs: Path
    landmarks: Path
    copies: Path
    seeds: tuple[int, ...]
    finder: str | None


@dataclass(frozen=True, slots=True)
class Photograph:
    """Holds a photograph, its person, and its landmarks [478, 3] in pixels."""

    path: Path
    person: str
    points: np.ndarray


@dataclass(frozen=True, slots=True)
class SeenCopy:
    """Holds what is known about the images of each person in a copy, and the verdict of `emocap benchmarks check`."""

    people: People
    verdict: str


def halves(plan: AlignmentPlan) -> tuple[Sequence[Photograph], Sequence[Photograph]]:
    """Returns the photographs of the first, third, fifth person and so on, in the order of names, and of the others.

    Photographs without landmarks are left out.

    Raises:
        ConfigError: If there are too few persons, or a half has more photographs than the check opens.
        DataError: If the file of landmarks cannot be read.
    """
    names, landmarks = read_landmarks(plan.landmarks)
    points = {name: each for name, each in zip(names, landmarks, strict=True) if np.isfinite(each[:, :2]).all()}
    files = sorted(path for path in plan.photographs.iterdir() if path.name in points)
    found = [Photograph(path, path.name.partition("_")[0], points[path.name]) for path in files]
    place = {person: number for number, person in enumerate(dict.fromkeys(each.person for each in found))}
    if len(place) < FEWEST_PERSONS:
        raise ConfigError(
            f"{plan.photographs} has photographs of {len(place)} persons with landmarks, and {FEWEST_PERSONS} are "
            "needed: give a folder of photographs such as 001_neutral.jpg, and the file that launch/landmarks.py has "
            "written for it."
        )
    first, second = ([each for each in found if place[each.person] % 2 == half] for half in (0, 1))
    if (most := max(len(first), len(second))) > LOOKED:
        raise ConfigError(f"{most} photographs are in one half, and the check opens {LOOKED} at most: give fewer.")
    return first, second


def seen_copies(
    plan: AlignmentPlan, photographs: Sequence[Photograph], folder: str, seed: int
) -> Mapping[str, SeenCopy]:
    """Writes a copy of each kind into `folder` of this seed, and returns what is known about it, by its kind.

    Raises:
        ConfigError: If landmarks cannot be found.
        DataError: If a copy that exists already is damaged.
    """
    return {
        kind: _seen(plan.finder, plan.copies / f"seed-{seed}" / folder / kind, photographs, made)
        for kind, made in _made(photographs, seed).items()
    }


def _seen(finder: str | None, root: Path, photographs: Sequence[Photograph], made: Sequence[Crop]) -> SeenCopy:
    paths, landmarks = _written(root, made), root / "landmarks.npz"
    if not landmarks.exists():
        _find(finder, landmarks, paths, made)
    people: dict[str, list[SeenImage]] = {each.person: [] for each in photographs}
    for each, image in zip(photographs, look(paths, root, landmarks), strict=True):
        people[each.person].append(image)
    alignment = check(catalogue.card("raf_db"), root, landmarks=landmarks).alignment
    return SeenCopy(list(people.values()), alignment.verdict if alignment else "unchecked")


def _made(photographs: Sequence[Photograph], seed: int) -> dict[str, list[Crop]]:
    """Returns the crops of the photographs by kind."""
    random = np.random.default_rng(seed)
    found: dict[str, list[Crop]] = {kind: [] for kind in TRUTH}
    for each in photographs:
        points = each.points[:, :2].astype(np.float64)
        eyes = np.stack([points[list(corners)].mean(0) for corners in EYES])
        box = np.concatenate([points.min(0), points.max(0)])
        with Image.open(each.path) as opened:
            image = opened.convert("RGB")
        for kind, crop in crops(image, eyes, points[list(MOUTH)].mean(0), box, random).items():
            found[kind].append(crop)
        found["original"].append((image, eyes))
    return found


def _written(root: Path, made: Sequence[Crop]) -> list[Path]:
    """Writes a copy in the layout of RAF-DB's authors, if it is not there yet, and returns the paths of its images."""
    names = [f"{'train' if number % 2 else 'test'}_{number:05d}" for number in range(len(made))]
    paths = [root / "Image" / "aligned" / f"{name}_aligned.jpg" for name in names]
    labels = root / "EmoLabel" / "list_patition_label.txt"
    if not labels.exists():  # It is written last.
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        for path, (image, _) in zip(paths, made, strict=True):
            image.save(path, quality=95)
        labels.parent.mkdir(exist_ok=True)
        labels.write_text("".join(f"{name}.jpg {number % 7 + 1}\n" for number, name in enumerate(names)))
    return paths


def _find(finder: str | None, out: Path, paths: Sequence[Path], made: Sequence[Crop]) -> None:
    """Writes the file of landmarks of a copy."""
    if finder is None:
        names = [path.relative_to(out.parent).as_posix() for path in paths]
        np.savez(out, name=names, landmarks=np.stack([landmarks_of(eyes) for _, eyes in made]))
        return
    _printed(finder, str(REPOSITORY / "launch" / "landmarks.py"), str(out.parent), str(out))


def mediapipe(finder: str) -> str:
    """Returns the version of mediapipe that an interpreter has.

    Raises:
        ConfigError: If it has none.
    """
    return _printed(finder, "-c", "from importlib.metadata import version; print(version('mediapipe'))").strip()


def _printed(finder: str, *words: str) -> str:
    try:
        done = subprocess.run([finder, *words], check=False, capture_output=True, text=True)
    except OSError as error:
        raise ConfigError(f"{finder} cannot be started: {error.strerror or error}.") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"{finder} ended with code {done.returncode}: {last}; it must be a Python with mediapipe.")
    return done.stdout
