"""Reads copies of FER2013, in which the pixels of an image are a cell of a table, with or without the votes of FER+."""

from collections.abc import Iterator, Mapping
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
    """Reads the layout `pixel_table`, row by row. A row of an unknown usage is a problem of the first split."""

    def __init__(self, layout: PixelTable, target: Target) -> None:
        self._layout = layout
        self._codes = Codes(layout.codes, layout.left_out)
        self._labels = LabelReader(target, self._codes)

    def fits(self, root: Path) -> str | None:
        return first_missing(Tree(root), [self._layout.file, *([self._layout.votes] if self._layout.votes else [])])

    def items(self, root: Path, split: str, fold: int | None) -> Iterator[Item | Problem]:
        split_path(self._layout.usages, split, fold)
        is_first = split == next(iter(self._layout.usages))
        for place, row, votes in self._rows(Tree(root)):
            usage = row["usage"]
            if usage == self._layout.usages[split]:
                yield self._item(row, votes, place)
            elif is_first and usage not in self._layout.usages.values():
                yield Problem("unknown split", f"{place}: {usage[:80]!r}")

    def _item(self, row: Row, votes: Row, place: str) -> Item | Problem:
        labels = self._row_labels(row, votes, place)
        if isinstance(labels, Problem):
            return labels
        image = _image(row["pixels"], self._layout.side)
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
        table = _named(tree, layout.file, needed)
        if layout.votes is None:
            for place, row in table:
                yield place, row, {}
            return
        codes = [code.casefold() for code in (*layout.codes, *layout.left_out)]
        for ours, theirs in zip_longest(table, _named(tree, layout.votes, ("usage", *codes))):
            if ours is None or theirs is None:
                raise DataError(f"{layout.file} and {layout.votes} have different numbers of rows.")
            if ours[1]["usage"] != theirs[1]["usage"]:
                raise DataError(
                    f"{ours[0]} and {theirs[0]} are of different usages, so the tables do not belong together."
                )
            yield ours[0], ours[1], theirs[1]


def _named(tree: Tree, file: str, needed: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
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


def _image(pixels: str, side: int) -> UInt8[np.ndarray, "height width"] | None:
    try:
        content = bytes(map(int, pixels.split()))
    except ValueError:  # Not a number, or not between 0 and 255.
        return None
    return np.frombuffer(content, np.uint8).reshape(side, side) if len(content) == side * side else None
