"""Reads Parquet files, and Hugging Face datasets as `save_to_disk` writes them.

Both are read with pyarrow; the `datasets` library is not needed. A Hugging Face dataset on disk is a folder with
`state.json` (the Arrow files in their order), `dataset_info.json` (the features, with the names of classes) and the
files themselves. They are Arrow streams, in which an image is a struct with the fields "bytes" and "path".
"""

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from emocap_shards.errors import RecordError
from emocap_shards.writing.row import BadRow, ImageFolders, LocalFile, SourceRow
from emocap_shards.writing.sources.columns import TableColumns, row_of
from emocap_shards.writing.sources.values import object_of

STATE = "state.json"
SPLITS = "dataset_dict.json"
_INFO = "dataset_info.json"
TOGETHER = 64
TOGETHER_BYTES = 1 << 28
# In these types many rows share a few bytes, so that the Python objects may be far larger than the batch.
_SHARED = re.compile("dictionary<|view|run_end")

Classes = Mapping[str, list[str]]


@dataclass(frozen=True, slots=True)
class HuggingFaceSource:
    """Reads the rows of one split of a Hugging Face dataset. A class index is replaced by the name of the class.

    The index -1 means that a row has no class; the row then gets no label.
    """

    folder: Path
    columns: TableColumns
    images: ImageFolders

    def rows(self) -> Iterator[SourceRow | BadRow]:
        classes = self._classes()
        number = 0
        for file in self._files():
            for values in self._values(file):
                where = f"{self.folder}: row {number}"
                yield _row(values, classes, self.columns, where=where, number=number, images=self.images)
                number += 1

    def _files(self) -> list[str]:
        """Returns the real paths of the Arrow files in order. A file outside of the folder is refused."""
        state = _load(self.folder / STATE)
        # After `select` or `shuffle` the library stores indices into the old rows instead of new rows.
        if state.get("_indices_data_files"):
            raise RecordError(f"{self.folder} holds indices beside its rows; save it again after flatten_indices().")
        root = os.path.realpath(self.folder)
        try:
            return [LocalFile(root, file["filename"]).locate() for file in state["_data_files"]]
        except (KeyError, TypeError) as error:
            raise RecordError(f"{self.folder / STATE} names no data files ({error!r}).") from error

    def _classes(self) -> Classes:
        features: dict[str, Any] = _load(self.folder / _INFO).get("features") or {}
        self.columns.check(list(features), where=str(self.folder))
        return _classes_of(features, self.columns.used)

    def _values(self, file: str) -> Iterator[dict[str, Any]]:
        try:
            with pa.memory_map(file) as source, pa.ipc.open_stream(source) as stream:
                wanted = [name for name in stream.schema.names if name in self.columns.used]
                for batch in stream:
                    yield from rows_of(batch.select(wanted))
        except (pa.ArrowException, OSError) as error:
            raise RecordError(f"{file} cannot be read as an Arrow stream ({error}).") from error


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """Reads the rows of one or several files in the given order. Only the columns that are needed are read.

    In files that the `datasets` library wrote, a class index is replaced by the name of the class, as in
    `HuggingFaceSource`.
    """

    paths: Sequence[Path]
    columns: TableColumns
    images: ImageFolders

    @property
    def total(self) -> int:
        return sum(_opened(path).metadata.num_rows for path in self.paths)

    def rows(self) -> Iterator[SourceRow | BadRow]:
        number = 0
        for path in self.paths:
            file = _opened(path)
            self.columns.check(file.schema_arrow.names, where=str(path))
            classes = _parquet_classes(file, self.columns)
            wanted = [name for name in file.schema_arrow.names if name in self.columns.used]
            try:
                for row, values in enumerate(_values(file, wanted)):
                    where = f"{path}: row {row}"
                    yield _row(values, classes, self.columns, where=where, number=number, images=self.images)
                    number += 1
            except (pa.ArrowException, OSError) as error:
                raise RecordError(f"{path} cannot be read ({error}); is it complete?") from error


def rows_of(batch: Any) -> Iterator[dict[str, Any]]:
    """Yields the rows of a record batch as dictionaries. It converts 64 rows at a time, or one if 64 could exceed 256
    MiB.
    """
    # If rows share bytes, each of them may be as large as the whole batch.
    times = TOGETHER if _SHARED.search(str(batch.schema.types)) else 1
    for start in range(0, batch.num_rows, TOGETHER):
        part = batch.slice(start, TOGETHER)
        step = TOGETHER if part.nbytes * times <= TOGETHER_BYTES else 1
        for row in range(0, part.num_rows, step):
            yield from part.slice(row, step).to_pylist()


def _row(
    values: Mapping[str, Any], classes: Classes, columns: TableColumns, *, where: str, number: int, images: ImageFolders
) -> SourceRow | BadRow:
    try:
        named = _with_names(values, classes)
    except RecordError as error:
        return BadRow(where, str(error))
    return row_of(named, columns, where=where, number=number, images=images)


def _classes_of(features: Mapping[str, Any], used: Collection[str]) -> Classes:
    """Returns the names of the classes of each column in `used` that holds class labels."""
    objects = {name: feature for name, feature in features.items() if isinstance(feature, Mapping) and name in used}
    return {name: list(each["names"]) for name, each in objects.items() if each.get("_type") == "ClassLabel"}


def _with_names(values: Mapping[str, Any], classes: Classes) -> dict[str, Any]:
    """Returns the values of a row, with the name of each class instead of its index. The index -1, which means that the
    row has no class, becomes None.

    Raises:
        RecordError: If there is no name for the index of a class.
    """
    return {**values, **{name: _class_name(values[name], names) for name, names in classes.items()}}


def _class_name(value: object, names: list[str]) -> str | None:
    if value is None or value == -1:
        return None
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise RecordError(f"class {value!r} has no name; there are {len(names)}")
    return names[value]


def _load(path: Path) -> dict[str, Any]:
    try:
        return object_of(path.read_bytes(), path.name)
    except (OSError, RecordError) as error:
        raise RecordError(f"{path} cannot be read ({error}); save the dataset again with save_to_disk.") from error


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"{path} cannot be read as a Parquet file ({error}).") from error


def _parquet_classes(file: pq.ParquetFile, columns: TableColumns) -> Classes:
    """Returns the class names that the `datasets` library has written into the metadata of a file. The result is empty
    if another program wrote the file.
    """
    try:
        info: Any = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
        return _classes_of(info["info"]["features"], columns.used)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # Another program wrote the metadata.
        return {}


def _values(file: pq.ParquetFile, wanted: list[str]) -> Iterator[dict[str, object]]:
    """Yields the rows of a file with the wanted columns. It reads 64 rows at once, or fewer if they are large."""
    for group in range(file.num_row_groups):
        together = max(1, min(TOGETHER, TOGETHER_BYTES // _row_bytes(file.metadata.row_group(group), wanted)))
        for batch in file.iter_batches(batch_size=together, row_groups=[group], columns=wanted):
            yield from rows_of(batch)


def _row_bytes(group: Any, wanted: Sequence[str]) -> int:
    """Returns an estimate of the bytes of one row in a row group.

    Most columns contribute the mean size of their values. A column that is stored with a dictionary contributes the
    size of the whole column in the group, because every row may refer to the same large value of the dictionary.
    """
    columns = [group.column(number) for number in range(group.num_columns)]
    used = [column for column in columns if column.path_in_schema.split(".")[0] in wanted]
    shared = (any("DICTIONARY" in encoding for encoding in column.encodings) for column in used)
    sizes = zip(used, shared, strict=True)
    return 1 + sum(column.total_uncompressed_size // (1 if all_ else max(1, group.num_rows)) for column, all_ in sizes)
