"""Reads copies in which the class of an item is the name of its folder."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from emocap_pretrain.benchmarks.card import Target
from emocap_pretrain.benchmarks.item import Item
from emocap_pretrain.benchmarks.layouts import ClassFolders
from emocap_pretrain.benchmarks.reading.labels import Codes, LabelReader, Labels, plain
from emocap_pretrain.benchmarks.reading.layout_reader import Problem
from emocap_pretrain.benchmarks.reading.split_paths import first_missing, joined, lack_of_copy, split_path, values_of
from emocap_pretrain.benchmarks.reading.tree import Tree


class ClassFoldersReader:
    """Reads the layout `class_folders`.

    Every entry of a class folder, and every unknown folder, is an item or a problem.
    """

    def __init__(self, layout: ClassFolders, target: Target) -> None:
        self._layout = layout
        self._labels = LabelReader(target, Codes(layout.codes, layout.left_out))

    def fits(self, root: Path) -> str | None:
        tree = Tree(root)
        folders = [split_path(self._layout.folders, split, 1) for split in self._layout.folders]
        return lack_of_copy(first_missing(tree, [each]) or self._lacks_classes(tree, each) for each in folders)

    def items(self, root: Path, split: str, fold: int | None) -> Iterator[Item | Problem]:
        tree = Tree(root)
        folder = split_path(self._layout.folders, split, fold)
        tree.folder(folder)
        for code in tree.names(folder):
            path = joined(folder, code)
            if not tree.exists(path):
                yield Problem("path leads out of the folder", path)
                continue
            if not (root / path).is_dir():
                yield Problem("left out: its name does not fit the layout", path)
                continue
            labels = self._labels.labels(values_of(split, fold) | {"class": code}, path)
            names = tree.names(path)
            if isinstance(labels, Problem) and not names:
                yield labels
            for name in names:
                yield self._item(tree, f"{path}/{name}", labels)

    def _item(self, tree: Tree, path: str, labels: Labels | Problem) -> Item | Problem:
        if isinstance(labels, Problem):
            return Problem(labels.kind, path)
        if not tree.matches(path, self._layout.files):
            return Problem("left out: its name does not fit the layout", path)
        media = tree.media(path, self._layout.frames)
        return media if isinstance(media, Problem) else labels.item(path, media)

    def _lacks_classes(self, tree: Tree, folder: str) -> str | None:
        """Returns the path of the first class if the folder has none of the classes, and otherwise None.

        Raises:
            DataError: If the folder cannot be listed.
        """
        there = {plain(name) for name in tree.names(folder)}
        codes: Mapping[str, str] = self._layout.codes
        return None if any(plain(code) in there for code in codes) else joined(folder, next(iter(codes), "*"))
