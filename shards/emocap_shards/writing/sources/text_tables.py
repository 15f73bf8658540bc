"""Reads tables from text files: CSV and TSV with a header, and files with one JSON object in each line."""

import codecs
import csv
import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from emocap_shards.errors import RecordError
from emocap_shards.writing.row import BadRow, ImageFolders, SourceRow
from emocap_shards.writing.sources.columns import NO_URLS, URL, TableColumns, row_of

MAX_LINE_BYTES = 1 << 26
_NO_UTF8 = (
    "it is not UTF-8; save the table as UTF-8, as with `iconv -f GB18030 -t UTF-8` if it comes from a Chinese Windows"
)

# Matches a number as other programs write it, including infinity. "001" does not match, because a number would lose its
# zeros. An integer of more than 15 digits does not match, because a float would lose its last digits.
_NUMBER = re.compile(
    r"[+-]?((0|[1-9]\d{0,14})|(0|[1-9]\d*)?\.\d+([eE][+-]?\d{1,3})?|[1-9]\d*[eE][+-]?\d{1,3}|inf(inity)?)",
    re.IGNORECASE,
)
_MISSING = {"", "nan"}
_DELIMITERS = (",", "\t", ";", "|")
_HEADER = 1 << 16  # The number of characters of the first line that are examined.
_VALUE = re.compile(r"\.(jpe?g|png|webp)$|^https?://", re.IGNORECASE)
# The messages of Python's csv about a quote that is open at the end of the file, and about a cell that is too long.
_ENDLESS = re.compile("unexpected end of data|field larger than field limit")


@dataclass(frozen=True, slots=True)
class DelimitedSource:
    """Reads the rows of a table. If `delimiter` does not split the header into the needed columns, other delimiters are
    tried.

    In a column of labels, an empty cell or `nan` means that the row does not have this label. If all other cells of the
    column are plain numbers, its labels are numbers, and otherwise texts. "001" and integers of more than 15 digits are
    not plain numbers, because a float would not keep all of their digits. The file is read once before its first row,
    to find the columns of numbers.
    """

    path: Path
    columns: TableColumns
    images: ImageFolders
    delimiter: str = ","

    @property
    def total(self) -> int | None:
        return None

    def rows(self) -> Iterator[SourceRow | BadRow]:
        numeric = self._numeric_labels()
        with self._table() as (header, records):
            for number, (line, cells) in enumerate(records):
                yield self._row(header, cells, numeric, where=f"{self.path}:{line}", number=number)

    @contextmanager
    def _table(self) -> Generator[tuple[list[str], Iterator[tuple[int, list[str] | str]]]]:
        """Opens the table, checks that its header has the needed columns, and yields the header and the rows
        (`_records`).
        """
        # Bytes that are not UTF-8 become surrogates, so that only the rows with such bytes are bad. "utf-8-sig" drops a
        # byte order mark, and the csv module needs the line ends as they are.
        with _read(self.path), self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            _refuse_utf16(file.buffer.peek(2)[:2], self.path)  # pyright: ignore[reportAttributeAccessIssue]
            delimiter = self._delimiter(file.readline(_HEADER))
            # The whole table is read with the delimiter that was found, from its header on.
            file.seek(0)
            # Without `strict`, a quote that is never closed would not be an error.
            table = csv.reader(file, delimiter=delimiter, strict=True)
            header = _header(table, str(self.path))
            if any(map(_VALUE.search, header)) and self.columns.missing(header):
                sample = f"{self.columns.image}{delimiter}{self.columns.global_}"
                urls = f"; {NO_URLS}" if any(map(URL.match, header)) else ""
                raise RecordError(
                    f"{self.path}:1: the first line has values; put names before it, such as {sample!r}{urls}."
                )
            self.columns.check(header, where=str(self.path))
            yield header, _records(table, str(self.path))

    def _delimiter(self, first: str) -> str:
        """Returns the delimiter that splits the first line into the needed columns, or else the one that gives the most
        cells.
        """
        ways = [self.delimiter, *(each for each in _DELIMITERS if each != self.delimiter)]
        cells = {each: next(csv.reader([first], delimiter=each), []) for each in ways}
        fitting = [each for each in ways if not self.columns.missing(cells[each])]
        # If none fits, the error lists the columns of the way that gives the most.
        return fitting[0] if fitting else max(ways, key=lambda each: len(cells[each]))

    def _numeric_labels(self) -> frozenset[str]:
        """Returns the columns of labels in which every cell that is not missing is a plain number."""
        numeric = set(self.columns.labels)
        with self._table() as (header, records), suppress(RecordError):  # `rows` raises the error again at this row.
            places = {name: header.index(name) for name in numeric}
            for _, cells in records:
                if not numeric:
                    break
                if not isinstance(cells, str) and len(cells) == len(header):
                    numeric -= {name for name in numeric if not _is_number_or_missing(cells[places[name]])}
        return frozenset(numeric)

    def _row(
        self, header: list[str], cells: list[str] | str, numeric: frozenset[str], *, where: str, number: int
    ) -> SourceRow | BadRow:
        if isinstance(cells, str):
            return BadRow(where, cells)
        if len(cells) != len(header):
            return BadRow(where, f"it has {len(cells)} cells, the header {len(header)}")
        if not all(map(_is_text, cells)):
            return BadRow(where, _NO_UTF8)
        values: dict[str, Any] = dict(zip(header, cells, strict=True))
        labels = {name: _label(values[name], number=name in numeric) for name in self.columns.labels}
        return row_of(values | labels, self.columns, where=where, number=number, images=self.images)


@dataclass(frozen=True, slots=True)
class JsonLinesSource:
    """Reads a file with one JSON object in each line. Empty lines are skipped."""

    path: Path
    columns: TableColumns
    images: ImageFolders

    @property
    def total(self) -> int | None:
        return None

    def rows(self) -> Iterator[SourceRow | BadRow]:
        number = 0
        with _read(self.path), self.path.open("rb") as file:
            _refuse_utf16(file.peek(2)[:2], self.path)
            for line, read in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
                text = read.removeprefix(codecs.BOM_UTF8) if line == 1 else read
                if text.strip():
                    yield self._row(text, where=f"{self.path}:{line}", number=number)
                    number += 1

    def _row(self, text: bytes, *, where: str, number: int) -> SourceRow | BadRow:
        try:
            values: Any = orjson.loads(text)
        except ValueError as error:
            return BadRow(where, _NO_UTF8 if _is_no_utf8(text) else f"the line is not JSON ({error})")
        if not isinstance(values, dict):
            return BadRow(where, "the line is not a JSON object")
        return row_of(cast("dict[str, Any]", values), self.columns, where=where, number=number, images=self.images)


@contextmanager
def _read(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(f"{os.fspath(path)} cannot be read ({error.strerror}).") from error


def _refuse_utf16(head: bytes, path: Path) -> None:
    """Checks that the first two bytes of a file, `head`, are not the byte order mark of UTF-16.

    Raises:
        RecordError: If `head` is this byte order mark.
    """
    if head[:2] in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
        raise RecordError(f"{path} is UTF-16; save it as UTF-8, as with `iconv -f UTF-16 -t UTF-8 OLD > NEW`.")


def _header(table: Any, where: str) -> list[str]:
    try:
        header: list[str] = next(table, [])
    except csv.Error as error:
        raise RecordError(f"{where}:1: the header cannot be read ({error}).") from error
    if not all(map(_is_text, header)):
        raise RecordError(f"{where}:1: {_NO_UTF8}.")
    if len(set(header)) < len(header):
        raise RecordError(f"{where}:1: the header names a column twice; correct it.")
    return header


def _records(table: Any, where: str) -> Iterator[tuple[int, list[str] | str]]:
    """Yields (line number, cells) for each row that is not empty. If a row spans several lines, the number is that of
    the first line.

    If a row cannot be read, a text with the reason replaces its cells.

    Raises:
        RecordError: If the end of a row or a cell is not found, usually because a quote is not closed and the following
            rows are read as part of the cell.
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
                    f"{csv.field_size_limit()} characters ({error}); correct this row, or the rows after it are lost."
                ) from error
            lost = f", and all up to line {table.line_num} is lost with it" if table.line_num > line else ""
            yield line, f"the row cannot be read ({error}){lost}"
            continue
        if cells:
            yield line, cells


def _is_text(cell: str) -> bool:
    """Returns whether the bytes of a cell are valid UTF-8. Bytes that are not valid were read as surrogates."""
    return not any("\udc80" <= letter <= "\udcff" for letter in cell)


def _is_number_or_missing(cell: str) -> bool:
    return cell.lower() in _MISSING or bool(_NUMBER.fullmatch(cell))


def _label(cell: str, *, number: bool) -> str | float | None:
    """Returns the value of a label, as a float if `number` is true. Returns None if the cell has no value.

    Infinity is returned as a number, and `normal_annotation` refuses it later.
    """
    if cell.lower() in _MISSING:
        return None
    return float(cell) if number else cell


def _is_no_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return True
    return False
