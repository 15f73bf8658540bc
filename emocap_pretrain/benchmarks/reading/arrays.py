"""Reads copies in which each image has its labels in `.npy` files."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from emocap_shards.writing.sources.folder import natural_order
from emocap_shards.writing.sources.values import only_value

from emocap_pretrain.benchmarks.card import Target
from emocap_pretrain.benchmarks.item import Item
from emocap_pretrain.benchmarks.layouts import Arrays
from emocap_pretrain.benchmarks.reading import texts
from emocap_pretrain.benchmarks.reading.labels import Codes, LabelReader, Value
from emocap_pretrain.benchmarks.reading.layout_reader import Problem
from emocap_pretrain.benchmarks.reading.split_paths import first_missing, joined, lack_of_copy, split_path
from emocap_pretrain.benchmarks.reading.tree import Tree, fixed_folder
from emocap_pretrain.errors import DataError

LARGEST_ARRAY = 1 << 16
"""Bytes of a file that holds one value."""


class ArraysReader:
    """Reads the layout `arrays`. An image without labels is a problem, and so are labels without an image."""

    def __init__(self, layout: Arrays, target: Target) -> None:
        self._layout = layout
        self._labels = LabelReader(target, Codes(layout.codes, layout.left_out))

    def fits(self, root: Path) -> str | None:
        tree = Tree(root)
        return lack_of_copy(first_missing(tree, self._paths(split)) for split in self._layout.folders)

    def _paths(self, split: str) -> Iterator[str]:
        folder = split_path(self._layout.folders, split, 1)
        return (fixed_folder(joined(folder, each)) for each in (self._layout.media, *self._layout.arrays.values()))

    def items(self, root: Path, split: str, fold: int | None) -> Iterator[Item | Problem]:
        tree = Tree(root)
        folder = split_path(self._layout.folders, split, fold)
        tree.folder(folder)
        stems = {
            stem for each in (self._layout.media, *self._layout.arrays.values()) for stem in _stems(tree, folder, each)
        }
        for stem in sorted(stems, key=natural_order):
            yield self._item(tree, folder, stem)

    def _item(self, tree: Tree, folder: str, stem: str) -> Item | Problem:
        path = joined(folder, _with(self._layout.media, stem))
        media = tree.media(path, self._layout.frames)
        if isinstance(media, Problem):
            return media
        values: dict[str, Value] = {}
        for name, template in self._layout.arrays.items():
            value = _value(tree, joined(folder, _with(template, stem)))
            if isinstance(value, Problem):
                return value
            values[name] = value
        labels = self._labels.labels(values, path)
        return labels if isinstance(labels, Problem) else labels.item(path, media)


def _with(template: str, stem: str) -> str:
    return template.replace("{stem}", stem)


def _stems(tree: Tree, folder: str, template: str) -> Iterator[str]:
    """Yields the stems of the files that fit a template.

    Raises:
        DataError: If the folder of the template is missing.
    """
    path = PurePosixPath(folder) / template
    before, after = path.name.split("{stem}")
    if not tree.exists(str(path.parent)):
        raise DataError(f"{tree.root / path.parent} is missing.")
    for name in tree.names(str(path.parent)):
        if name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after):
            yield name[len(before) : len(name) - len(after)]


def _value(tree: Tree, path: str) -> str | Problem:
    """Returns the only value of an array as text, or the problem. Some copies hold texts, and others numbers."""
    found = tree.file(path, missing="missing label")
    if isinstance(found, Problem):
        return found
    try:
        value = only_value(texts.small(found, LARGEST_ARRAY))
    except (DataError, ValueError) as error:
        return Problem("unreadable label", f"{path}: {error}")
    return Problem("unreadable label", f"{path}: not one number or text") if value is None else value
