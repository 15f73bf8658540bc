"""Reads a copy in which the path of each file says its class and its person."""

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from emocap_pretrain.benchmarks.card import Target
from emocap_pretrain.benchmarks.item import Item
from emocap_pretrain.benchmarks.layouts import FileNames
from emocap_pretrain.benchmarks.reading.labels import Codes, LabelReader, plain
from emocap_pretrain.benchmarks.reading.layout_reader import Problem
from emocap_pretrain.benchmarks.reading.tree import Tree
from emocap_pretrain.errors import DataError

TRAIN, TEST = "train", "test"


class FileNamesReader:
    """Reads the layout `file_names`.

    If the layout has folds, the split `test` of a fold has the items of the fold's persons, and the split `train` has
    those of all persons of the other folds. Items of a person who is in no fold are left out. Without folds, every
    split of the card has all items.
    """

    def __init__(self, layout: FileNames, target: Target) -> None:
        self._layout = layout
        self._pattern = re.compile(layout.pattern)
        self._labels = LabelReader(target, Codes(layout.codes, layout.left_out))
        self._folds = tuple(frozenset(map(plain, persons)) for persons in layout.folds)
        # All folds and splits have the same files, so the folders are listed once for all of them.
        self._paths = lru_cache(maxsize=1)(self._listed)

    def fits(self, root: Path) -> str | None:
        """See `LayoutReader`. The first file must also follow the pattern of names."""
        first = next(Tree(root).glob(self._layout.files), None)
        return None if first is not None and self._pattern.fullmatch(first) else self._layout.files

    def items(self, root: Path, split: str, fold: int | None) -> Iterator[Item | Problem]:
        """See `LayoutReader`."""
        tested = self._tested(split, fold)
        tree = Tree(root)
        for path in self._paths(root):
            match = self._pattern.fullmatch(path)
            if match is None:
                yield Problem("the name does not follow the pattern", path)
                continue
            person = match.groupdict().get("person")
            if tested is None:
                yield self._item(tree, path, match, person)
            elif not self._is_in_a_fold(person):
                yield Problem("left out: the person is in no fold", path)
            elif (plain(person or "") in tested) == (split == TEST):
                yield self._item(tree, path, match, person)

    def _listed(self, root: Path) -> tuple[str, ...]:
        """Returns the paths of all files.

        Raises:
            DataError: If there is no file.
        """
        if not (found := tuple(Tree(root).glob(self._layout.files))):
            raise DataError(f"{root} has no file {self._layout.files}.")
        return found

    def _tested(self, split: str, fold: int | None) -> frozenset[str] | None:
        """Returns the persons of the fold's test split; None without folds.

        Raises:
            DataError: If the layout has folds, and not this fold or this split.
        """
        if not self._folds:
            return None
        if fold is None or not 1 <= fold <= len(self._folds):
            raise DataError(f"the layout has the folds 1 to {len(self._folds)}, and no fold {fold}.")
        if split not in {TRAIN, TEST}:
            raise DataError(f"the layout has the splits {TRAIN} and {TEST}, and no split {split}.")
        return self._folds[fold - 1]

    def _is_in_a_fold(self, person: str | None) -> bool:
        return person is not None and any(plain(person) in persons for persons in self._folds)

    def _item(self, tree: Tree, path: str, match: re.Match[str], person: str | None) -> Item | Problem:
        labels = self._labels.labels({"class": match["class"]}, path)
        if isinstance(labels, Problem):
            return labels
        media = tree.media(path, self._layout.frames)
        return media if isinstance(media, Problem) else labels.item(path, media, person)
