"""Reads files with one JSON object in each line."""

import codecs
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from emocap_shards.errors import RecordError
from emocap_shards.writing.row import BadRow, ImageFolders, SourceRow
from emocap_shards.writing.sources.columns import TableColumns, row_of
from emocap_shards.writing.sources.encodings import NO_UTF8, refuse_utf16

MAX_LINE_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class JsonLinesSource:
    """Reads a file with one object in each line. Empty lines are skipped."""

    path: Path
    columns: TableColumns
    images: ImageFolders

    @property
    def total(self) -> int | None:
        return None

    def rows(self) -> Iterator[SourceRow | BadRow]:
        try:
            with self.path.open("rb") as file:
                number = 0
                refuse_utf16(file.peek(2)[:2], self.path)
                for line, read in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
                    text = read.removeprefix(codecs.BOM_UTF8) if line == 1 else read
                    if text.strip():
                        yield self._row(text, where=f"{self.path}:{line}", number=number)
                        number += 1
        except OSError as error:
            raise RecordError(f"{os.fspath(self.path)} cannot be read ({error.strerror}).") from error

    def _row(self, text: bytes, *, where: str, number: int) -> SourceRow | BadRow:
        try:
            values: Any = orjson.loads(text)
        except ValueError as error:
            return BadRow(where, NO_UTF8 if _is_no_utf8(text) else f"the line is not JSON ({error})")
        if not isinstance(values, dict):
            return BadRow(where, "the line is not a JSON object")
        return row_of(cast("dict[str, Any]", values), self.columns, where=where, number=number, images=self.images)


def _is_no_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return True
    return False
