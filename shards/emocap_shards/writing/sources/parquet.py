"""Parquet files: images as paths, as bytes, or as objects of both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from emocap_shards.errors import RecordError
from emocap_shards.writing.row import BadRow, Row
from emocap_shards.writing.sources.columns import Columns, row_of

_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """The rows of one file or of several, in the order given. Columns that are not asked for are not read."""

    paths: Sequence[Path]
    columns: Columns
    root: str

    @property
    def total(self) -> int | None:
        return sum(_open(path).metadata.num_rows for path in self.paths)

    def rows(self) -> Iterator[Row | BadRow]:
        number = 0
        for path in self.paths:
            file = _open(path)
            self.columns.check(file.schema_arrow.names, where=str(path))
            wanted = [name for name in file.schema_arrow.names if name in self.columns.used]
            try:
                for row, values in enumerate(_values(file, wanted)):
                    yield row_of(values, self.columns, where=f"{path}: row {row}", number=number, root=self.root)
                    number += 1
            except (pa.ArrowException, OSError) as error:
                raise RecordError(f"{path} cannot be read ({error}); is it whole?") from error


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"{path} is no Parquet file that can be read ({error}).") from error


def _values(file: pq.ParquetFile, wanted: list[str]) -> Iterator[dict[str, object]]:
    for batch in file.iter_batches(batch_size=_TOGETHER, columns=wanted):
        yield from batch.to_pylist()
