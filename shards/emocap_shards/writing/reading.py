"""Reads objects of a store as files, and finds the objects that match a pattern."""

import fnmatch
import io
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import braceexpand

from emocap_shards.errors import RecordError
from emocap_shards.store import Store, open_store

_BUFFER_BYTES = 1 << 23
_WILD = re.compile(r"[*?\[]")


class StoreFile(io.RawIOBase):
    """One object that is read from front to back in ranges."""

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
    """Returns a stream of an object that requests 8 MiB at a time from the store."""
    return io.BufferedReader(StoreFile(store, path), _BUFFER_BYTES)


def matching(pattern: str) -> Iterator[tuple[Store, str]]:
    """Yields the objects that match a path or URL with {braces} and wild cards: braces in their order, wild cards
    sorted.

    Raises:
        RecordError: If nothing matches.
    """
    found = False
    for url in braceexpand.braceexpand(pattern) if "{" in pattern else [pattern]:
        literal = url if Path(url).is_file() or not _WILD.search(url) else _WILD.split(url)[0]
        folder = posixpath.dirname(literal)
        store, rest = open_store(folder or "."), url[len(folder) :].lstrip("/")
        paths = [rest] if literal == url else sorted(_wild(store, rest))
        for path in paths:
            found = True
            yield store, path
    if not found:
        raise RecordError(f"{pattern} matches no file; check it.")


def _wild(store: Store, pattern: str) -> Iterator[str]:
    parts = pattern.split("/")
    for entry in store.list():
        names = entry.path.split("/")
        if len(names) == len(parts) and all(map(fnmatch.fnmatchcase, names, parts)):
            yield entry.path
