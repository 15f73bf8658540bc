"""Reads copies whose items are the rows of text files."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from emocap_pretrain.benchmarks.card import Target
from emocap_pretrain.benchmarks.item import CroppedImage, Item, Media
from emocap_pretrain.benchmarks.layouts import Table
from emocap_pretrain.benchmarks.reading import texts
from emocap_pretrain.benchmarks.reading.labels import Codes, LabelReader, Labels, vote_labels
from emocap_pretrain.benchmarks.reading.layout_reader import Problem
from emocap_pretrain.benchmarks.reading.split_paths import first_missing, lack_of_copy, split_path, values_of
from emocap_pretrain.benchmarks.reading.tree import BadPath, Tree, filled, fixed_folder
from emocap_pretrain.errors import DataError

_PIXELS = re.compile(r"\s*(-?\d{1,6})(\.0*)?\s*")


class TableReader:
    """Reads the layout `table`, row by row.

    If several splits share a file, each row belongs to one of them. A row that belongs to none of them is a problem of
    the first split, so that it is counted once.
    """

    def __init__(self, layout: Table, target: Target) -> None:
        self._layout = layout
        self._codes = Codes(layout.codes, layout.left_out)
        self._labels = LabelReader(target, self._codes)

    def fits(self, root: Path) -> str | None:
        tree = Tree(root)
        return lack_of_copy(first_missing(tree, self._paths(split)) for split in self._layout.files)

    def _paths(self, split: str) -> list[str]:
        file = split_path(self._layout.files, split, 1)
        return [file, fixed_folder(self._layout.media.replace("{folder}", str(PurePosixPath(file).parent)))]

    def items(self, root: Path, split: str, fold: int | None) -> Iterator[Item | Problem]:
        tree = Tree(root)
        file = split_path(self._layout.files, split, fold)
        rows = texts.rows(tree.labels(file), self._layout.encoding, self._layout.separator)
        places = self._places(file, next(rows, (0, []))[1] if self._layout.header else [])
        constant = values_of(split, fold) | {"folder": str(PurePosixPath(file).parent)}
        for number, row in rows:
            place = f"{file}:{number}"
            if max(places.values()) >= len(row):
                yield Problem("a row has too few cells", place)
                continue
            cells = {name: row[column].strip() for name, column in places.items()}
            if self._is_of(split, cells):
                yield self._item(tree, constant | cells, place, number)
            elif self._is_of_no_split(split, cells):
                yield Problem("unknown split", f"{place}: {cells[self._layout.split_column or ''][:80]!r}")

    def _item(self, tree: Tree, cells: Mapping[str, str], place: str, number: int) -> Item | Problem:
        labels = self._row_labels(cells, place)
        if isinstance(labels, Problem):
            return labels
        file = cells.get("file", "")
        if self._layout.after is not None:
            _, is_there, file = file.rpartition(self._layout.after)
            if not is_there:
                return Problem(f"the path has no folder {self._layout.after}", place)
        try:
            path = filled(self._layout.media, {**cells, "file": file, "stem": _stem(file)})
        except BadPath as error:
            return Problem(f"the path of the image cannot be made ({error})", place)
        found = tree.media(path, self._layout.frames)
        if isinstance(found, Problem):
            return found
        media = self._boxed(found, cells, place)
        if isinstance(media, Problem):
            return media
        # Several rows may be about the faces of one image.
        key = path if self._layout.box is None else f"{path}#{number}"
        return labels.item(key, media, cells[self._layout.group] if self._layout.group else None)

    def _row_labels(self, cells: Mapping[str, str], place: str) -> Labels | Problem:
        if self._layout.rule is None:
            return self._labels.labels(cells, place)
        votes = {name: cells[name] for name in self._layout.votes}
        return vote_labels(self._codes, votes, self._layout.rule, place)

    def _boxed(self, media: Media, cells: Mapping[str, str], place: str) -> Media | Problem:
        if self._layout.box is None or not isinstance(media, Path):
            return media
        names = ("right", "bottom") if self._layout.box == "corners" else ("width", "height")
        read = [_PIXELS.fullmatch(cells[name]) for name in ("left", "top", *names)]
        pixels = [int(found[1]) for found in read if found is not None]
        if len(pixels) < len(read):
            return Problem("the rectangle of the face is not given in pixels", place)
        left, top, right, bottom = pixels
        if self._layout.box == "size":
            right, bottom = left + right, top + bottom
        # A detector may place a part of the rectangle outside of the image. Only what is left of the image or above it
        # is cut here, because the size of the image is not known before it is decoded.
        crop = CroppedImage(media, max(left, 0), max(top, 0), right, bottom)
        is_empty = crop.right <= crop.left or crop.bottom <= crop.top
        return Problem("the rectangle of the face is empty", place) if is_empty else crop

    def _places(self, file: str, header: list[str]) -> dict[str, int]:
        """Returns the number of each column.

        Raises:
            DataError: If the header does not name a column.
        """
        named = {name.strip(): number for number, name in enumerate(header)}
        lacking = [each for each in self._layout.columns.values() if isinstance(each, str) and each not in named]
        if lacking:
            raise DataError(f"{file} has no column {lacking[0]!r}; its first row is {', '.join(named)[:200]!r}.")
        return {name: named[at] if isinstance(at, str) else at for name, at in self._layout.columns.items()}

    def _is_of(self, split: str, cells: Mapping[str, str]) -> bool:
        column = self._layout.split_column
        return column is None or cells[column].startswith(self._layout.split_values[split])

    def _is_of_no_split(self, split: str, cells: Mapping[str, str]) -> bool:
        is_first = split == next(iter(self._layout.split_values))
        return is_first and not any(self._is_of(each, cells) for each in self._layout.split_values)


def _stem(file: str) -> str:
    """Returns a path without its suffix, with pathlib's rule of what a suffix is.

    >>> [_stem(each) for each in ("a.b/c.tar.gz", "a.b/c", "a/.hidden", "c.")]
    ['a.b/c.tar', 'a.b/c', 'a/.hidden', 'c.']
    """
    # Every row of a table passes here, and pathlib takes thirty times as long.
    before, _, suffix = file.rpartition(".")
    has_suffix = suffix and "/" not in suffix and before and not before.endswith("/")
    return before if has_suffix else file
