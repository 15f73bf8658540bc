"""Reads FER2013, and the votes of FER+ on its images, from the CSV files in which both are published.

fer2013.csv of the Kaggle challenge has the columns `emotion` (0 to 6), `pixels` (48 x 48 numbers) and `Usage`.
fer2013new.csv of FER+ has the votes of ten people in the rows of the same numbers, and the names of the images of FER+.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from emocap_pretrain.benchmarks.catalogue import card
from emocap_pretrain.benchmarks.layouts import PixelTable
from emocap_pretrain.benchmarks.reading.pixel_table import Row, image_of, joined, named_rows
from emocap_pretrain.benchmarks.reading.tree import Tree
from emocap_pretrain.captions.ferplus.votes import UNSURE, Votes
from emocap_pretrain.captions.grammar.emotions import EMOTIONS
from emocap_pretrain.errors import DataError

SIDE_PX = 48


@dataclass(frozen=True, slots=True, eq=False)
class PublishedImages:
    """Holds the images of FER2013 in memory, about 80 MB; row `i` of every field belongs to the same image.

    Attributes:
        rows: A name that says the number of the row in fer2013.csv, from 0: "fer2013-00000". launch/landmarks.py gives
            this name to the rows of the file.
        names: The name of the image in FER+; the same as `rows` without FER+.
        images: The pixels.
        usage: "Training", "PublicTest" or "PrivateTest".
        emotions: The class of FER2013, such as "anger".
        votes: The votes of FER+; empty without FER+.
        left_out: Number of rows that FER+ gives no name, because their images show no face. They are left out.
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


def read_fer2013(table: Path) -> PublishedImages:
    """Reads fer2013.csv.

    Raises:
        DataError: If the file is not such a table. The message names the row.
    """
    rows = named_rows(Tree(table.parent), table.name, ("pixels", "usage", "emotion"))
    return _read(((place, row, None) for place, row in rows))


def read_ferplus(table: Path, votes: Path) -> PublishedImages:
    """Reads fer2013.csv, and from fer2013new.csv the votes and the names of the images.

    Raises:
        DataError: If the files are not such tables, or if they do not belong together.
    """
    ours = named_rows(Tree(table.parent), table.name, ("pixels", "usage", "emotion"))
    needed = ("usage", "image name", *(name.casefold() for name in (*EMOTIONS, *UNSURE)))
    theirs = named_rows(Tree(votes.parent), votes.name, needed)
    return _read(joined(ours, theirs, (table.name, votes.name)))


def _read(rows: Iterator[tuple[str, Row, Row | None]]) -> PublishedImages:
    layout = card("fer2013").layouts[0]
    assert isinstance(layout, PixelTable)
    numbers, names, usage, emotions = list[str](), list[str](), list[str](), list[str]()
    images, votes, left_out = list[UInt8[np.ndarray, "height width"]](), list[Votes](), 0
    for number, (place, row, counts) in enumerate(rows):
        if counts is not None and not counts["image name"]:
            left_out += 1
            continue
        image = image_of(row["pixels"], SIDE_PX)
        if image is None:
            raise DataError(f"{place}: the pixels are not {SIDE_PX} x {SIDE_PX} numbers of 0 to 255.")
        if row["usage"] not in layout.usages.values():
            usages = ", ".join(layout.usages.values())
            raise DataError(f"{place}: the usage {row['usage'][:80]!r} is not one of {usages}.")
        if row["emotion"] not in layout.codes:
            raise DataError(f"{place}: the emotion {row['emotion'][:80]!r} is not a number of 0 to 6.")
        numbers.append(row_name(number))
        names.append(row_name(number) if counts is None else counts["image name"])
        images.append(image)
        usage.append(row["usage"])
        emotions.append(layout.codes[row["emotion"]])
        votes.extend([] if counts is None else [_votes(counts, place)])
    if not images:
        raise DataError("the table has no images.")
    return PublishedImages(numbers, names, np.stack(images), usage, emotions, votes, left_out)


def _votes(row: Row, place: str) -> Votes:
    try:
        return {name: int(row[name.casefold()]) for name in (*EMOTIONS, *UNSURE)}
    except ValueError as error:
        raise DataError(f"{place}: the votes are not whole numbers.") from error
