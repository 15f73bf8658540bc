"""Reads images in one folder for each class, such as train/joy/a.jpg; the name of the folder is the label."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emocap_shards.errors import AnnotationError, RecordError
from emocap_shards.printable import listed
from emocap_shards.writing.row import BadRow, LocalFile, SourceRow, key_of
from emocap_shards.writing.sources.columns import TableColumns, annotation_of
from emocap_shards.writing.sources.folder import entries_of, holds_image, is_hidden, split_name, walk_images

_SPLITS = frozenset({"train", "training", "valid", "validation", "val", "test", "testing", "dev", "eval"})
_SHOWN = 12
_LOOKED = 3  # Classes in which further folders are searched.


@dataclass(frozen=True, slots=True)
class ClassFolderSource:
    """Provides every image below the folders of classes, sorted by path, with the name of its class as a label.

    The first of the folders on the way to an image is its class. If there are several labels, each is the name of one
    level of folders, the outermost first. Other files are counted in `left_out`. An image that lies in fewer folders
    than there are labels has no class, and is a bad row.

    Attributes:
        folder: The folder of the class folders.
        columns: The members of `labels` are the names of the labels.
        notes: Lines for the user (`Noted`).
    """

    folder: Path
    columns: TableColumns
    notes: tuple[str, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter[str], compare=False)

    def rows(self) -> Iterator[SourceRow | BadRow]:
        self.left_out.clear()
        root = os.path.realpath(self.folder)
        for found in walk_images(root, self.left_out):
            yield found if isinstance(found, BadRow) else self._row(root, found)

    def _row(self, root: str, path: str) -> SourceRow | BadRow:
        where = os.path.join(root, path)  # noqa: PTH118
        *folders, _ = path.split("/")
        if not folders:
            return BadRow(where, "it lies beside the folders of classes and has no class; move it into one, or away")
        if len(folders) < len(self.columns.labels):
            levels = ", ".join(self.columns.labels)
            return BadRow(
                where, f"it does not lie in a folder for each of the labels {levels}; move it into one, or away"
            )
        try:
            annotation = annotation_of(dict(zip(self.columns.labels, folders, strict=False)), self.columns)
        except AnnotationError as error:
            return BadRow(where, str(error))
        return SourceRow(where, key_of(path), LocalFile(root, path), annotation, split_name(path)[1])


def class_folders(folder: Path, *, levels: int) -> list[str]:
    """Returns the names of the folders directly in `folder` that hold images, sorted, without hidden ones.

    Of each folder, entries are read until the first image, so the call is cheap also for many images.

    Raises:
        RecordError: If one level of folders is to be read, and it is that of splits, which in turn hold folders.
    """
    holding = [name for name in _folders(folder) if holds_image(folder / name)]
    is_splits = bool(holding) and {name.lower() for name in holding} <= _SPLITS
    if levels == 1 and is_splits and _folders(folder / holding[0]):
        raise RecordError(
            f"{folder} holds {', '.join(holding)}, which are splits and not classes; name one of them, such as "
            f"{folder / holding[0]}."
        )
    return holding


def class_notes(folder: Path, classes: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the line that tells the user which folders are read as classes, and which are not.

    A level of folders that nobody named is otherwise easily overlooked: folders of persons above those of classes would
    become the classes.
    """
    levels = "the names of the first folder" if len(labels) == 1 else "the names of one level of folders each, first"
    line = f"{folder}: the values of {', '.join(labels)} are {levels}: {listed(classes, _SHOWN)}"
    if empty := [name for name in _folders(folder) if name not in classes]:
        line += f"; there is no image in {listed(empty, _SHOWN)}"
    if len(labels) == 1 and (inner := sorted({name for each in classes[:_LOOKED] for name in _folders(folder / each)})):
        cure = f"--label LEVEL1 --label LEVEL2 makes each level a label, such as --label person --label {labels[0]}"
        line += f"; the folders in them ({listed(inner, _SHOWN)}) are not read as labels, and {cure}"
    return (f"{line}.",)


def _folders(folder: Path) -> list[str]:
    found = (entry.name for entry in entries_of(folder) if entry.is_dir(follow_symlinks=False))
    return sorted(name for name in found if not is_hidden(name))
