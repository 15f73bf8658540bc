"""Reads Parquet files with images as paths, as bytes, or as objects with both."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from emocap_shards.errors import RecordError
from emocap_shards.writing.row import BadRow, ImageFolders, SourceRow
from emocap_shards.writing.sources.batches import TOGETHER, TOGETHER_BYTES, rows_of
from emocap_shards.writing.sources.classes import Classes, classes_of, with_names
from emocap_shards.writing.sources.columns import TableColumns, row_of


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """Reads the rows of one or several files in the given order. Only the columns that are needed are read.

    In files of the `datasets` library a class label becomes its name, as in `HuggingFaceSource`.
    """

    paths: Sequence[Path]
    columns: TableColumns
    images: ImageFolders

    @property
    def total(self) -> int | None:
        return sum(_open(path).metadata.num_rows for path in self.paths)

    def rows(self) -> Iterator[SourceRow | BadRow]:
        number = 0
        for path in self.paths:
            file = _open(path)
            self.columns.check(file.schema_arrow.names, where=str(path))
            classes = _classes(file, self.columns)
            wanted = [name for name in file.schema_arrow.names if name in self.columns.used]
            try:
                for row, values in enumerate(_values(file, wanted)):
                    yield self._row(values, classes, where=f"{path}: row {row}", number=number)
                    number += 1
            except (pa.ArrowException, OSError) as error:
                raise RecordError(f"{path} cannot be read ({error}); is it complete?") from error

    def _row(self, values: Mapping[str, Any], classes: Classes, *, where: str, number: int) -> SourceRow | BadRow:
        try:
            named = with_names(values, classes)
        except RecordError as error:
            return BadRow(where, str(error))
        return row_of(named, self.columns, where=where, number=number, images=self.images)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"{path} cannot be read as a Parquet file ({error}).") from error


def _classes(file: pq.ParquetFile, columns: TableColumns) -> Classes:
    """Returns the class names that the `datasets` library writes into the metadata of a file, or nothing."""
    try:
        info: Any = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
        return classes_of(info["info"]["features"], columns.used)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # Another program wrote the metadata.
        return {}


def _values(file: pq.ParquetFile, wanted: list[str]) -> Iterator[dict[str, object]]:
    """Yields the rows of a file with the wanted columns; the batches are small enough for the memory."""
    for group in range(file.num_row_groups):
        together = max(1, min(TOGETHER, TOGETHER_BYTES // _row_bytes(file.metadata.row_group(group), wanted)))
        for batch in file.iter_batches(batch_size=together, row_groups=[group], columns=wanted):
            yield from rows_of(batch)


def _row_bytes(group: Any, wanted: Sequence[str]) -> int:
    """Returns an estimate of the bytes of one row in a row group.

    A column counts with the mean size of its values. A column whose values are stored in a dictionary counts with its
    total size, because every row may refer to the largest value.
    """
    columns = [group.column(number) for number in range(group.num_columns)]
    used = [column for column in columns if column.path_in_schema.split(".")[0] in wanted]
    shared = (any("DICTIONARY" in encoding for encoding in column.encodings) for column in used)
    sizes = zip(used, shared, strict=True)
    return 1 + sum(column.total_uncompressed_size // (1 if all_ else max(1, group.num_rows)) for column, all_ in sizes)
