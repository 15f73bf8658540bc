"""Arrow batches -> rows, a bounded number of bytes at a time."""

import re
from collections.abc import Iterator
from typing import Any

TOGETHER = 64
TOGETHER_BYTES = 1 << 28
# In these types a few bytes stand for many rows, so that what Python makes of them may be far larger.
_SHARED = re.compile("dictionary<|view|run_end")


def rows_of(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a record batch as objects, row by row where 64 together could have more than 256 MiB."""
    times = TOGETHER if _SHARED.search(str(batch.schema.types)) else 1
    for start in range(0, batch.num_rows, TOGETHER):
        part = batch.slice(start, TOGETHER)
        step = TOGETHER if part.nbytes * times <= TOGETHER_BYTES else 1
        for row in range(0, part.num_rows, step):
            yield from part.slice(row, step).to_pylist()
