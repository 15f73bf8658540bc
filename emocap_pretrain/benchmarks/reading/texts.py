"""Reads tables and JSON documents that somebody else has written: in the stated encoding, and in bounded memory.

A table is streamed row by row. A byte order mark at the beginning of a file says the encoding with certainty, so it
overrides the stated one. Bytes that are wrong in the encoding are an error: a guess would change captions unseen.
"""

import csv
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from emocap_shards.local_files import open_regular

from emocap_pretrain.errors import DataError

LONGEST_LINE = 1 << 20
"""Characters in a line of a table. A row of FER2013, with 48 x 48 pixels, has about 9,000."""

LARGEST_JSON = 256 << 20
"""Bytes of a JSON document, which is read as a whole."""

_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\x84\x31\x95\x33", "gb18030"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_COMMENTS = re.compile(r"\s*(?://[^\n]*\n\s*)*")


def opened(path: Path) -> BinaryIO:
    """Opens a regular file for reading, and never waits for a pipe.

    Raises:
        DataError: If the file cannot be opened.
    """
    try:
        return os.fdopen(open_regular(path), "rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def small(path: Path, limit: int) -> bytes:
    """Returns the content of a file that has at most `limit` bytes.

    Raises:
        DataError: If the file cannot be opened, or is larger.
    """
    with opened(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DataError(f"{path} has more than {limit} bytes, so it is not what the layout says.")
    return content


def lines(path: Path, encoding: str) -> Iterator[str]:
    """Yields the lines of a text file, with their ends.

    Raises:
        DataError: If the file cannot be opened, is not in the encoding, or has a line of `LONGEST_LINE` or more
            characters.
    """
    with opened(path) as file:
        stated = _encoding(file.read(4), encoding)
        file.seek(0)
        text = io.TextIOWrapper(file, encoding=stated, newline="")
        number = 0
        while True:
            try:
                line = text.readline(LONGEST_LINE)
            except UnicodeError as error:
                raise DataError(f"{path} is not {stated} text after line {number}: {error}.") from error
            if not line:
                return
            number += 1
            if len(line) == LONGEST_LINE:
                raise DataError(f"{path}: line {number} is too long for a table.")
            yield line.removeprefix("\ufeff") if number == 1 else line


def rows(path: Path, encoding: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows of a table that are not empty, with their numbers from 1.

    Args:
        path: The file.
        encoding: Its encoding, unless a byte order mark says another one.
        separator: The text between cells. A single space matches any number of spaces and tabs. Only the cells of a
            table with commas may be quoted.

    Raises:
        DataError: As `lines` does, or if the quotes of a table with commas do not match.
    """
    if separator == ",":
        reader = csv.reader(lines(path, encoding), strict=True)
        try:
            yield from ((number, row) for number, row in enumerate(reader, start=1) if row)
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num} is not a row of a CSV file: {error}.") from error
        return
    between = None if separator == " " else separator
    for number, line in enumerate(lines(path, encoding), start=1):
        if line.strip():
            yield number, line.rstrip("\r\n").split(between)


def document(path: Path) -> Any:
    """Returns the content of a JSON file. Comment lines that begin with // may precede the document.

    Raises:
        DataError: If the file cannot be opened, has more than `LARGEST_JSON` bytes, is not UTF-8 text (or what its byte
            order mark says), or is not JSON.
    """
    content = small(path, LARGEST_JSON)
    stated = _encoding(content[:4], "utf-8")
    try:
        text = content.decode(stated).removeprefix("\ufeff")
        return orjson.loads(_COMMENTS.sub("", text, count=1))
    except ValueError as error:
        raise DataError(f"{path} is not a JSON document in {stated}: {error}.") from error


def _encoding(head: bytes, stated: str) -> str:
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), stated)
