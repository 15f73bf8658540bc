"""Reads copies of FER2013, in which the pixels of an image are a cell of a table, with or without the votes of FER+."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from emocap_pretrain.benchmarks.card import Target
from emocap_pretrain.benchmarks.item import Item
from emocap_pretrain.benchmarks.layouts import PixelTable
from emocap_pretrain.benchmarks.reading import texts
from emocap_pretrain.benchmarks.reading.labels import Codes, LabelReader, Labels, vote_labels
from emocap_pretrain.benchmarks.reading.layout_reader import Problem
from emocap_pretrain.benchmarks.reading.split_paths import first_missing, split_path
from emocap_pretrain.benchmarks.reading.tree import Tree
from emocap_pretrain.errors import DataError

Row = Mapping[str, str]


class PixelTableReader:
    """Reads the layout `pixel_table`. A row whose usage is that of no split is a problem of the first split.

    All splits are rows of the same file of 300 MB. So the file is read only once, and the items of all splits stay in
    memory, which takes 100 MB.
    """

    def __init__(self, layout: PixelTable, target: Target) -> None:
        self._layout = layout
        self._codes = Codes(layout.codes, layout.left_out)
        self._labels = LabelReader(target, self._codes)
        self._found: dict[Path, Mapping[str, Sequence[Item | Problem]]] = {}  # By the folder of the copy.

    def fits(self, root: Path) -> str | None:
        return first_missing(Tree(root), [self._layout.file, *([self._layout.votes] if self._layout.votes else [])])

    def items(self, root: Path, split: str, fold: int | None) -> Iterator[Item | Problem]:
        split_path(self._layout.usages, split, fold)
        if root not in self._found:
            self._found[root] = self._splits(root)
        yield from self._found[root][split]

    def _splits(self, root: Path) -> Mapping[str, Sequence[Item | Problem]]:
        found: dict[str, list[Item | Problem]] = {split: [] for split in self._layout.usages}
        of_usage = {usage: found[split] for split, usage in self._layout.usages.items()}
        first = next(iter(found.values()))
        for place, row, votes in self._rows(Tree(root)):
            usage = row["usage"]
            if usage in of_usage:
                of_usage[usage].append(self._item(row, votes, place))
            else:
                first.append(Problem("unknown split", f"{place}: {usage[:80]!r}"))
        return found

    def _item(self, row: Row, votes: Row, place: str) -> Item | Problem:
        labels = self._row_labels(row, votes, place)
        if isinstance(labels, Problem):
            return labels
        image = image_of(row["pixels"], self._layout.side)
        return Problem("the pixels are not an image", place) if image is None else labels.item(place, image)

    def _row_labels(self, row: Row, votes: Row, place: str) -> Labels | Problem:
        if self._layout.rule is None:
            return self._labels.labels({"class": row["emotion"]}, place)
        # The order of the card is that of the columns, and decides between equal numbers of votes.
        codes = (*self._layout.codes, *self._layout.left_out)
        return vote_labels(self._codes, {code: votes[code.casefold()] for code in codes}, self._layout.rule, place)

    def _rows(self, tree: Tree) -> Iterator[tuple[str, Row, Row]]:
        """Yields the place and the cells of each row, and its votes.

        Raises:
            DataError: If the two tables do not belong together.
        """
        layout = self._layout
        needed = ("pixels", "usage") if layout.votes else ("pixels", "usage", "emotion")
        table = named_rows(tree, layout.file, needed)
        if layout.votes is None:
            for place, row in table:
                yield place, row, {}
            return
        codes = [code.casefold() for code in (*layout.codes, *layout.left_out)]
        yield from joined(table, named_rows(tree, layout.votes, ("usage", *codes)), (layout.file, layout.votes))


def joined(
    table: Iterable[tuple[str, Row]], votes: Iterable[tuple[str, Row]], files: tuple[str, str]
) -> Iterator[tuple[str, Row, Row]]:
    """Yields the place and the cells of each row of `table`, and the row of `votes` with the same number.

    FER+ belongs to FER2013 row by row; the names of its images do not say the rows. `files` are the names of both
    tables for messages.

    Raises:
        DataError: If the tables have different numbers of rows, or if two rows differ in their usage.
    """
    for ours, theirs in zip_longest(table, votes):
        if ours is None or theirs is None:
            raise DataError(f"{files[0]} and {files[1]} have different numbers of rows.")
        if ours[1]["usage"] != theirs[1]["usage"]:
            raise DataError(f"{ours[0]} and {theirs[0]} are of different usages, so the tables do not belong together.")
        yield ours[0], ours[1], theirs[1]


def named_rows(tree: Tree, file: str, needed: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    """Yields the place of each row, and its cells by the names of the columns in lower case.

    Raises:
        DataError: If a column is missing, or if a row has another number of cells than the header.
    """
    rows = texts.rows(tree.labels(file), "utf-8", ",")
    header = [name.strip().casefold() for name in next(rows, (0, []))[1]]
    if lacking := [name for name in needed if name not in header]:
        raise DataError(f"{file} has no column {lacking[0]!r}; its first row is {', '.join(header)[:200]!r}.")
    for number, row in rows:
        if len(row) != len(header):
            raise DataError(f"{file}:{number} has {len(row)} cells, but the header has {len(header)}.")
        yield f"{file}:{number}", {name: cell.strip() for name, cell in zip(header, row, strict=True)}


def image_of(pixels: str, side: int) -> UInt8[np.ndarray, "height width"] | None:
    """Returns the square image whose pixels a cell lists; None if the cell holds anything else.

    `side` is the width and height in pixels. The cell has one number of 0 to 255 for each pixel, row by row.
    """
    values = _of_digits(pixels)
    if values is None:
        try:
            values = np.frombuffer(bytes(map(int, pixels.split())), np.uint8)
        except ValueError:  # Not a number, or not between 0 and 255.
            return None
    return values.reshape(side, side) if len(values) == side * side else None


def _of_digits(text: str) -> UInt8[np.ndarray, " numbers"] | None:
    """Returns the numbers in a text such as "0 17 255"; None if the text has another form.

    The numbers have one to three digits, are at most 255, and have a single blank between them. This function reads the
    80 million numbers of FER2013 in 2 s of CPU time. Making a Python number of each takes 9 s.
    """
    codes = np.frombuffer(text.encode("ascii", errors="replace"), np.uint8)
    is_blank = codes == ord(" ")
    digits = codes.astype(np.int16) - ord("0")
    if not (is_blank | ((digits >= 0) & (digits <= 9))).all():
        return None
    ends = np.append(np.flatnonzero(is_blank), len(codes))
    lengths = np.diff(ends, prepend=-1) - 1
    if lengths.min() < 1 or lengths.max() > 3:
        return None
    # A number of one digit has no tens, and the digit at that place belongs to another number.
    tens, hundreds = (np.where(lengths > place, digits[ends - 1 - place], 0) for place in (1, 2))
    values = digits[ends - 1] + 10 * tens + 100 * hundreds
    return None if values.max() > 255 else values.astype(np.uint8)
