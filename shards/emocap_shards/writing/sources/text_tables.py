"""Reads tables from text files: CSV and TSV, lists such as "a.jpg 5", and JSON objects, one in a line or in a list."""

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, cast

from emocap_shards.errors import RecordError
from emocap_shards.printable import listed, short
from emocap_shards.writing.row import MAX_FILE_BYTES, BadRow, ImageFolders, SourceRow
from emocap_shards.writing.sources.columns import NO_URLS, URL, TableColumns, row_of
from emocap_shards.writing.sources.json_documents import items_of
from emocap_shards.writing.sources.text_files import NO_UTF8, is_encoding, is_text, open_text, reading, undecodable
from emocap_shards.writing.sources.values import json_of

_log = logging.getLogger(__name__)

JSON_LINES = frozenset({".jsonl", ".ndjson"})
MAX_LINE_BYTES = 1 << 26
# Matches a number as other programs write it, including infinity. "001" does not match, because a number would lose its
# zeros. An integer of more than 15 digits does not match, because a float would lose its last digits.
_NUMBER = re.compile(
    r"[+-]?((0|[1-9]\d{0,14})|(0|[1-9]\d*)?\.\d+([eE][+-]?\d{1,3})?|[1-9]\d*[eE][+-]?\d{1,3}|inf(inity)?)",
    re.IGNORECASE,
)
_MISSING = {"", "nan"}
# R, pandas and databases write these for a missing value. No class is called so.
_MARKS = frozenset({"NA", "N/A", "<NA>", "NULL"})
# A caption that is one of these is missing too. A class may be called so.
_NO_CAPTION = _MARKS | {"nan", "NaN", "None", "null"}
# The first line by which Excel finds the delimiter of a table.
DECLARED = re.compile(r"\ufeff?\"?sep=([^\"\r\n])\"?\s*")
_MOST_VALUES = 1000  # Values of a label whose spellings are compared.
WHITE_SPACE = " "
"""The delimiter of lists: any number of blanks and tabs separate two cells, and quotes have no meaning."""
_DELIMITERS = (",", "\t", ";", "|")
_EXAMINED = 100  # Lines of a table without a header that are read to find its delimiter.
_DELIMITER_NAMES = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar", WHITE_SPACE: "space"}
_HEADER = 1 << 16  # The number of characters of the first line that are examined.
_VALUE = re.compile(r"\.(jpe?g|png|webp)$|^https?://", re.IGNORECASE)
# The messages of Python's csv about a quote that is open at the end of the file, and about a cell that is too long.
_ENDLESS = re.compile("unexpected end of data|field larger than field limit")


@dataclass(frozen=True, slots=True)
class TextTableConfig:
    """Says what a text table cannot say itself.

    Attributes:
        delimiter: The character between two cells, or its name (`comma`, `tab`, `semicolon`, `bar`, `space`); " "
            means any number of blanks and tabs. With None it is found.
        names: The names of the columns of a table without a header; empty if the first line has them.
        encoding: The encoding. With None it is UTF-8, or UTF-16 if the file begins with its byte order mark.
    """

    delimiter: str | None = None
    names: tuple[str, ...] = ()
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None:
            named = {name: letter for letter, name in _DELIMITER_NAMES.items()} | {"\\t": "\t"}
            letter = named.get(self.delimiter, self.delimiter)
            if len(letter) != 1 or letter in '"\r\n' or not letter.isascii():
                raise RecordError(
                    f"delimiter {short(self.delimiter)} is neither one character nor one of "
                    f"{', '.join(_DELIMITER_NAMES.values())}."
                )
            object.__setattr__(self, "delimiter", letter)
        if len(set(self.names)) < len(self.names) or not all(self.names):
            raise RecordError(f"the columns {', '.join(map(short, self.names))} need names that differ (--columns).")
        if self.encoding is not None and not is_encoding(self.encoding):
            raise RecordError(f"there is no encoding {short(self.encoding)}; give one such as gb18030 or utf-16.")

    @property
    def given(self) -> frozenset[str]:
        """Returns the options of `emocap pack` with which the user has set attributes, such as "--delimiter"."""
        values = {"--delimiter": self.delimiter, "--columns": self.names or None, "--encoding": self.encoding}
        return frozenset(option for option, value in values.items() if value is not None)


@dataclass(frozen=True, slots=True)
class DelimitedSource:
    """Reads the rows of a table. If `delimiter` does not split the header into the needed columns, other delimiters are
    tried.

    The file has a header unless `form` names the columns. Then the delimiter must split each of the first lines into as
    many cells; if only one of the other delimiters does, it is taken.

    In a column of labels, an empty cell, `nan`, `NA`, `N/A`, `<NA>` or `NULL` means that the row does not have this
    label. Blanks around a label or the name of a column do not count. If all other cells of the column are plain
    numbers, its labels are numbers, and otherwise texts. "001" and integers of more than 15 digits are not plain
    numbers, because a float would not keep all of their digits. The file is read once before its first row, to find the
    columns of numbers, and labels that differ only in case, of which a warning is logged.
    """

    path: Path
    columns: TableColumns
    images: ImageFolders
    delimiter: str = ","
    form: TextTableConfig = TextTableConfig()

    def rows(self) -> Iterator[SourceRow | BadRow]:
        with self._table() as (header, records):
            self.columns.check(header, where=str(self.path))
            if missing := [name for name in self.columns.labels if name not in header]:
                raise RecordError(f"{self.path}: {self.columns.lacking(missing, header)}.")
            numeric = self._numeric_labels()
            for number, (line, cells) in enumerate(records):
                yield self._row(header, cells, numeric, where=f"{self.path}:{line}", number=number)

    def names(self) -> list[str]:
        """Returns the names of the columns. Columns that are needed may be missing.

        Raises:
            RecordError: If the first line cannot be read, or looks like the first row.
        """
        with self._table() as (header, _):
            return header

    @contextmanager
    def _table(self) -> Generator[tuple[list[str], Iterator[tuple[int, list[str] | str]]]]:
        """Opens the table, and yields the names of its columns and the rows (`_records`)."""
        with reading(self.path), open_text(self.path, self.form.encoding) as file:
            declared = DECLARED.fullmatch(file.readline(_HEADER))
            file.seek(0)
            delimiter = declared[1] if declared else self._delimiter(file)
            # The whole table is read with the delimiter that was found, from its first line on.
            file.seek(0)
            lines = _lines(file, self.path)
            # Without `strict`, a quote that is never closed would not be an error.
            table: _Table = (
                _Words(lines) if delimiter == WHITE_SPACE else csv.reader(lines, delimiter=delimiter, strict=True)
            )
            if declared:
                next(table)
            yield list(self.form.names) or self._header(table, delimiter), _records(table, str(self.path))

    def _header(self, table: "_Table", delimiter: str) -> list[str]:
        header = _header(table, str(self.path))
        if self.columns.missing(header) and self._looks_like_row(header):
            first = short((" " if delimiter == WHITE_SPACE else delimiter).join(header))
            if any(map(URL.match, header)):
                raise RecordError(f"{self.path}:1: the first line is {first}; {NO_URLS}.")
            others = ",".join(self.columns.labels or (self.columns.global_,))
            if not self.columns.labels and all(map(_NUMBER.fullmatch, header[1:])):  # Classes, as in most lists.
                others = "emotion --label emotion"
            raise RecordError(
                f"{self.path}:1: the first line is {first}, which does not name the needed columns; name the columns "
                f"in their order, such as --columns {self.columns.image},{others}."
            )
        return header

    def _looks_like_row(self, header: Sequence[str]) -> bool:
        """Returns whether the first line is probably a row: it is one in a list, and if it names a file."""
        if self.delimiter == WHITE_SPACE or any(map(_VALUE.search, header)):
            return True
        return any(os.path.exists(os.path.join(self.images.root, word)) for word in " ".join(header).split())  # noqa: PTH110, PTH118

    def _delimiter(self, file: TextIO) -> str:
        """Returns the delimiter of the table.

        With a header it is the one that splits the first line into the needed columns, or else the one that gives the
        most cells. Without a header it is the one that splits the first lines into as many cells as there are names.

        Raises:
            RecordError: If there is no header, and several delimiters or none of them fit.
        """
        if self.form.delimiter is not None:
            return self.form.delimiter
        ways = [self.delimiter, *(each for each in _DELIMITERS if each != self.delimiter)]
        lines = [line for line in islice(iter(lambda: file.readline(_HEADER), ""), _EXAMINED) if line.strip()]
        if not lines:
            return self.delimiter
        if not self.form.names:
            cells = {each: [name.strip() for name in _cells(lines[0], each)] for each in ways}
            fitting = [each for each in ways if not self.columns.missing(cells[each])]
            # If none fits, the error lists the columns of the way that gives the most.
            return fitting[0] if fitting else max(ways, key=lambda each: len(cells[each]))
        fitting = [
            each
            for each in dict.fromkeys([*ways, WHITE_SPACE])
            if all(len(_cells(line, each)) == len(self.form.names) for line in lines)
        ]
        if self.delimiter in fitting:
            return self.delimiter
        if len(fitting) != 1:
            found = " and ".join(_DELIMITER_NAMES[each] for each in fitting) or "no delimiter"
            raise RecordError(
                f"{self.path}:1: {found} would split the first lines into the {len(self.form.names)} columns "
                f"{', '.join(self.form.names)}, such as {short(lines[0].rstrip())}; correct --columns, or give "
                "--delimiter."
            )
        return fitting[0]

    def _numeric_labels(self) -> frozenset[str]:
        """Returns the columns of labels in which every cell that is not missing is a plain number."""
        numeric = set(self.columns.labels)
        values = {name: set[str]() for name in self.columns.labels}
        with self._table() as (header, records), suppress(RecordError):  # `rows` raises the error again at this row.
            places = {name: header.index(name) for name in numeric}
            for _, cells in records:
                if isinstance(cells, str) or len(cells) != len(header):
                    continue
                numeric -= {name for name in numeric if not _is_number_or_missing(cells[places[name]].strip())}
                for name, found in values.items():
                    if len(found) < _MOST_VALUES:
                        found.add(cells[places[name]].strip())
        if not self.columns.label_names:
            self._tell_spellings(values)
        return frozenset(numeric)

    def _tell_spellings(self, values: Mapping[str, Iterable[str]]) -> None:
        """Logs a warning if values of a label differ only in case, because each of them is a class of its own."""
        for name, found in values.items():
            spellings = Counter(map(str.casefold, found))
            if alike := sorted(value for value in found if spellings[value.casefold()] > 1):
                cure = "each is a class of its own; --label-names gives them one name"
                _log.warning("%s: values of %s differ only in case (%s): %s.", self.path, name, listed(alike, 8), cure)

    @property
    def _captions(self) -> frozenset[str]:
        columns = self.columns
        parts = {columns.global_, columns.local, columns.summary, *columns.further, *columns.instead, "caption"}
        return frozenset(parts - {*columns.labels})

    def _row(
        self, header: list[str], cells: list[str] | str, numeric: frozenset[str], *, where: str, number: int
    ) -> SourceRow | BadRow:
        if isinstance(cells, str):
            return BadRow(where, cells)
        if len(cells) != len(header):
            what = "--columns" if self.form.names else "the header"
            has_quotes = WHITE_SPACE not in {self.delimiter, self.form.delimiter}
            quotes = "; quotes must enclose a cell that contains the delimiter"
            cure = quotes if has_quotes and len(cells) > len(header) else ""
            return BadRow(where, f"it has {len(cells)} cells, {what} {len(header)}{cure}")
        if not all(map(is_text, cells)):
            return BadRow(where, undecodable(self.form.encoding))
        values: dict[str, Any] = dict(zip(header, cells, strict=True))
        # In a text table, the marks of a missing value cannot be told from a caption by their type.
        empty = {name: "" for name in self._captions & values.keys() if values[name].strip() in _NO_CAPTION}
        labels = {name: _label(values[name], number=name in numeric) for name in self.columns.labels}
        return row_of(values | empty | labels, self.columns, where=where, number=number, images=self.images)


@dataclass(frozen=True, slots=True)
class JsonSource:
    """Reads JSON objects: one in each line of a file, or all in one list. A list is read into memory.

    Empty lines are skipped. Lines are read from files with the suffixes `JSON_LINES`, and from others whose first line
    is a complete object with another line after it.
    """

    path: Path
    columns: TableColumns
    images: ImageFolders
    encoding: str | None = None

    def rows(self) -> Iterator[SourceRow | BadRow]:
        for number, (where, value) in enumerate(self._values()):
            if isinstance(value, BadRow):
                yield value
            elif isinstance(value, dict):
                found = cast("dict[str, Any]", value)
                yield row_of(found, self.columns, where=where, number=number, images=self.images)
            else:
                yield BadRow(where, f"{short(value)} is not a JSON object")

    def names(self) -> list[str]:
        """Returns the names of the members of the first object; none if there is no object.

        Raises:
            RecordError: If the file cannot be read.
        """
        _, first = next(self._values(), ("", None))
        return list(cast("dict[str, Any]", first)) if isinstance(first, dict) else []

    def _values(self) -> Iterator[tuple[str, object]]:
        """Yields the place and the value of each line or item; in place of a line that is not JSON, a bad row."""
        with reading(self.path), open_text(self.path, self.encoding, newline="\n") as file:
            if self._has_lines(file):
                file.seek(0)
                for number, line in enumerate(_lines(file, self.path), 1):
                    if line.strip():
                        where = f"{self.path}:{number}"
                        yield where, self._parsed(line, where)
            else:
                file.seek(0)
                for number, value in enumerate(self._items(file)):
                    yield f"{self.path}: object {number}", value

    def _has_lines(self, file: TextIO) -> bool:
        if self.path.suffix.lower() in JSON_LINES:
            return True
        first, others = file.readline(MAX_LINE_BYTES), file.read(64)
        return bool(others.strip()) and isinstance(self._parsed(first, ""), dict)

    def _items(self, file: TextIO) -> list[object]:
        text = file.read(MAX_FILE_BYTES + 1)
        if not is_text(text):
            raise RecordError(f"{self.path} cannot be read: {undecodable(self.encoding)}.")
        return items_of(text, self.path, self.columns.image)

    def _parsed(self, text: str, where: str) -> object:
        try:
            # A text with surrogates is refused. They take the place of bytes that are not UTF-8.
            return json_of(text)
        except ValueError as error:
            return BadRow(where, f"the line is not JSON ({error})" if is_text(text) else undecodable(self.encoding))


_Table = Any  # A reader of Python's csv, whose type has no public name, or `_Words`.


class _Words:
    """Yields the words of each line, as a reader of csv yields its cells."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.line_num = 0

    def __iter__(self) -> "_Words":
        return self

    def __next__(self) -> list[str]:
        words = next(self._lines).split()
        self.line_num += 1
        return words


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    """Yields the lines of a file with their ends.

    Raises:
        RecordError: If a line has `MAX_LINE_BYTES` characters or more.
    """
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), ""), 1):
        if len(line) == MAX_LINE_BYTES:
            raise RecordError(f"{path}:{number}: the line has {MAX_LINE_BYTES:,} or more letters; correct this row.")
        yield line


def _cells(line: str, delimiter: str) -> list[str]:
    if delimiter == WHITE_SPACE:
        return line.split()
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _header(table: _Table, where: str) -> list[str]:
    try:
        header = [str(name).strip() for name in next(filter(None, table), [])]
    except csv.Error as error:
        raise RecordError(f"{where}:1: the header cannot be read ({error}).") from error
    if not header:
        raise RecordError(f"{where} is empty.")
    if not all(map(is_text, header)):
        raise RecordError(f"{where}:1: {NO_UTF8}.")
    # Programs for spreadsheets may write columns without names.
    if twice := [name for name, count in Counter(header).items() if name and count > 1]:
        raise RecordError(f"{where}:1: the header names the column {short(twice[0])} twice; correct it.")
    return header


def _records(table: _Table, where: str) -> Iterator[tuple[int, list[str] | str]]:
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


def _is_number_or_missing(cell: str) -> bool:
    return _is_missing(cell) or bool(_NUMBER.fullmatch(cell))


def _is_missing(cell: str) -> bool:
    return cell.lower() in _MISSING or cell in _MARKS


def _label(cell: str, *, number: bool) -> str | float | None:
    """Returns the value of a label, as a float if `number` is true. Returns None if the cell has no value.

    Infinity is returned as a number, and `normal_annotation` refuses it later.
    """
    cell = cell.strip()
    if _is_missing(cell):
        return None
    return float(cell) if number else cell
