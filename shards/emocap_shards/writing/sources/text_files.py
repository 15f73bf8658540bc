"""Opens text files in the encoding that they have or that the user names."""

import codecs
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from emocap_shards.errors import RecordError

NO_UTF8 = (
    "it is not UTF-8; name the encoding of the table, such as --encoding gb18030 if it comes from a Chinese Windows or "
    "cp1252 if it comes from a western one, or save it as UTF-8"
)


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Raises the errors of reading a file as a RecordError that names it."""
    try:
        yield
    except OSError as error:
        raise RecordError(f"{os.fspath(path)} cannot be read ({error.strerror}).") from error
    except UnicodeError as error:
        raise RecordError(f"{os.fspath(path)} cannot be read ({error}); correct it, or --encoding.") from error


def open_text(path: Path, encoding: str | None, *, newline: str = "") -> TextIO:
    """Opens a text table.

    Bytes that cannot be decoded become surrogates, so that only the rows with such bytes are bad. "utf-8-sig" drops a
    byte order mark, and the csv module needs the line ends as they are.
    """
    name = codecs.lookup(encoding or "utf-8").name
    with path.open("rb") as file:
        has_mark = file.read(2) in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}
    if has_mark and (encoding is None or name.startswith("utf-16")):
        name = "utf-16"
    encoding = "utf-8-sig" if name == "utf-8" else name
    return path.open(encoding=encoding, errors="surrogateescape", newline=newline)


def is_encoding(name: str) -> bool:
    """Returns whether Python knows an encoding of texts with this name."""
    try:
        return bool(getattr(codecs.lookup(name), "_is_text_encoding", False))
    except (LookupError, ValueError):
        return False


def is_text(text: str) -> bool:
    """Returns whether all bytes of a text could be decoded. Bytes that could not were read as surrogates."""
    return not any("\udc80" <= letter <= "\udcff" for letter in text)


def undecodable(encoding: str | None) -> str:
    """Returns the reason for which bytes cannot be decoded. `encoding` is the one that the user has named, if any."""
    return NO_UTF8 if encoding is None else f"it has bytes that are not {encoding}; correct --encoding, or the row"
