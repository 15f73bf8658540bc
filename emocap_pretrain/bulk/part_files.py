"""Writes the file of one part."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emocap_pretrain.bulk.pictures import Picture
from emocap_pretrain.bulk.scorers import Columns, Field
from emocap_pretrain.errors import DataError

ROWS_TOGETHER = 1024
"""Smallest number of rows of a row group, except the last group. About this many rows of a part are in memory."""

_VIDEO_FIELDS = (pa.field("time_s", pa.float64()), pa.field("frame", pa.int64()))


def schema_of(fields: Sequence[Field], *, videos: bool) -> Any:
    """Returns the columns of the output: name, for videos time and frame, the fields of the scorer, and error."""
    place = _VIDEO_FIELDS if videos else ()
    return pa.schema([pa.field("name", pa.string()), *place, *fields, pa.field("error", pa.string())])


def name_of(number: int) -> str:
    return f"part-{number:06d}.parquet"


class PartWriter:
    """Collects the rows of a part, and writes them in groups of at least `ROWS_TOGETHER` rows.

    The last group may have fewer rows.
    """

    def __init__(self, path: Path, schema: Any) -> None:
        self._schema = schema
        self._file = pq.ParquetWriter(path, schema, compression="none", use_dictionary=False)
        self._tables: list[Any] = []
        self.rows = self.errors = 0

    def add(self, pictures: Sequence[Picture], reasons: Sequence[DataError | None], columns: Columns) -> None:
        """Adds a row for each picture.

        Args:
            pictures: The pictures.
            reasons: For each picture the reason why it cannot be read; None for a readable one.
            columns: The fields of the readable pictures alone, in their order.
        """
        good = np.flatnonzero([reason is None for reason in reasons])
        # `take` returns null for a null index, so pictures with errors get nulls.
        places = np.full(len(pictures), -1)
        places[good] = np.arange(len(good))
        indices = pa.array(places, mask=places < 0)
        given: dict[str, Any] = {
            "name": [picture.name for picture in pictures],
            "time_s": [picture.time_s for picture in pictures],
            "frame": [picture.frame for picture in pictures],
            "error": [None if reason is None else str(reason) for reason in reasons],
        }
        arrays = [
            pa.array(given[field.name], field.type)
            if field.name in given
            else _array(columns[field.name] if len(good) else (), field.type).take(indices)
            for field in self._schema
        ]
        self._tables.append(pa.Table.from_arrays(arrays, schema=self._schema))
        self.rows += len(pictures)
        self.errors += len(pictures) - len(good)
        if sum(map(len, self._tables)) >= ROWS_TOGETHER:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.add_key_value_metadata({"errors": str(self.errors)})
        self._file.close()

    def abandon(self) -> None:
        """Closes the incomplete file after an error. It does nothing after `close`."""
        if self._file.is_open:
            self._file.close()

    def _flush(self) -> None:
        if self._tables:
            self._file.write_table(pa.concat_tables(self._tables).combine_chunks())
            self._tables.clear()


def _array(values: Any, kind: Any) -> Any:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        rows, size = values.shape
        return pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * size, values.ravel())
    return pa.array(values, kind)
