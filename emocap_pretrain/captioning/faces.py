"""Reads faces from every source that `emocap pack` reads, and from folders of images without annotations.

Keys are those that `emocap pack` would give, and samples of a packed dataset keep theirs. An image is decoded and
encoded again before it is sent. So its metadata, such as the place and the time of a photograph, is not sent, and
bytes that are not an image are found before they cost anything.
"""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
from emocap_shards.decode import decode_image
from emocap_shards.errors import ImageError, RecordError
from emocap_shards.manifest import MANIFEST
from emocap_shards.writing.row import BadRow, LocalFile, SourceRow, key_of
from emocap_shards.writing.row_source import RowSource
from emocap_shards.writing.sources.choice import open_source
from emocap_shards.writing.sources.columns import STANDARD, TableColumns
from emocap_shards.writing.sources.folder import split_name, walk_images
from emocap_shards.writing.sources.metadata import TABLES
from emocap_shards.writing.sources.sidecars import kind_beside
from PIL import Image

from emocap_pretrain.captioning.prompt import is_personal
from emocap_pretrain.captioning.protocol import FaceFacts

Labels = Mapping[str, str | float]

_QUALITY = 95
_UNIT = re.compile(r"AU0*([1-9]\d?)", re.IGNORECASE)
_SHARE = "share_"
_NO_LABELS = b'{"labels": {}}'


@dataclass(frozen=True, slots=True)
class PlainFolder:
    """Reads the images of a folder that has no annotations. It implements `RowSource`."""

    folder: Path
    left_out: Counter[str] = field(default_factory=Counter[str])

    def rows(self) -> Iterator[SourceRow | BadRow]:
        self.left_out.clear()
        root = str(self.folder.resolve())
        for path in walk_images(root, self.left_out):
            if isinstance(path, BadRow):
                yield path
            else:
                where = str(self.folder / path)
                yield SourceRow(where, key_of(path), LocalFile(root, path), _NO_LABELS, split_name(path)[1])


@dataclass(frozen=True, slots=True)
class ReadFace:
    """Holds a row of a source after its files were read.

    Attributes:
        key: Key of the sample.
        data: The image as it is stored.
        digest: SHA-256 of `data` in hexadecimal digits.
        labels: All labels of the row.
    """

    key: str
    data: bytes = field(repr=False)
    digest: str
    labels: Labels


def open_faces(
    where: str, *, image: str = "", key: str = "", labels: Sequence[str] = (), image_root: Path | None = None
) -> RowSource:
    """Returns the source at a path or URL. Captions that it has are not read.

    Args:
        where: A packed dataset, a folder, a table, tars, or another source of `emocap pack`.
        image: Column of a table with the image; "" is the usual name.
        key: Column of a table with the key; "" is the usual name.
        labels: Columns or folders that are labels, as for `emocap pack --label`.
        image_root: Folder of the images of a table.

    Raises:
        RecordError: If there is no source of a known kind.
    """
    path = Path(where)
    if "://" in where or (path / MANIFEST).is_file():
        return open_source(where)
    if path.is_dir() and not labels and not any((path / name).is_file() for name in TABLES) and _is_plain(path):
        return PlainFolder(path)
    columns = TableColumns(
        image=image or STANDARD.image, key=key or STANDARD.key, labels=tuple(labels), captions="none"
    )
    return open_source(where, columns, image_root=image_root)


def _is_plain(folder: Path) -> bool:
    return next((True for each in walk_images(str(folder), Counter()) if isinstance(each, str)), False) and (
        kind_beside(folder, STANDARD) == ""
    )


def read_face(row: SourceRow) -> ReadFace:
    """Reads the image and the labels of a row.

    Raises:
        RecordError: If a file cannot be read, the annotation is not JSON, or the key is not UTF-8.
    """
    if not row.key.isascii() and row.key.encode(errors="replace").decode() != row.key:
        raise RecordError("its name is not UTF-8; rename it")
    data = row.image.read() if isinstance(row.image, LocalFile) else row.image
    return ReadFace(row.key, data, hashlib.sha256(data).hexdigest(), labels_of(row))


def labels_of(row: SourceRow) -> Labels:
    """Returns the labels of a row.

    Raises:
        RecordError: If the annotation cannot be read, or is not JSON.
    """
    text = row.annotation.read() if isinstance(row.annotation, LocalFile) else row.annotation
    try:
        annotation = orjson.loads(text)
    except ValueError as error:
        raise RecordError(f"the annotation is not JSON ({error})") from error
    found = cast("dict[str, Any]", annotation).get("labels") if isinstance(annotation, dict) else None
    given = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    return {name: value for name, value in given.items() if isinstance(value, str | int | float)}


def facts_of(labels: Labels, patterns: Sequence[str]) -> FaceFacts:
    """Returns the labels that match one of the patterns, such as "emotion" or "AU*", as known facts.

    `share_happiness` and so on are votes, `AU12` and so on are action units, and `valence` and `arousal` are what they
    say, if their values are numbers. A label whose name says that it identifies a person or a group is left out.

    >>> facts_of({"emotion": "fear", "AU5": 2, "person": "p1"}, ["*"])
    FaceFacts(labels={'emotion': 'fear'}, votes={}, units={5: 2.0}, valence=None, arousal=None)
    """
    texts: dict[str, str | float] = {}
    votes: dict[str, float] = {}
    units: dict[int, float] = {}
    affect: dict[str, float] = {}
    for name, value in labels.items():
        if value == "" or is_personal(name) or not any(fnmatchcase(name, pattern) for pattern in patterns):
            continue
        if isinstance(value, str):
            texts[name] = value
        elif unit := _UNIT.fullmatch(name):
            units[int(unit[1])] = float(value)
        elif name.startswith(_SHARE):
            votes[name.removeprefix(_SHARE)] = float(value)
        elif name in {"valence", "arousal"}:
            affect[name] = float(value)
        else:
            texts[name] = value
    return FaceFacts(labels=texts, votes=votes, units=units, **affect)


def jpeg_of(data: bytes, longest_px: int) -> bytes:
    """Returns an image as an upright JPEG without metadata, whose longer side has at most `longest_px` pixels.

    Raises:
        ImageError: If the bytes are not a complete JPEG, PNG or WebP.
    """
    image = Image.fromarray(np.ascontiguousarray(decode_image(data)))
    if max(image.size) > longest_px:
        image.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY, subsampling=0)
    return out.getvalue()


UNREADABLE = (ImageError, RecordError)
"""The errors of a row that cannot be read."""
