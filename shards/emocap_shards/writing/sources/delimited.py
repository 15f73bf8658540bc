"""CSV and TSV tables with a header."""

import csv
import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emocap_shards.errors import RecordError
from emocap_shards.writing.row import BadRow, Row
from emocap_shards.writing.sources.columns import Columns, row_of

# What Python's csv says of a quote that is open at the end of the file, and of a cell that is too long.
_ENDLESS = re.compile("unexpected end of data|field larger than field limit")


@dataclass(frozen=True, slots=True)
class DelimitedSource:
    """The rows of a table. A label that reads as a number becomes one; an empty cell or `nan` is no label."""

    path: Path
    columns: Columns
    root: str
    delimiter: str = ","

    @property
    def total(self) -> int | None:
        return None

    def rows(self) -> Iterator[Row | BadRow]:
        # Bytes that are no UTF-8 become surrogates, which tell the bad row from its neighbours.
        with _read(self.path), self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            table = csv.reader(file, delimiter=self.delimiter, strict=True)
            header = _header(table, str(self.path))
            self.columns.check(header, where=str(self.path))
            for number, (line, cells) in enumerate(_records(table, str(self.path))):
                yield self._row(header, cells, where=f"{self.path}:{line}", number=number)

    def _row(self, header: list[str], cells: list[str] | str, *, where: str, number: int) -> Row | BadRow:
        if isinstance(cells, str):
            return BadRow(where, cells)
        if len(cells) != len(header):
            return BadRow(where, f"it has {len(cells)} cells, the header {len(header)}")
        if not all(map(_is_text, cells)):
            return BadRow(where, "it is no UTF-8; save the table as UTF-8")
        values: dict[str, Any] = dict(zip(header, cells, strict=True))
        labels = {name: _label(values[name]) for name in self.columns.labels}
        return row_of(values | labels, self.columns, where=where, number=number, root=self.root)


@contextmanager
def _read(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(f"{os.fspath(path)} cannot be read ({error.strerror}).") from error


def _header(table: Any, where: str) -> list[str]:
    try:
        header: list[str] = next(table, [])
    except csv.Error as error:
        raise RecordError(f"{where}:1: the header cannot be read ({error}).") from error
    if len(set(header)) < len(header) or not all(map(_is_text, header)):
        raise RecordError(f"{where}:1: the header names a column twice or is no UTF-8; correct it.")
    return header


def _records(table: Any, where: str) -> Iterator[tuple[int, list[str] | str]]:
    """First line and cells of each row that is not empty, or what is wrong with it.

    Raises:
        RecordError: If a row does not end, or a cell of it: most often an unclosed quote took the rows behind it.
    """
    while True:
        line = table.line_num + 1
        try:
            cells: list[str] = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            if _ENDLESS.search(str(error)):
                raise RecordError(
                    f"{where}:{line}: a quote that opens here is not closed, or a cell has more than "
                    f"{csv.field_size_limit()} characters ({error}); correct this row, or the rows behind it are lost."
                ) from error
            lost = f", and all up to line {table.line_num} is lost with it" if table.line_num > line else ""
            yield line, f"the row cannot be read ({error}){lost}"
            continue
        if cells:
            yield line, cells


def _is_text(cell: str) -> bool:
    return not any("\udc80" <= letter <= "\udcff" for letter in cell)


def _label(cell: str) -> str | float | None:
    """Not a number is a missing label, as in other tables; infinity is refused where labels are checked."""
    try:
        number = float(cell)
    except ValueError:
        return cell or None
    return cell if "_" in cell else number
