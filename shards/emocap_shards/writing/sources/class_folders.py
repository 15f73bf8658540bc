"""Reads images in one folder for each class, such as train/joy/a.jpg; the name of the folder is the label."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from emocap_shards.errors import AnnotationError, RecordError
from emocap_shards.writing.row import BadRow, LocalFile, SourceRow, key_of
from emocap_shards.writing.sources.columns import TableColumns, annotation_of
from emocap_shards.writing.sources.folder import entries_of, holds_image, is_hidden, split_name, walk_images

_SPLITS = frozenset({"train", "training", "valid", "validation", "val", "test", "testing", "dev", "eval"})


@dataclass(frozen=True, slots=True)
class ClassFolderSource:
    """Provides every image below the folders of classes, sorted by path, with the name of its class as a label.

    The first of the folders on the way to an image is its class. Other files are counted in `left_out`. An image that
    lies beside the folders has no class, and is a bad row.

    Attributes:
        folder: The folder of the class folders.
        columns: The one member of `labels` is the name of the label.
    """

    folder: Path
    columns: TableColumns
    left_out: Counter[str] = field(default_factory=Counter[str], compare=False)

    def rows(self) -> Iterator[SourceRow | BadRow]:
        self.left_out.clear()
        root = os.path.realpath(self.folder)
        for found in walk_images(root, self.left_out):
            yield found if isinstance(found, BadRow) else self._row(root, found)

    def _row(self, root: str, path: str) -> SourceRow | BadRow:
        where = os.path.join(root, path)  # noqa: PTH118
        name, slash, _ = path.partition("/")
        if not slash:
            return BadRow(where, "it lies beside the folders of classes and has no class; move it into one, or away")
        (label,) = self.columns.labels
        try:
            annotation = annotation_of({label: name}, self.columns)
        except AnnotationError as error:
            return BadRow(where, str(error))
        return SourceRow(where, key_of(path), LocalFile(root, path), annotation, split_name(path)[1])


def class_folders(folder: Path) -> list[str]:
    """Returns the names of the folders directly in `folder` that hold images, sorted, without hidden ones.

    Of each folder, entries are read until the first image, so the call is cheap also for many images.

    Raises:
        RecordError: If the folders are those of splits, which in turn hold folders.
    """
    holding = [name for name in _folders(folder) if holds_image(folder / name)]
    if holding and {name.lower() for name in holding} <= _SPLITS and _folders(folder / holding[0]):
        raise RecordError(
            f"{folder} holds {', '.join(holding)}, which are splits and not classes; name one of them, such as "
            f"{folder / holding[0]}."
        )
    return holding


def _folders(folder: Path) -> list[str]:
    found = (entry.name for entry in entries_of(folder) if entry.is_dir(follow_symlinks=False))
    return sorted(name for name in found if not is_hidden(name))
