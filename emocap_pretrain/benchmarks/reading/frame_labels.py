"""Reads a copy in which every frame of a video has a label: one file of labels for each video."""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from emocap_pretrain.benchmarks.card import Target, UnitsTarget
from emocap_pretrain.benchmarks.item import Item
from emocap_pretrain.benchmarks.layouts import FrameLabels
from emocap_pretrain.benchmarks.reading import texts
from emocap_pretrain.benchmarks.reading.labels import Codes, LabelReader, Labels, plain
from emocap_pretrain.benchmarks.reading.layout_reader import Problem
from emocap_pretrain.benchmarks.reading.tree import BadPath, Tree, filled, fixed_folder
from emocap_pretrain.errors import ConfigError, DataError

_UNIT = re.compile(r"AU0*([1-9]\d?)", re.IGNORECASE)


class FrameLabelsReader:
    """Reads the layout `frame_labels`. An item is a frame, and its group is the video.

    A row without an image is a problem: in Aff-Wild2 the frames in which no face was found have no image.
    """

    def __init__(self, layout: FrameLabels, target: Target) -> None:
        self._layout = layout
        self._target = target
        self._labels = LabelReader(target, Codes(layout.codes, layout.left_out))
        self._invalid = frozenset(map(plain, layout.invalid))
        self._unit_of = {name: int(unit[1]) for name in layout.names if (unit := _UNIT.fullmatch(name))}
        if isinstance(target, UnitsTarget) and sorted(self._unit_of.values()) != sorted(target.units):
            raise ConfigError(f"The action units of the card are not those of the layout: {', '.join(layout.names)}.")

    def fits(self, root: Path) -> str | None:
        """See `LayoutReader`. The first row of a file of labels must also be the header of the layout."""
        tree = Tree(root)
        folder = fixed_folder(self._layout.media)
        if folder and not tree.exists(folder):
            return folder
        missing = None
        for pattern in self._layout.files.values():
            first = next(tree.glob(pattern), None)
            if first is None:
                missing = missing or pattern
            elif self._layout.form == "rows" and self._header_problem(tree.labels(first)):
                return f"{first} with the first row {self._layout.header}"
            else:
                return None
        return missing

    def items(self, root: Path, split: str, fold: int | None) -> Iterator[Item | Problem]:
        """See `LayoutReader`."""
        tree = Tree(root)
        read = self._rows if self._layout.form == "rows" else self._document
        for path in self._files(tree, split, fold):
            yield from read(tree, path)

    def _files(self, tree: Tree, split: str, fold: int | None) -> list[str]:
        pattern = self._layout.files.get(split)
        if pattern is None:
            raise DataError(f"the layout has no files of the split {split}.")
        found = list(tree.glob(pattern))
        if not found:
            raise DataError(f"{tree.root} has no file {pattern}.")
        if self._layout.folds is None:
            return found
        if fold is None or not 1 <= fold <= self._layout.folds or split not in {"train", "test"}:
            raise DataError(f"the layout has the splits train and test of the folds 1 to {self._layout.folds}.")
        return [
            path for place, path in enumerate(found) if (place % self._layout.folds == fold - 1) == (split == "test")
        ]

    def _rows(self, tree: Tree, path: str) -> Iterator[Item | Problem]:
        layout, place = self._layout, tree.labels(path)
        if problem := self._header_problem(place):
            raise DataError(problem)
        skipped = 0 if layout.header is None else 1
        images = _Images(tree)
        for number, cells in islice(texts.rows(place, "utf-8", ","), skipped, None):
            # A blank row counts: the number of a frame is that of its row.
            frame = layout.first + number - 1 - skipped
            row = f"{path}, row {number}"
            if len(cells) != len(layout.names):
                yield Problem("wrong number of values", f"{row}: {len(cells)} for {', '.join(layout.names)}")
                continue
            values = dict(zip(layout.names, cells, strict=True))
            yield self._item(images, values, {"video": PurePosixPath(path).stem, "frame": str(frame)}, row)

    def _document(self, tree: Tree, path: str) -> Iterator[Item | Problem]:
        found = texts.document(tree.labels(path))
        frames = found.get("frames") if isinstance(found, dict) else None
        if not isinstance(frames, dict):
            raise DataError(f"{tree.root / path} has no object `frames`.")
        if not frames:
            yield Problem("video without frames", path)
        images = _Images(tree)
        parsed = PurePosixPath(path)
        for frame in sorted(frames):
            place = f"{path}, frame {frame}"
            values = _values(frames[frame], self._layout.names)
            if values is None:
                yield Problem("wrong number of values", f"{place}: {', '.join(self._layout.names)} are needed")
                continue
            fields = {"video": parsed.stem, "folder": str(parsed.parent), "frame": frame}
            yield self._item(images, values, fields, place)

    def _item(
        self, images: "_Images", values: Mapping[str, str], fields: Mapping[str, str], place: str
    ) -> Item | Problem:
        if any(plain(value) in self._invalid for value in values.values()):
            return Problem("left out: the frame has no valid label", place)
        try:
            path = filled(self._layout.media, fields)
        except BadPath as error:
            return Problem("path of the frame cannot be made", f"{place}: {error}")
        labels = self._units(values, place) if isinstance(self._target, UnitsTarget) else None
        labels = labels or self._labels.labels(values, place)
        if isinstance(labels, Problem):
            return labels
        media = images.at(path)
        return media if isinstance(media, Problem) else labels.item(path, media, fields["video"])

    def _units(self, values: Mapping[str, str], place: str) -> Labels | Problem:
        shown: dict[int, bool] = {}
        for name, value in values.items():
            code = plain(value)
            if code not in {"0", "1"}:
                return Problem("an action unit is neither 0 nor 1", f"{place}: {name}={value[:20]!r}")
            shown[self._unit_of[name]] = code == "1"
        return Labels(units=shown)

    def _header_problem(self, place: Path) -> str | None:
        """Returns what is wrong with the first row; None if it is the header of the layout, or if the layout has none.

        Raises:
            DataError: If the file cannot be read.
        """
        expected = self._layout.header
        if expected is None:
            return None
        _, first = next(texts.rows(place, "utf-8", ","), (1, [""]))
        if [cell.strip().casefold() for cell in first] == [cell.strip().casefold() for cell in expected.split(",")]:
            return None
        return f"{place}: the first row is {','.join(first)[:200]!r}, and not {expected!r}: another order of labels?"


class _Images:
    """Finds the images of frames. Each folder is listed once, because a video may have many thousand frames."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._names: dict[str, frozenset[str]] = {}

    def at(self, path: str) -> Path | Problem:
        parsed = PurePosixPath(path)
        folder = str(parsed.parent)
        if folder not in self._names:
            exists = self._tree.exists(folder) and (self._tree.root / folder).is_dir()
            self._names[folder] = frozenset(self._tree.names(folder)) if exists else frozenset()
        return self._tree.file(path) if parsed.name in self._names[folder] else Problem("missing image", path)


def _values(labels: Any, names: tuple[str, ...]) -> dict[str, str] | None:
    if not isinstance(labels, dict) or not all(name in labels for name in names):
        return None
    return {name: str(labels[name]) for name in names}
