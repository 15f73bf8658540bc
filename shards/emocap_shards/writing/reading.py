"""Reads objects of a store as files, and finds the objects that match a pattern."""

import fnmatch
import io
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import braceexpand

from emocap_shards.errors import RecordError
from emocap_shards.mask import masked_url
from emocap_shards.store import Store, open_store

TAR = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)
"""Finds the extension of a name that is that of a tar, perhaps a compressed one."""
_BUFFER_BYTES = 1 << 23
_WILD = re.compile(r"[*?\[]")


class StoreFile(io.RawIOBase):
    """Presents an object of a store as a file that is read from front to back. Each read requests the next range of
    bytes.
    """

    def __init__(self, store: Store, path: str) -> None:
        super().__init__()
        self._store = store
        self._path = path
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview", /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        data = self._store.read_range(self._path, self._position, self._position + len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def open_object(store: Store, path: str) -> io.BufferedReader:
    """Returns a stream of an object. Each request to the store asks for the next 8 MiB."""
    return io.BufferedReader(StoreFile(store, path), _BUFFER_BYTES)


def matching(pattern: str) -> Iterator[tuple[Store, str]]:
    """Yields the store and the path of each object that matches a path or URL with {braces} and wild cards.

    The alternatives in braces keep their order, and the matches of a wild card are sorted. A path or URL without wild
    cards is yielded even if there is no object.

    Raises:
        RecordError: If nothing is yielded, because the wild cards match no object.
    """
    for folder, path in places(pattern):
        yield open_store(folder), path


def places(pattern: str) -> Iterator[tuple[str, str]]:
    """Yields the same as `matching`, but the path or URL of each store in place of the store.

    Raises:
        RecordError: If nothing is yielded, because the wild cards match no object.
    """
    found = False
    for url in alternatives(pattern):
        # A file whose name itself has such a character is taken literally. Otherwise the folder before the first wild
        # card is opened.
        literal = url if Path(url).is_file() or not _WILD.search(url) else _WILD.split(url)[0]
        folder = posixpath.dirname(literal)
        rest, folder = url[len(folder) :].lstrip("/"), folder or "."
        for path in [rest] if literal == url else sorted(_wild(open_store(folder), rest)):
            found = True
            yield folder, path
    if not found:
        raise RecordError(f"{masked_url(pattern)} matches no file; check it.")


def alternatives(pattern: str) -> Iterator[str]:
    """Yields the paths or URLs that a pattern with {braces} names, in the order of the alternatives.

    Raises:
        RecordError: If a brace is not closed.
    """
    try:
        yield from braceexpand.braceexpand(pattern) if "{" in pattern else [pattern]
    except ValueError as error:  # The library's error for unbalanced braces.
        raise RecordError(f"{masked_url(pattern)}: {error}; close each brace.") from error


def _wild(store: Store, pattern: str) -> Iterator[str]:
    """Yields the paths in the store that match a pattern with wild cards; a wild card does not match a slash."""
    parts = pattern.split("/")
    for entry in store.list():
        names = entry.path.split("/")
        if len(names) == len(parts) and all(map(fnmatch.fnmatchcase, names, parts)):
            yield entry.path
