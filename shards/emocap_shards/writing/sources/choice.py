"""What kind of source a path, a pattern or a URL is."""

import os
import re
from pathlib import Path

from emocap_shards.errors import RecordError
from emocap_shards.manifest import MANIFEST
from emocap_shards.store import open_store
from emocap_shards.writing.reading import matching
from emocap_shards.writing.source import Source
from emocap_shards.writing.sources.columns import STANDARD, Columns
from emocap_shards.writing.sources.delimited import DelimitedSource
from emocap_shards.writing.sources.folder import FolderSource
from emocap_shards.writing.sources.json_lines import JsonLinesSource

_TAR = re.compile(r"\.(tar|tgz|tar\.gz)$")
_JSON_LINES = {".jsonl", ".ndjson"}
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_KINDS = (
    "a folder of image + .json pairs, a table (.csv, .tsv, .jsonl, .parquet), a Hugging Face dataset saved to disk, "
    "tars ('faces-{000..099}.tar', 's3://bucket/*.tar') or a dataset of ours"
)


def open_source(where: str | Path, columns: Columns = STANDARD, *, image_root: str | Path | None = None) -> Source:
    """The source at a path, a pattern with {braces} and wild cards, or a URL.

    Args:
        where: What to read.
        columns: Which column is what; folders of pairs and datasets of ours have none.
        image_root: The folder that paths in a table start from and may not leave; default the table's own.

    Raises:
        RecordError: If nothing of a known kind is there.
    """
    text = str(where)
    if _TAR.search(text):
        # The webdataset library imports torch, which nobody else here needs.
        from emocap_shards.writing.sources.tars import TarsSource

        return TarsSource(text, columns)
    if text.endswith(".parquet") and "://" not in text:
        from emocap_shards.writing.sources.parquet import ParquetSource

        paths = [Path(store.url, path) for store, path in matching(text)]
        return ParquetSource(paths, columns, _root(image_root or paths[0].parent))
    if "://" in text or Path(text, MANIFEST).is_file():
        return _dataset(text)
    return _local(Path(text), columns, image_root)


def _local(path: Path, columns: Columns, image_root: str | Path | None) -> Source:
    if path.is_dir():
        return _folder(path, columns, image_root)
    root = _root(image_root or path.parent)
    if path.is_file() and path.suffix in _JSON_LINES:
        return JsonLinesSource(path, columns, root)
    if path.is_file() and path.suffix in _DELIMITERS:
        return DelimitedSource(path, columns, root, _DELIMITERS[path.suffix])
    raise RecordError(f"{path} is no source; give {_KINDS}.")


def _folder(path: Path, columns: Columns, image_root: str | Path | None) -> Source:
    from emocap_shards.writing.sources.hugging_face import SPLITS, STATE, HuggingFaceSource

    if (path / SPLITS).is_file():
        splits = sorted(each.name for each in path.iterdir() if (each / STATE).is_file())
        raise RecordError(f"{path} holds the splits {', '.join(splits)}; name one of them, such as {path / splits[0]}.")
    if (path / STATE).is_file():
        return HuggingFaceSource(path, columns, _root(image_root or path))
    return FolderSource(path)


def _dataset(url: str) -> Source:
    from emocap_shards.writing.dataset import DatasetSource

    if not open_store(url).exists(MANIFEST):
        raise RecordError(f"{url} holds no {MANIFEST}; give {_KINDS}.")
    return DatasetSource.open([url])


def _root(path: str | Path) -> str:
    return os.path.realpath(path)
