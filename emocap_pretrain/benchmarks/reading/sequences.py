"""Reads copies in which the last frames of a sequence show the expression that an annotation file names, as in CK+."""

import re
from collections.abc import Iterator
from pathlib import Path

from emocap_pretrain.benchmarks.card import Target
from emocap_pretrain.benchmarks.item import Item
from emocap_pretrain.benchmarks.layouts import Sequences
from emocap_pretrain.benchmarks.reading import texts
from emocap_pretrain.benchmarks.reading.labels import Codes, LabelReader
from emocap_pretrain.benchmarks.reading.layout_reader import Problem
from emocap_pretrain.benchmarks.reading.split_paths import first_missing, values_of
from emocap_pretrain.benchmarks.reading.tree import BadPath, Tree, filled, fixed_folder

LARGEST_ANNOTATION = 4096
"""Bytes of a file that holds one number."""


class SequencesReader:
    """Reads the layout `sequences`. The person of a sequence is the group of its items.

    A sequence without an annotation file has no label, so it is not part of the benchmark.
    """

    def __init__(self, layout: Sequences, target: Target) -> None:
        self._layout = layout
        self._labels = LabelReader(target, Codes(layout.codes, layout.left_out))
        self._pattern = re.compile(layout.pattern)

    def fits(self, root: Path) -> str | None:
        return first_missing(Tree(root), [fixed_folder(self._layout.files), fixed_folder(self._layout.media)])

    def items(self, root: Path, split: str, fold: int | None) -> Iterator[Item | Problem]:
        tree = Tree(root)
        tree.folder(fixed_folder(self._layout.files))
        for path in tree.glob(self._layout.files):
            yield from self._items_of(tree, path, values_of(split, fold))

    def _items_of(self, tree: Tree, path: str, constant: dict[str, str]) -> Iterator[Item | Problem]:
        parsed = self._pattern.fullmatch(path)
        file = tree.file(path, missing="missing label")
        if parsed is None or isinstance(file, Problem):
            yield file if isinstance(file, Problem) else Problem("left out: its name does not fit the layout", path)
            return
        code = texts.small(file, LARGEST_ANNOTATION).decode("utf-8-sig", errors="replace").strip()
        labels = self._labels.labels({"class": code}, path)
        if isinstance(labels, Problem):
            yield labels
            return
        groups = {name: value for name, value in parsed.groupdict().items() if value is not None}
        frames = self._frames(tree, constant | groups)
        if isinstance(frames, Problem):
            yield frames
            return
        for frame in frames:
            yield labels.item(frame.relative_to(tree.root).as_posix(), frame, groups.get("person"))

    def _frames(self, tree: Tree, values: dict[str, str]) -> tuple[Path, ...] | Problem:
        try:
            folder = filled(self._layout.media, values)
        except BadPath as error:
            return Problem(f"the path of the frames cannot be made ({error})", self._layout.media)
        frames = tree.frames(folder, self._layout.frames or "*")
        if isinstance(frames, Problem) or len(frames) >= self._layout.last:
            return frames if isinstance(frames, Problem) else frames[-self._layout.last :]
        return Problem("too few frames", f"{folder}: {len(frames)}")
