"""Reads FER2013, and the votes of FER+ on its images, from the CSV files in which both are published.

fer2013.csv of the Kaggle challenge has the columns `emotion` (0 to 6), `pixels` (48 x 48 numbers) and `Usage`.
fer2013new.csv of FER+ has the votes of ten people in the rows of the same numbers, and the names of the images of FER+.

A folder of images can take the place of fer2013.csv:

    train/angry/Training_3908.jpg     FER2013: the folder names the class, and the file names the usage
    FER2013Train/fer0000000.png       FER+: as its program `generate_training_data.py` writes the images
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from emocap_shards.decode import decode_image
from emocap_shards.errors import ImageError, RecordError
from emocap_shards.writing.row import BadRow, LocalFile, key_of
from emocap_shards.writing.sources.folder import walk_images
from jaxtyping import UInt8

from emocap_pretrain.benchmarks.catalogue import card
from emocap_pretrain.benchmarks.layouts import PixelTable
from emocap_pretrain.benchmarks.reading.pixel_table import Row, image_of, joined, named_rows
from emocap_pretrain.benchmarks.reading.tree import Tree
from emocap_pretrain.captions.ferplus.votes import UNSURE, Votes
from emocap_pretrain.captions.grammar.emotions import EMOTIONS
from emocap_pretrain.errors import DataError

SIDE_PX = 48
_FOLDERS = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
"""The folders of the images of FER+, by usage."""
_USAGE = re.compile(rf"({'|'.join(_FOLDERS)})_")
_CLASSES = {"angry": "anger", "happy": "happiness", "sad": "sadness"}
"""The classes of FER2013 whose folders often have other names."""


@dataclass(frozen=True, slots=True, eq=False)
class PublishedImages:
    """Holds the images of FER2013 in memory, about 80 MB; row `i` of every field belongs to the same image.

    Attributes:
        rows: The name of the image in the source, which `emocap landmarks` gives it too: "fer2013-00000" is the first
            row of fer2013.csv, and "FER2013Train/fer0000000.png" is a file. For a folder of FER2013 it is a key.
        names: The name of the image in FER+; the same as `rows` without FER+.
        images: The pixels.
        usage: "Training", "PublicTest" or "PrivateTest".
        emotions: The class of FER2013, such as "anger"; "" if the source does not say it.
        votes: The votes of FER+; each is empty without FER+.
        left_out: Number of rows that FER+ gives no name, because their images show no face, or of files in a folder of
            FER2013 that are not images.
    """

    rows: Sequence[str]
    names: Sequence[str]
    images: UInt8[np.ndarray, "images height width"]
    usage: Sequence[str]
    emotions: Sequence[str]
    votes: Sequence[Votes]
    left_out: int = 0


def row_name(number: int) -> str:
    """Returns the name of a row of fer2013.csv; the first row has the number 0."""
    return f"fer2013-{number:05d}"


def read_fer2013(source: Path) -> PublishedImages:
    """Reads fer2013.csv, or a folder of its images.

    Raises:
        DataError: If there is no such table or folder. The message names the row or the file.
    """
    if source.is_dir():
        return _collected(_of_classes(source), source)
    rows = named_rows(Tree(source.parent), source.name, ("pixels", "usage", "emotion"))
    return _collected(_of_rows((place, row, None) for place, row in rows), source)


def read_ferplus(source: Path, votes: Path) -> PublishedImages:
    """Reads fer2013.csv or the folder of the images of FER+, and the votes and names of the images in fer2013new.csv.

    Raises:
        DataError: If there are no such tables or folders, or if they do not belong together.
    """
    needed = ("usage", "image name", *(name.casefold() for name in (*EMOTIONS, *UNSURE)))
    theirs = named_rows(Tree(votes.parent), votes.name, needed)
    if source.is_dir():
        return _collected(_of_names(source, theirs), source)
    ours = named_rows(Tree(source.parent), source.name, ("pixels", "usage", "emotion"))
    return _collected(_of_rows(joined(ours, theirs, (source.name, votes.name))), source)


class _Image(NamedTuple):
    """Holds one image; `PublishedImages` describes the fields."""

    row: str
    name: str
    pixels: UInt8[np.ndarray, "height width"]
    usage: str
    emotion: str
    votes: Votes


def _collected(images: Iterable[_Image | None], source: Path) -> PublishedImages:
    found = list(images)
    kept = [each for each in found if each is not None]
    if not kept:
        raise DataError(f"{source} has no images.")
    rows, names, pixels, usage, emotions, votes = zip(*kept, strict=True)
    if missing := [each for each in _FOLDERS if each not in usage]:
        raise DataError(
            f"{source} has no image of the usage {' or '.join(missing)}, so it is a part of FER2013: give the whole "
            "one, whose table has 35,887 rows."
        )
    return PublishedImages(rows, names, np.stack(pixels), usage, emotions, votes, len(found) - len(kept))


def _of_rows(rows: Iterable[tuple[str, Row, Row | None]]) -> Iterator[_Image | None]:
    """Yields the image of each row of fer2013.csv; None for a row that FER+ gives no name.

    A row comes with its place for messages, and with the row of fer2013new.csv if FER+ is read.
    """
    layout = card("fer2013").layouts[0]
    assert isinstance(layout, PixelTable)
    for number, (place, row, counts) in enumerate(rows):
        if counts is not None and not counts["image name"]:
            yield None
            continue
        image = image_of(row["pixels"], SIDE_PX)
        if image is None:
            raise DataError(f"{place}: the pixels are not {SIDE_PX} x {SIDE_PX} numbers of 0 to 255.")
        _check_usage(row["usage"], place)
        if row["emotion"] not in layout.codes:
            raise DataError(f"{place}: the emotion {row['emotion'][:80]!r} is not a number of 0 to 6.")
        name = row_name(number)
        votes, given = ({}, name) if counts is None else (_votes(counts, place), counts["image name"])
        yield _Image(name, given, image, row["usage"], layout.codes[row["emotion"]], votes)


def _of_names(folder: Path, rows: Iterable[tuple[str, Row]]) -> Iterator[_Image | None]:
    """Yields the image of each row of fer2013new.csv, which names a file; None for a row without a name."""
    for place, counts in rows:
        name, usage = counts["image name"], counts["usage"]
        _check_usage(usage, place)
        path = f"{_FOLDERS[usage]}/{name}"
        yield _Image(path, name, _pixels(folder, path), usage, "", _votes(counts, place)) if name else None


def _of_classes(folder: Path) -> Iterator[_Image | None]:
    """Yields the images of a folder of FER2013 that names their classes and usages; None for each other file."""
    layout, others = card("fer2013").layouts[0], Counter[str]()
    for path in walk_images(str(folder), others):
        if isinstance(path, BadRow):
            raise DataError(f"{path}.")
        usage = _USAGE.match(PurePath(path).name)
        if usage is None:
            raise DataError(
                f"{folder / path}: the name does not begin with {', '.join(_FOLDERS)}, so it does not say the split; "
                "pack the folder of each split by itself (emocap pack train OUT --label emotion)."
            )
        name = PurePath(path).parent.name.casefold()
        emotion = _CLASSES.get(name, name)
        if emotion not in layout.codes.values():
            raise DataError(f"{folder / path}: its folder is none of {', '.join(layout.codes.values())}.")
        key = key_of(path)
        yield _Image(key, key, _pixels(folder, path), usage[1], emotion, {})
    yield from (None for _ in range(others.total()))


def _check_usage(usage: str, place: str) -> None:
    if usage not in _FOLDERS:
        raise DataError(f"{place}: the usage {usage[:80]!r} is not one of {', '.join(_FOLDERS)}.")


def _pixels(folder: Path, path: str) -> UInt8[np.ndarray, "height width"]:
    """Returns the pixels of a grey image in a folder.

    Raises:
        DataError: If the file cannot be read, or is not such an image.
    """
    try:
        pixels = decode_image(LocalFile(os.path.realpath(folder), path).read())
    except (RecordError, ImageError) as error:
        raise DataError(f"{folder / path}: {error}.") from error
    if pixels.shape != (SIDE_PX, SIDE_PX, 3) or (pixels != pixels[..., :1]).any():
        raise DataError(f"{folder / path} is not a grey image of {SIDE_PX} x {SIDE_PX} pixels.")
    return pixels[..., 0]


def _votes(row: Row, place: str) -> Votes:
    try:
        return {name: int(row[name.casefold()]) for name in (*EMOTIONS, *UNSURE)}
    except ValueError as error:
        raise DataError(f"{place}: the votes are not whole numbers.") from error
