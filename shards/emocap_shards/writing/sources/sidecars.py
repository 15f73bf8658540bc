"""Reads a folder of images with other files beside them: texts, JSON objects, or NumPy arrays of one value.

Such folders are written by img2dataset (`a.jpg`, `a.txt`, `a.json`) and by programs for captions (`a.jpg`, `a.txt`).
AffectNet has this form too (`images/0.jpg`, `annotations/0_exp.npy`).
"""

import glob
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, Literal

from emocap_shards.errors import RecordError
from emocap_shards.writing.row import BadRow, ImageFolders, LocalFile, SourceRow, key_of
from emocap_shards.writing.row_source import take_back
from emocap_shards.writing.sources.columns import TableColumns, row_of
from emocap_shards.writing.sources.folder import split_name, walk_images
from emocap_shards.writing.sources.values import array_value_of, object_of, text_of

_EXAMINED = 64  # Number of images beside which other files are searched, to find out what a folder holds.
_MOST_BYTES = 1 << 20
_TEXTS = ("txt", "caption")  # The suffixes of captions; programs for captions of training images write the second one.


@dataclass(frozen=True, slots=True)
class SidecarSource:
    """Provides every image below a folder, sorted by path, with the caption and labels of the files beside it.

    The fields of `a.json` are columns of the image `a.jpg`, and the text of `a.txt` is its column `txt`. The value of
    `a_exp.npy`, in the folder of the image or in a folder `annotations` beside that, is the column `exp`, if the user
    has named this label. Files that belong to no image, or from which nothing is read, are counted in `left_out`.

    `notes` are lines for the user (`Noted`).
    """

    folder: Path
    columns: TableColumns
    left_out: Counter[str] = field(default_factory=Counter[str], compare=False)
    notes: tuple[str, ...] = ()

    def rows(self) -> Iterator[SourceRow | BadRow]:
        self.left_out.clear()
        root = os.path.realpath(self.folder)
        read = Counter[str]()
        for number, found in enumerate(walk_images(root, self.left_out)):
            yield found if isinstance(found, BadRow) else self._row(root, found, number, read)
        take_back(self.left_out, read)

    def _row(self, root: str, path: str, number: int, read: Counter[str]) -> SourceRow | BadRow:
        where = os.path.join(root, path)  # noqa: PTH118
        try:
            values = self._values(root, path, read)
        except RecordError as error:
            return BadRow(where, str(error), file=path)
        # Without JSON beside the image, a label can only be in an array.
        missing = [name for name in self.columns.labels if name not in values]
        if missing and not values.keys() - {self.columns.key, self.columns.image, *_TEXTS, *self.columns.labels}:
            names = ", ".join(f"{PurePath(path).stem}_{name}.npy" for name in missing)
            return BadRow(where, f"the label {', '.join(missing)} is missing, because there is no {names}", file=path)
        row = row_of(values, self.columns, where=where, number=number, images=ImageFolders(root, root))
        if isinstance(row, BadRow) and not {"txt", "caption"} & values.keys():
            stem = PurePath(path).stem
            return replace(row, reason=f"{row.reason}; there is no {stem}.txt with a caption beside it", file=path)
        return row

    def _values(self, root: str, path: str, read: Counter[str]) -> dict[str, Any]:
        """Returns the columns of an image. `read` counts the files below the root that are read, by kind.

        Raises:
            RecordError: If a file beside the image cannot be read, or is not of the kind that its name says.
        """
        stem, _ = split_name(path)
        values: dict[str, Any] = {self.columns.key: key_of(path)}
        if (data := _read(root, f"{stem}.json", read)) is not None:
            values |= object_of(data, f"{stem}.json")
        for kind in _TEXTS:
            if (data := _read(root, f"{stem}.{kind}", read)) is not None:
                values[kind] = text_of(data, f"{stem}.{kind}")
        for name in self.columns.labels:
            for place in _arrays(stem, name):
                if (data := _read(root, place, read)) is not None:
                    values[name] = array_value_of(data, place)
        return values | {self.columns.image: path}


def kind_beside(folder: Path, columns: TableColumns) -> Literal["annotation", "other", ""]:
    """Returns what lies beside the first images of a folder: "annotation" if it is JSON in the form of a shard, "other"
    if `SidecarSource` reads it, and "" if it is nothing of both.
    """
    root = os.path.realpath(folder)
    for path in islice((each for each in walk_images(root, Counter()) if isinstance(each, str)), _EXAMINED):
        stem, _ = split_name(path)
        if os.path.isfile(f"{root}/{stem}.json"):  # noqa: PTH113
            return "annotation" if _is_annotation(root, f"{stem}.json") else "other"
        arrays = (place for name in columns.labels for place in _arrays(stem, name))
        if any(os.path.isfile(f"{root}/{place}") for place in (*(f"{stem}.{kind}" for kind in _TEXTS), *arrays)):  # noqa: PTH113
            return "other"
    return ""


def array_labels(folder: Path) -> list[str]:
    """Returns the names of the labels of which an array lies beside the first image of a folder, sorted."""
    root = os.path.realpath(folder)
    for path in islice((each for each in walk_images(root, Counter()) if isinstance(each, str)), 1):
        stem, _ = split_name(path)
        found = (each for place in _arrays(glob.escape(stem), "*") for each in glob.glob(place, root_dir=root))  # noqa: PTH207
        return sorted({PurePath(each).stem.removeprefix(f"{PurePath(stem).name}_") for each in found})
    return []


def _is_annotation(root: str, path: str) -> bool:
    try:
        value = object_of(LocalFile(root, path).read(), path)
    except RecordError:
        return True  # `FolderSource` says what is wrong with it.
    caption = value.get("caption")
    return isinstance(value.get("labels") if caption is None else caption, dict)


def _arrays(stem: str, label: str) -> tuple[str, ...]:
    """Returns the places where the array of a label may lie: beside the image, or in the folder `annotations`."""
    folder, name = os.path.split(stem)
    beside = os.path.join(os.path.dirname(folder), "annotations", f"{name}_{label}.npy")  # noqa: PTH118, PTH120
    outside = () if folder else (f"../annotations/{name}_{label}.npy",)
    return f"{stem}_{label}.npy", beside, *outside


def _read(root: str, path: str, read: Counter[str]) -> bytes | None:
    """Returns the bytes of a file; None if there is no such file. Counts it in `read` if it lies below the root.

    The folder `annotations` of AffectNet lies beside the folder of the images, and so outside of it if that is packed.

    Raises:
        RecordError: If the file cannot be read, or has more than 1 MiB.
    """
    outside = path.startswith("../")
    file = LocalFile(os.path.dirname(root) if outside else root, path.removeprefix("../"))  # noqa: PTH120
    if not os.path.lexists(os.path.join(file.root, file.path)):  # noqa: PTH118
        return None
    if not outside:
        read[f".{split_name(path)[1]}"] += 1
    data = file.read()
    if len(data) > _MOST_BYTES:
        raise RecordError(f"{file.name} has {len(data)} bytes; the limit for a file beside an image is {_MOST_BYTES}")
    return data
