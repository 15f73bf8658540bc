"""Finds out how the faces in a copy of a benchmark were cut out: by landmarks, by the box of a detector, or not at all.

Scores change as much with the way in which faces are cut out as with the model, and no list of labels shows this way.
`judge` compares the sizes of the images and, if landmarks are given (`emocap landmarks`), the positions of the eyes.
If these do not decide between the kinds below, the kind is None. Black corners, which appear where a tool has turned an
image beyond its edge, decide nothing, but the message for the user has their number.

- `landmarks`: both eyes are at nearly the same place of every image, and no head is tilted. A tool has moved landmarks
  to fixed places, as the authors of benchmarks do for their aligned faces. Which places these are is not compared,
  because no card has a source for them.
- `box`: the face fills the image, and the tilt of the head differs between images. A detector such as MTCNN has found a
  box around the face, and the box was cut out without turning the image.
- `whole`: the face is small in the image, or the sizes of the images differ.

The bounds were chosen on crops of photographs of 51 of 102 persons. `python benchmarks evaluation alignment` measures
how often an answer is wrong (docs/evaluation-benchmarks.md). No copy of a benchmark was available for this.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from emocap_shards.decode import decode_image
from emocap_shards.errors import ImageError
from emocap_shards.local_files import open_regular

from emocap_pretrain.data.landmarks import read_landmarks

Kind: TypeAlias = Literal["landmarks", "box", "whole"]
TITLES: Mapping[Kind, str] = {
    "landmarks": "aligned by landmarks, as the authors' aligned faces are",
    "box": "cut out by the box of a detector such as MTCNN, and not turned",
    "whole": "whole photographs",
}

LOOKED, FEWEST = 300, 20
"""Number of images of a copy that are opened, and the fewest with a known place of the eyes that allow a judgement."""

EYES = ((33, 133), (263, 362))  # The corners of both eyes in the face mesh, the one on the left of the image first.
_MOST_BYTES = 1 << 28
_CORNER_PX, _DARK = 3, 2  # A corner is without picture if all of its values are at most this.


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Holds the bounds between the kinds. Values between two bounds decide nothing.

    Attributes:
        small: A face is small, as in a whole photograph, if the distance between its eyes (`SeenImage.apart`) is below.
        large: A face fills its image from this distance on.
        upright_deg: One head is upright, as if a tool had turned it, up to this angle.
        tilted_deg: One head is tilted from this angle on.
        same_roll_deg: All heads of a copy are upright if the spread of their angles is at most this one.
        other_roll_deg: The heads of a copy differ in their tilt from this spread on.
        same_place: The eyes are at the same place in all images of a copy if the spread of the points between them is
            at most this share of the image.
    """

    small: float = 0.255
    large: float = 0.28
    upright_deg: float = 1.25
    tilted_deg: float = 3.2
    same_roll_deg: float = 2.2
    other_roll_deg: float = 3.2
    same_place: float = 0.015


BOUNDS = Bounds()


@dataclass(frozen=True, slots=True)
class SeenImage:
    """Holds what is known about one image.

    Attributes:
        width_px: Width of the image.
        height_px: Height of the image.
        is_cornerless: Whether at least one corner is black, as if a tool had turned the image beyond its edge.
        apart: Distance between the middles of both eyes, divided by the square root of the area of the image; None if
            there are no landmarks, or no face was found. If it is None, `middle` and `roll_deg` mean nothing.
        middle: The point between both eyes, as shares of the width and the height.
        roll_deg: Angle between the line through both eyes and the horizontal; positive if the eye on the right of the
            image is lower.
    """

    width_px: int
    height_px: int
    is_cornerless: bool
    apart: float | None = None
    middle: tuple[float, float] = (0.0, 0.0)
    roll_deg: float = 0.0


def kind_of_image(image: SeenImage, bounds: Bounds = BOUNDS) -> Kind | None:
    """Returns how the face of one image was cut out; None if this one image does not show it, or has no known eyes.

    A head that is upright by chance looks like an aligned one, so single images are often taken for aligned.
    """
    if image.apart is None:
        return None
    if image.apart < bounds.large:
        return "whole" if image.apart < bounds.small else None
    if abs(image.roll_deg) <= bounds.upright_deg:
        return "landmarks"
    return "box" if abs(image.roll_deg) >= bounds.tilted_deg else None


@dataclass(frozen=True, slots=True)
class Judgement:
    """Holds how the faces of a copy were cut out (None if this is unknown), and the reason as a text for the user."""

    kind: Kind | None
    why: str


def judge(images: Sequence[SeenImage], bounds: Bounds = BOUNDS) -> Judgement:
    """Returns how the faces of a copy were cut out, judged by some of its images (`look`).

    If fewer than `FEWEST` images have known eyes, only the sizes of the images are compared.
    """
    if not images:
        return Judgement(None, "no image could be opened")
    found = [each for each in images if each.apart is not None]
    if len(found) >= FEWEST:
        return _by_eyes(found, len(images), bounds)
    (size, most), *_ = Counter((each.width_px, each.height_px) for each in images).most_common()
    if len(images) >= FEWEST and most < len(images) / 2:
        return Judgement("whole", f"only {most} of {len(images)} images have the most frequent size")
    black = sum(each.is_cornerless for each in images)
    seen = f"{most} of {len(images)} images have {size[0]} x {size[1]} pixels, and {black} have a black corner"
    return Judgement(None, f"{seen}; only the places of the eyes tell more (--landmarks)")


class EyeSpread(NamedTuple):
    """Holds what the eyes in the images of a copy show.

    Attributes:
        apart: The median distance between the eyes (`SeenImage.apart`).
        roll_deg: How much the tilt of the heads differs: a standard deviation of which outliers are no part.
        place: How much the point between the eyes differs, in the direction in which it differs more; a share of the
            width or of the height.
    """

    apart: float
    roll_deg: float
    place: float


def eye_spread(images: Sequence[SeenImage]) -> EyeSpread:
    """Returns what the eyes in the images of a copy show. Every image must have known eyes."""
    return EyeSpread(
        float(np.median([each.apart or 0.0 for each in images])),
        _spread(np.array([each.roll_deg for each in images])[:, None]),
        _spread(np.array([each.middle for each in images])),
    )


def _by_eyes(images: Sequence[SeenImage], looked: int, bounds: Bounds) -> Judgement:
    apart, roll_deg, place = eye_spread(images)
    why = (
        f"in {len(images)} of {looked} images with a face, the eyes are apart by {apart:.0%} of the image; their "
        f"places differ by {place:.1%}, and their tilt by {roll_deg:.1f} degrees"
    )
    if apart < bounds.large:
        return Judgement("whole" if apart < bounds.small else None, why)
    if roll_deg <= bounds.same_roll_deg and place <= bounds.same_place:
        return Judgement("landmarks", why)
    # The places of the eyes alone do not tell a box from landmarks: they also differ between heads that look aside.
    return Judgement("box" if roll_deg >= bounds.other_roll_deg else None, why)


def _spread(values: np.ndarray) -> float:
    """Returns the standard deviation of the column that varies most, estimated so that outliers do not count.

    The estimate is 1.4826 times the median of the absolute deviations from the median of the column.
    """
    deviations = np.abs(values - np.median(values, axis=0))
    return float(1.4826 * np.median(deviations, axis=0).max())


def look(paths: Sequence[Path], root: Path, landmarks: Path | None = None) -> list[SeenImage]:
    """Opens up to `LOOKED` (300) images that are spread evenly over `paths`, and returns what is known about each.

    Images that cannot be opened or decoded are left out.

    Args:
        paths: The image files.
        root: The folder of the copy.
        landmarks: The file that `emocap landmarks` has written for this folder, or for a folder within it in which no
            two images have the same name; None if there is no such file.

    Raises:
        DataError: If the file of landmarks cannot be read.
    """
    points: dict[str, np.ndarray] = {}
    if landmarks is not None:
        names, found, _ = read_landmarks(landmarks)
        points = {Path(name).name: each for name, each in zip(names, found, strict=True)}
        points |= dict(zip(names, found, strict=True))
    places = np.unique(np.linspace(0, len(paths) - 1, LOOKED).round().astype(int)).tolist() if paths else []
    seen = (
        _seen(path, points.get(_relative(path, root), points.get(path.name))) for path in map(paths.__getitem__, places)
    )
    return [each for each in seen if each]


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _seen(path: Path, points: np.ndarray | None) -> SeenImage | None:
    try:
        with open(open_regular(path), "rb") as file:  # noqa: PTH123 - a descriptor
            image = decode_image(file.read(_MOST_BYTES))
    except (ImageError, OSError, ValueError):
        return None
    return seen_image(image, points)


def seen_image(image: np.ndarray, points: np.ndarray | None) -> SeenImage:
    """Measures what shows how the face of an image was cut out.

    This is the size of the image, whether a corner is black, and where the eyes are.

    Args:
        image: The image [height, width, 3].
        points: Its landmarks [478, 3] in pixels, which are NaN if no face was found; None if there are no landmarks.
    """
    height, width = image.shape[:2]
    rows, columns = (
        (slice(None, _CORNER_PX), slice(-_CORNER_PX, None)),
        (slice(None, _CORNER_PX), slice(-_CORNER_PX, None)),
    )
    cornerless = any((image[row, column] <= _DARK).all() for row in rows for column in columns)
    seen = SeenImage(width, height, cornerless)
    if points is None:
        return seen
    left, right = (points[list(corners), :2].astype(np.float64).mean(0) for corners in EYES)
    if not np.isfinite([left, right]).all():
        return seen
    across, down = right - left
    middle = (left + right) / 2 / (width, height)
    apart = float(np.hypot(across, down) / np.sqrt(width * height))
    place = float(middle[0]), float(middle[1])
    return SeenImage(width, height, cornerless, apart, place, float(np.degrees(np.arctan2(down, across))))
