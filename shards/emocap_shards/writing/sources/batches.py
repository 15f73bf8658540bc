"""Converts Arrow batches into rows, a bounded number of bytes at a time."""

import re
from collections.abc import Iterator
from typing import Any

TOGETHER = 64
TOGETHER_BYTES = 1 << 28
# In these types many rows share a few bytes, so that the Python objects may be far larger than the batch.
_SHARED = re.compile("dictionary<|view|run_end")


def rows_of(batch: Any) -> Iterator[dict[str, Any]]:
    """Yields the rows of a record batch as dictionaries: 64 at a time, or one by one if 64 could exceed 256 MiB."""
    times = TOGETHER if _SHARED.search(str(batch.schema.types)) else 1
    for start in range(0, batch.num_rows, TOGETHER):
        part = batch.slice(start, TOGETHER)
        step = TOGETHER if part.nbytes * times <= TOGETHER_BYTES else 1
        for row in range(0, part.num_rows, step):
            yield from part.slice(row, step).to_pylist()
