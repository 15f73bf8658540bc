"""Writes synthetic copies of RAF-DB whose faces are cut out in known ways, and looks at them as the check does.

The kinds of copies are those of `crops`, and "original": the photographs as they are.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

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
LANDMARKS = "landmarks.npz"

People = Sequence[Sequence[SeenImage]]
"""The images of each person, as the check sees them."""


@dataclass(frozen=True, slots=True)
class AlignmentPlan:
    """Holds what is cut out and where it is written.

    Attributes:
        photographs: A folder of photographs. The name of a file begins with its person, up to the first underscore.
        landmarks: The landmarks of the photographs (`emocap landmarks`).
        copies: The folder into which the synthetic copies are written.
        seeds: For each seed, all photographs are cut out anew, with other errors.
        find: Whether `emocap landmarks` finds the landmarks of the copies. Otherwise the places of the eyes are exact,
            which those of a user never are.
    """

    photographs: Path
    landmarks: Path
    copies: Path
    seeds: tuple[int, ...]
    find: bool


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
    read = read_landmarks(plan.landmarks)
    points = {name: each for name, each in zip(read.names, read.points, strict=True) if np.isfinite(each[:, :2]).all()}
    files = sorted(path for path in plan.photographs.iterdir() if path.name in points)
    found = [Photograph(path, path.name.partition("_")[0], points[path.name]) for path in files]
    place = {person: number for number, person in enumerate(dict.fromkeys(each.person for each in found))}
    if len(place) < FEWEST_PERSONS:
        raise ConfigError(
            f"{plan.photographs} has photographs of {len(place)} persons with landmarks, and {FEWEST_PERSONS} are "
            "needed: give a folder of photographs such as 001_neutral.jpg, and the file that `emocap landmarks` has "
            "written for it."
        )
    first, second = ([each for each in found if place[each.person] % 2 == half] for half in (0, 1))
    if (most := max(len(first), len(second))) > LOOKED:
        raise ConfigError(f"{most} photographs are in one half, and the check opens {LOOKED} at most: give fewer.")
    return first, second


def seen_copies(
    plan: AlignmentPlan, photographs: Mapping[str, Sequence[Photograph]]
) -> Mapping[tuple[str, int], Mapping[str, SeenCopy]]:
    """Writes the copies of all halves, seeds and kinds, and returns what is known about them.

    Args:
        plan: What is cut out.
        photographs: The photographs of each half, by its name.

    Returns:
        The copies by their kind, for each name of a half and each seed.

    Raises:
        ConfigError: If landmarks cannot be found.
    """
    made = {(half, seed): _made(those, seed) for half, those in photographs.items() for seed in plan.seeds}
    roots = {at: {kind: plan.copies / f"seed-{at[1]}" / at[0] / kind for kind in TRUTH} for at in made}
    for at, kinds in made.items():
        for kind, those in kinds.items():
            _write(roots[at][kind], those)
    if plan.find:
        _find(plan.copies, [root for kinds in roots.values() for root in kinds.values()])
    return {at: {kind: _seen(root, photographs[at[0]]) for kind, root in kinds.items()} for at, kinds in roots.items()}


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


def _write(root: Path, made: Sequence[Crop]) -> None:
    """Writes a copy in the layout of RAF-DB's authors, and the exact landmarks of its images."""
    paths = _paths(root, len(made))
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for path, (image, _) in zip(paths, made, strict=True):
        image.save(path, quality=95)
    labels = root / "EmoLabel" / "list_patition_label.txt"
    labels.parent.mkdir(exist_ok=True)
    lines = (f"{path.stem.removesuffix('_aligned')}.jpg {number % 7 + 1}\n" for number, path in enumerate(paths))
    labels.write_text("".join(lines))
    names = [path.relative_to(root).as_posix() for path in paths]
    np.savez(root / LANDMARKS, name=names, landmarks=np.stack([landmarks_of(eyes) for _, eyes in made]))


def _paths(root: Path, images: int) -> list[Path]:
    """Returns the paths of the images of a copy; every second one is in the split train."""
    names = (f"{'train' if number % 2 else 'test'}_{number:05d}_aligned.jpg" for number in range(images))
    return [root / "Image" / "aligned" / name for name in names]


def _find(folder: Path, roots: Sequence[Path]) -> None:
    """Finds the landmarks of all images in a folder, and writes those of each copy in place of the exact ones."""
    out = folder / LANDMARKS
    words = [sys.executable, "-m", "emocap_pretrain.cli", "landmarks", str(folder), "--out", str(out), "--force"]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"emocap landmarks ended with code {done.returncode}: {done.stderr.strip()}")
    read = read_landmarks(out)
    for root in roots:
        within = f"{root.relative_to(folder).as_posix()}/"
        rows = [row for row, name in enumerate(read.names) if name.startswith(within)]
        names = [read.names[row].removeprefix(within) for row in rows]
        np.savez(root / LANDMARKS, name=names, landmarks=read.points[rows])


def _seen(root: Path, photographs: Sequence[Photograph]) -> SeenCopy:
    paths, landmarks = _paths(root, len(photographs)), root / LANDMARKS
    people: dict[str, list[SeenImage]] = {each.person: [] for each in photographs}
    for each, image in zip(photographs, look(paths, root, landmarks), strict=True):
        people[each.person].append(image)
    alignment = check(catalogue.card("raf_db"), root, landmarks=landmarks).alignment
    return SeenCopy(list(people.values()), alignment.verdict if alignment else "unchecked")
