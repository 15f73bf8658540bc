"""Opens the source at a path, a pattern or a URL, after finding out which kind of source it is."""

import glob
import os
import re
import shlex
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

from emocap_shards.decode import FORMATS
from emocap_shards.errors import RecordError
from emocap_shards.manifest import MANIFEST
from emocap_shards.store import open_store
from emocap_shards.writing.dataset import DatasetSource
from emocap_shards.writing.reading import matching
from emocap_shards.writing.row import ImageFolders
from emocap_shards.writing.row_source import RowSource
from emocap_shards.writing.sources.columns import STANDARD, TableColumns
from emocap_shards.writing.sources.folder import FolderSource, walk_images
from emocap_shards.writing.sources.sidecars import SidecarSource, has_sidecars
from emocap_shards.writing.sources.text_tables import (
    WHITE_SPACE,
    DelimitedSource,
    JsonArraySource,
    JsonLinesSource,
    TextTableConfig,
    column_names,
)

_TAR = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz|zst))$")
_PACKED = {
    ".zst": "zstd -d FILE",
    ".zip": "unzip FILE",
    ".7z": "7z x FILE",
    ".rar": "unrar x FILE",
    ".gz": "gunzip FILE",
}
_JSON_LINES = {".jsonl", ".ndjson"}
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": WHITE_SPACE, ".lst": WHITE_SPACE, ".list": WHITE_SPACE}
TEXT_TABLE = TextTableConfig()
_EXAMINED = 64  # Number of images beside which an annotation is searched, to find out what a folder holds.
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
        columns: Names of the columns of the source. They are ignored for a packed dataset, and for a folder with one
            image and one annotation file for each sample.
        image_root: The folder that contains all images of a table, and to which their paths are relative; by default
            the table's own folder. A path that would lead out of it, such as ../faces/x.jpg, is relative to the table's
            folder instead. The image itself must lie below `image_root` in any case.
        text_table: The delimiter, the names of the columns and the encoding of a text table, if it does not say them.

    Raises:
        RecordError: If there is no source of a known kind.

    Example:
        ```python
        open_source("faces/")  # images, each with a .json
        open_source("faces.csv", TableColumns(image="path", global_="caption"))
        open_source("s3://bucket/laion-*.tar", TableColumns(global_="txt"))
        ```
    """
    source = _opened(str(where), columns, image_root, text_table)
    if not isinstance(source, DelimitedSource) and (text_table.delimiter is not None or text_table.names):
        raise RecordError(f"{where}: only text tables and lists have a delimiter and lack a header; leave both out.")
    if not isinstance(source, DelimitedSource | JsonLinesSource | JsonArraySource) and text_table.encoding is not None:
        raise RecordError(f"{where}: only text tables have an encoding; leave it out.")
    if isinstance(source, FolderSource | DatasetSource) and (columns.label_names or columns.image_name):
        raise RecordError(f"{where}: names of labels and images can be changed in tables and folders of classes only.")
    return source


def _opened(text: str, columns: TableColumns, image_root: str | Path | None, text_table: TextTableConfig) -> RowSource:
    # The order matters: a pattern of tars may be a URL too, and every other URL must be that of a packed dataset.
    if _TAR.search(text):
        # The webdataset library imports torch, which the other sources do not need.
        from emocap_shards.writing.sources.tars import TarsSource

        return TarsSource(text, columns)
    if text.endswith(".parquet") and "://" not in text:
        from emocap_shards.writing.sources.arrow import ParquetSource

        paths = [Path(store.url, path) for store, path in matching(text)]
        # Paths in all of the files are relative to the folder of the first one.
        return ParquetSource(paths, columns, _images(image_root, paths[0].parent))
    if "://" in text or Path(text, MANIFEST).is_file():
        return _dataset(text)
    return _local(Path(text), columns, image_root, text_table)


def _local(path: Path, columns: TableColumns, image_root: str | Path | None, text_table: TextTableConfig) -> RowSource:
    if path.is_dir():
        return _folder(path, columns, image_root)
    images = _images(image_root, path.parent)
    if path.is_file() and path.suffix in _JSON_LINES:
        return JsonLinesSource(path, columns, images, text_table.encoding)
    if path.is_file() and path.suffix == ".json":
        return JsonArraySource(path, columns, images, text_table.encoding)
    if path.is_file() and path.suffix in _DELIMITERS:
        return DelimitedSource(path, columns, images, _DELIMITERS[path.suffix], text_table)
    if path.is_file() and path.suffix in _PACKED:
        cure = _PACKED[path.suffix].replace("FILE", shlex.quote(path.name))
        raise RecordError(f"{path} has a compression that is not supported; unpack it (`{cure}`), and pack the result.")
    raise RecordError(f"{path} is not a source; give {_KINDS}.")


def _folder(path: Path, columns: TableColumns, image_root: str | Path | None) -> RowSource:
    from emocap_shards.writing.sources.arrow import SPLITS, STATE, HuggingFaceSource

    if (path / SPLITS).is_file():
        splits = sorted(each.name for each in path.iterdir() if (each / STATE).is_file())
        raise RecordError(f"{path} holds the splits {', '.join(splits)}; name one of them, such as {path / splits[0]}.")
    if (path / STATE).is_file():
        return HuggingFaceSource(path, columns, _images(image_root, path))
    return _tars_in(path, columns) or _metadata_of(path, columns, image_root) or _images_in(path, columns)


def _metadata_of(path: Path, columns: TableColumns, image_root: str | Path | None) -> RowSource | None:
    """Returns a source for the table of a folder in the form of Hugging Face's ImageFolder; None if it has none.

    The table has the column `file_name`. Its captions are in the column of the global part, or else in `text` or
    `caption`.
    """
    for table in (path / "metadata.jsonl", path / "metadata.csv"):
        present = column_names(table) if table.is_file() else ()
        if "file_name" not in present:
            continue
        image = columns.image if columns.image in present else "file_name"
        texts = [name for name in (columns.global_, "text", "caption") if name in present]
        mapped = replace(columns, image=image, global_=texts[0] if texts else columns.global_)
        images = _images(image_root, path)
        return (
            JsonLinesSource(table, mapped, images)
            if table.suffix == ".jsonl"
            else DelimitedSource(table, mapped, images)
        )
    return None


def _images_in(path: Path, columns: TableColumns) -> RowSource:
    """Returns a source for the images of a folder: with annotations beside them, or in one folder for each class."""
    from emocap_shards.writing.sources.class_folders import ClassFolderSource, class_folders, listed

    if has_sidecars(path, columns):
        return SidecarSource(path, columns)
    classes = class_folders(path)
    is_annotated = _is_annotated(path)
    if not classes or not columns.labels:
        return FolderSource(path)
    if is_annotated:
        note = f"{path}: the labels are those of the .json files; the names of its folders ({listed(classes)}) are not."
        return FolderSource(path, notes=(note,))
    if len(columns.labels) > 1:
        raise RecordError(f"{path}: folders of classes give one label, not {', '.join(columns.labels)}.")
    if columns.captions == "required":
        raise RecordError(f"{path}: folders of classes have no captions; leave --captions out.")
    return ClassFolderSource(path, columns)


def _is_annotated(path: Path) -> bool:
    """Returns whether one of the first images of the folder has an annotation beside it."""
    root = os.path.realpath(path)
    images = (Path(root, found) for found in walk_images(root, "", Counter()) if isinstance(found, str))
    return any(each.with_suffix(".json").exists() for each in islice(images, _EXAMINED))


def _tars_in(folder: Path, columns: TableColumns) -> RowSource | None:
    """Returns a source for the tars of a folder, such as the output of img2dataset.

    Returns None if the folder holds no tar, or also holds images.
    """
    names = [each.name for each in folder.iterdir()]
    # img2dataset also writes files of statistics beside its tars, so only images matter for the choice.
    tars = [name for name in names if _TAR.search(name)]
    if not tars or any(Path(name).suffix[1:].lower() in FORMATS for name in names):
        return None
    from emocap_shards.writing.sources.tars import TarsSource

    kinds = {found.group() for name in tars if (found := _TAR.search(name))}
    if len(kinds) > 1:
        raise RecordError(
            f"{folder} holds tars of several kinds ({', '.join(sorted(kinds))}); name one, such as *.tar."
        )
    return TarsSource(f"{glob.escape(str(folder))}/*{kinds.pop()}", columns)


def _dataset(url: str) -> RowSource:
    if not open_store(url).exists(MANIFEST):
        raise RecordError(f"{url} holds no {MANIFEST}; give {_KINDS}.")
    return DatasetSource.open([url])


def _images(image_root: str | Path | None, table: Path) -> ImageFolders:
    return ImageFolders(os.path.realpath(image_root or table), os.path.realpath(table))
