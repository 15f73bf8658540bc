"""Opens the source at a path, a pattern or a URL, after finding out which kind of source it is."""

import glob
import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from emocap_shards.errors import RecordError
from emocap_shards.manifest import MANIFEST
from emocap_shards.printable import listed
from emocap_shards.store import open_store
from emocap_shards.writing.dataset import DatasetSource
from emocap_shards.writing.reading import TAR, matching
from emocap_shards.writing.row import ImageFolders
from emocap_shards.writing.row_source import RowSource
from emocap_shards.writing.sources.class_folders import ClassFolderSource, class_folders, class_notes
from emocap_shards.writing.sources.columns import STANDARD, TableColumns, with_texts
from emocap_shards.writing.sources.folder import FolderSource, holds_image
from emocap_shards.writing.sources.metadata import TABLES, MetadataSource, metadata_columns, tables_in
from emocap_shards.writing.sources.sidecars import SidecarSource, array_labels, kind_beside
from emocap_shards.writing.sources.text_tables import (
    JSON_LINES,
    WHITE_SPACE,
    DelimitedSource,
    JsonSource,
    TextTableConfig,
)

_PACKED = {
    ".zst": "zstd -d FILE",
    ".zip": "unzip FILE",
    ".7z": "7z x FILE",
    ".rar": "unrar x FILE",
    ".gz": "gunzip FILE",
}
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": WHITE_SPACE, ".lst": WHITE_SPACE, ".list": WHITE_SPACE}
TEXT_TABLE = TextTableConfig()
_LABELS = frozenset({"--label", "--label-names", "--captions"})
_KINDS = (
    "a folder of image + .json pairs or of class folders, a table (.csv, .tsv, .jsonl, .json, .parquet), a list "
    "(.txt, .lst, .list), a Hugging Face dataset saved to disk, tars ('faces-{000..099}.tar', 's3://bucket/*.tar') or "
    "a packed dataset"
)


def open_source(
    where: str | Path,
    columns: TableColumns = STANDARD,
    *,
    image_root: str | Path | None = None,
    text_table: TextTableConfig = TEXT_TABLE,
) -> RowSource:
    """Returns the source at a path, a pattern with {braces} and wild cards, or a URL.

    Args:
        where: The path, pattern or URL.
        columns: Names of the columns of the source.
        image_root: The folder that contains all images of a table, and to which their paths are relative; by default
            the table's own folder. A path that would lead out of it, such as ../faces/x.jpg, is relative to the table's
            folder instead. The image itself must lie below `image_root` in any case.
        text_table: The delimiter, the names of the columns and the encoding of a text table, if it does not say them.

    Raises:
        RecordError: If there is no source of a known kind, or if it does not use all that is given.

    Example:
        ```python
        open_source("faces/")  # images, each with a .json
        open_source("faces.csv", TableColumns(image="path", global_="caption"))
        open_source("s3://bucket/laion-*.tar", TableColumns(global_="txt"))
        ```
    """
    source = _opened(str(where), columns, image_root, text_table)
    given = {*columns.given, *text_table.given, *(() if image_root is None else ("--image-root",))}
    if unused := sorted(given - _used(source, given)):
        raise RecordError(f"{where}: {', '.join(unused)} cannot be used for this kind of source; leave it out.")
    return source


def _used(source: RowSource, given: Iterable[str]) -> set[str]:
    """Returns those of the options `given` that a source uses."""
    table = source.table if isinstance(source, MetadataSource) else source
    if isinstance(table, DatasetSource):
        return set()
    if isinstance(table, FolderSource | ClassFolderSource):
        return {*_LABELS}
    used = set(given) - ({"--image"} if isinstance(table, SidecarSource) else set())
    if not isinstance(table, DelimitedSource):
        used -= {"--delimiter", "--columns"} | ({"--encoding"} if not isinstance(table, JsonSource) else set())
    # Only sources with paths have folders to which paths are relative.
    return used if hasattr(table, "images") else used - {"--image-root", "--image-name"}


def _opened(text: str, columns: TableColumns, image_root: str | Path | None, text_table: TextTableConfig) -> RowSource:
    # The order matters: a pattern of tars may be a URL too, and every other URL must be that of a packed dataset.
    if TAR.search(text):
        # The webdataset library imports torch, which the other sources do not need.
        from emocap_shards.writing.sources.tars import TarsSource

        return TarsSource(text, with_texts(columns))
    if text.lower().endswith(".parquet") and "://" not in text:
        from emocap_shards.writing.sources.arrow import ParquetSource

        paths = [Path(store.url, path) for store, path in matching(text)]
        # Paths in all of the files are relative to the folder of the first one.
        return ParquetSource(paths, columns, _images(image_root, paths[0].parent))
    if "://" in text or Path(text, MANIFEST).is_file():
        return _dataset(text)
    return _local(Path(text), columns, image_root, text_table)


def _local(path: Path, columns: TableColumns, image_root: str | Path | None, text_table: TextTableConfig) -> RowSource:
    if path.is_dir():
        return _folder(path, columns, image_root, text_table)
    images = _images(image_root, path.parent)
    if path.is_file() and path.suffix.lower() in {".json", *JSON_LINES, *_DELIMITERS}:
        return _text_table(path, columns, images, text_table)
    if path.is_file() and path.suffix.lower() in _PACKED:
        cure = _PACKED[path.suffix.lower()].replace("FILE", shlex.quote(path.name))
        raise RecordError(f"{path} has a compression that is not supported; unpack it (`{cure}`), and pack the result.")
    raise RecordError(f"{path} is not a source; give {_KINDS}.")


def _text_table(
    path: Path, columns: TableColumns, images: ImageFolders, form: TextTableConfig
) -> DelimitedSource | JsonSource:
    suffix = path.suffix.lower()
    if suffix not in _DELIMITERS:
        return JsonSource(path, columns, images, form.encoding)
    return DelimitedSource(path, columns, images, _DELIMITERS[suffix], form)


def _folder(path: Path, columns: TableColumns, image_root: str | Path | None, form: TextTableConfig) -> RowSource:
    from emocap_shards.writing.sources.arrow import SPLITS, STATE, HuggingFaceSource

    images = _images(image_root, path)
    if (path / SPLITS).is_file():
        splits = sorted(each.name for each in path.iterdir() if (each / STATE).is_file())
        raise RecordError(f"{path} holds the splits {', '.join(splits)}; name one of them, such as {path / splits[0]}.")
    if (path / STATE).is_file():
        return HuggingFaceSource(path, columns, images)
    if (tars := _tars_in(path, columns)) is not None:
        return tars
    for name in TABLES:
        if (path / name).is_file():
            table = _text_table(path / name, metadata_columns(columns), images, form)
            if table.columns.image in table.names():
                return MetadataSource(table)
    return _images_in(path, columns)


def _images_in(path: Path, columns: TableColumns) -> RowSource:
    """Returns a source for the images of a folder: with annotations beside them, or in one folder for each class."""
    kind = kind_beside(path, columns)
    classes = class_folders(path, levels=len(columns.labels)) if columns.labels and kind != "other" else []
    if kind == "other":
        return SidecarSource(path, with_texts(columns))
    if kind == "annotation" and columns.given and columns.given <= _LABELS:
        others = f"the names of its folders ({listed(classes, 6)}) are not"
        notes = (f"{path}: the labels are those of the .json files; {others}.",) if classes else ()
        return SidecarSource(path, columns, notes=notes)
    if not kind and (names := array_labels(path)):
        cure = f"name them, such as with --label {names[0]}"
        raise RecordError(f"{path} has labels in arrays ({listed(names, 6)}); {cure}.")
    if not kind and not classes and (tables := tables_in(path)):
        raise RecordError(f"{path} has no annotations beside its images; pack a table instead: {listed(tables, 6)}.")
    if kind == "annotation" or not classes:
        return FolderSource(path)
    if columns.captions == "required":
        raise RecordError(f"{path}: folders of classes have no captions; leave --captions out.")
    return ClassFolderSource(path, columns, class_notes(path, classes, columns.labels))


def _tars_in(folder: Path, columns: TableColumns) -> RowSource | None:
    """Returns a source for the tars of a folder, such as the output of img2dataset.

    Returns None if the folder holds no tar, or also holds images.
    """
    # img2dataset also writes files of statistics beside its tars, so only images matter for the choice.
    tars = [each.name for each in folder.iterdir() if TAR.search(each.name)]
    if not tars or holds_image(folder):
        return None
    from emocap_shards.writing.sources.tars import TarsSource

    kinds = {found.group() for name in tars if (found := TAR.search(name))}
    if len(kinds) > 1:
        raise RecordError(
            f"{folder} holds tars of several kinds ({', '.join(sorted(kinds))}); name one, such as *.tar."
        )
    return TarsSource(f"{glob.escape(str(folder))}/*{kinds.pop()}", with_texts(columns))


def _dataset(url: str) -> RowSource:
    if not open_store(url).exists(MANIFEST):
        raise RecordError(f"{url} holds no {MANIFEST}; give {_KINDS}.")
    return DatasetSource.open([url])


def _images(image_root: str | Path | None, table: Path) -> ImageFolders:
    return ImageFolders(os.path.realpath(image_root or table), os.path.realpath(table))
