"""Reads a folder of images with other files beside them: texts, foreign JSON, or NumPy arrays of one value.

Such folders are written by img2dataset (`a.jpg`, `a.txt`, `a.json`) and by programs for captions (`a.jpg`, `a.txt`).
AffectNet has this form too (`images/0.jpg`, `annotations/0_exp.npy`).
"""

import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, cast

import numpy as np
import orjson

from emocap_shards.errors import RecordError
from emocap_shards.writing.row import BadRow, ImageFolders, LocalFile, SourceRow, key_of
from emocap_shards.writing.row_source import leave_out
from emocap_shards.writing.sources.columns import TableColumns, row_of
from emocap_shards.writing.sources.folder import walk_images

_EXAMINED = 64  # Number of images beside which other files are searched, to find out what a folder holds.
_MOST_BYTES = 1 << 20
_TEXTS = ("txt", "json", "npy")


@dataclass(frozen=True, slots=True)
class SidecarSource:
    """Provides every image below a folder, sorted by path, with the caption and labels of the files beside it.

    The text of `a.txt` is the column `txt` of the image `a.jpg`, and the fields of `a.json` are columns. The value of
    `a_exp.npy`, in the folder of the image or in a folder `annotations` beside that, is the column `exp`, if the user
    has named this label. The caption of an image is the column of the global part, or else `txt`, or else a text in the
    field `caption`. Files of other kinds are counted in `left_out`.
    """

    folder: Path
    columns: TableColumns
    left_out: Counter[str] = field(default_factory=Counter[str], compare=False)

    @property
    def total(self) -> int | None:
        return None

    def rows(self) -> Iterator[SourceRow | BadRow]:
        self.left_out.clear()
        root = os.path.realpath(self.folder)
        seen = Counter[str]()
        for number, found in enumerate(walk_images(root, "", seen)):
            yield found if isinstance(found, BadRow) else self._row(root, found, number)
        used = {f".{kind}" for kind in _TEXTS}
        for kind, count in seen.items():
            if kind not in used:
                leave_out(self.left_out, kind)
                self.left_out[kind] += count - 1

    def _row(self, root: str, path: str, number: int) -> SourceRow | BadRow:
        where = os.path.join(root, path)  # noqa: PTH118
        try:
            values = self._values(root, path)
        except RecordError as error:
            return BadRow(where, str(error), file=path)
        row = row_of(values, self._mapped(values), where=where, number=number, images=ImageFolders(root, root))
        if isinstance(row, BadRow) and "txt" not in values:
            stem = PurePath(path).stem
            return replace(row, reason=f"{row.reason}; there is no {stem}.txt with a caption beside it", file=path)
        return row

    def _values(self, root: str, path: str) -> dict[str, Any]:
        """Returns the columns of an image.

        Raises:
            RecordError: If a file beside the image cannot be read, or is not of the kind that its name says.
        """
        stem = os.path.splitext(path)[0]  # noqa: PTH122
        values: dict[str, Any] = {self.columns.key: key_of(path)}
        if (data := _read(root, f"{stem}.json")) is not None:
            values |= _object(data, f"{stem}.json")
        if (data := _read(root, f"{stem}.txt")) is not None:
            values["txt"] = _text(data, f"{stem}.txt")
        for name in self.columns.labels:
            for place in _arrays(stem, name):
                if (data := _read(root, place)) is not None:
                    values[name] = _value(data, place)
        return values | {self.columns.image: path}

    def _mapped(self, values: Mapping[str, Any]) -> TableColumns:
        if self.columns.global_ in values or isinstance(values.get("caption"), Mapping):
            return self.columns
        found = [name for name in ("txt", "caption") if isinstance(values.get(name), str)]
        return replace(self.columns, global_=found[0]) if found else self.columns


def has_sidecars(folder: Path, columns: TableColumns) -> bool:
    """Returns whether the first images of a folder have files beside them that `SidecarSource` reads.

    An annotation in the form of a shard is none of these: the folder is then one of image + .json pairs.
    """
    root = os.path.realpath(folder)
    for path in islice((each for each in walk_images(root, "", Counter()) if isinstance(each, str)), _EXAMINED):
        stem = os.path.splitext(path)[0]  # noqa: PTH122
        if os.path.isfile(f"{root}/{stem}.json"):  # noqa: PTH113
            return not _is_annotation(root, f"{stem}.json")
        arrays = (place for name in columns.labels for place in _arrays(stem, name))
        if any(os.path.isfile(f"{root}/{place}") for place in (f"{stem}.txt", *arrays)):  # noqa: PTH113
            return True
    return False


def _is_annotation(root: str, path: str) -> bool:
    try:
        value: Any = orjson.loads(LocalFile(root, path).read())
    except (RecordError, ValueError):
        return True  # `FolderSource` says what is wrong with it.
    return not isinstance(value, dict) or not isinstance(cast("dict[str, Any]", value).get("caption"), str)


def _arrays(stem: str, label: str) -> tuple[str, ...]:
    """Returns the places where the array of a label may lie: beside the image, or in the folder `annotations`."""
    folder, name = os.path.split(stem)
    beside = os.path.join(os.path.dirname(folder), "annotations", f"{name}_{label}.npy")  # noqa: PTH118, PTH120
    outside = () if folder else (f"../annotations/{name}_{label}.npy",)
    return f"{stem}_{label}.npy", beside, *outside


def _read(root: str, path: str) -> bytes | None:
    """Returns the bytes of a file; None if there is no such file.

    The folder `annotations` of AffectNet lies beside the folder of the images, and so outside of it if that is packed.

    Raises:
        RecordError: If the file cannot be read, or has more than 1 MiB.
    """
    outside = path.startswith("../")
    file = LocalFile(os.path.dirname(root) if outside else root, path.removeprefix("../"))  # noqa: PTH120
    if not os.path.lexists(os.path.join(file.root, file.path)):  # noqa: PTH118
        return None
    data = file.read()
    if len(data) > _MOST_BYTES:
        raise RecordError(f"{file.name} has {len(data)} bytes; the limit for a file beside an image is {_MOST_BYTES}")
    return data


def _object(data: bytes, name: str) -> dict[str, Any]:
    try:
        value: Any = orjson.loads(data)
    except ValueError as error:
        raise RecordError(f"{name} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise RecordError(f"{name} is not a JSON object")
    return cast("dict[str, Any]", value)


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise RecordError(f"{name} is not UTF-8 ({error})") from error


def _value(data: bytes, name: str) -> str | float:
    """Returns the only value of a NumPy file: a number, also if it is written as a text, or another text."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RecordError(f"{name} is not a NumPy array ({error})") from error
    if array.size != 1 or array.dtype.kind not in "iufU":
        raise RecordError(f"{name} is an array of {array.size} values of the type {array.dtype}, not of one number")
    value = array.item()
    try:
        return float(value)
    except ValueError:
        return str(value)
