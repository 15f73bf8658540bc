"""Reads a shard from its beginning to its end in ranges, and computes its SHA-256 at the same time."""

import hashlib
from collections.abc import Callable, Iterator

from emocap_shards.store import Store

RANGE_BYTES = 8 << 20


class Tape:
    """Reads a shard in order. However large the shard is, only about one range and one sample are in memory.

    `on_bytes` is called with the number of bytes of each range. Callers request bytes in ascending order. If a caller
    requests earlier bytes, for instance because an index is damaged, they are read again in a separate request.
    """

    def __init__(
        self, store: Store, path: str, on_bytes: Callable[[int], None], *, range_bytes: int = RANGE_BYTES
    ) -> None:
        self._store = store
        self._path = path
        self._on_bytes = on_bytes
        self._range_bytes = range_bytes
        self._held = b""
        self._start = 0  # Position of the first held byte.
        self._ended = False
        self._sha256 = hashlib.sha256()

    def take(self, start: int, end: int) -> bytes:
        """Returns the bytes [start, end) of the shard, or fewer if the shard ends earlier."""
        if start < self._start:
            return self._store.read_range(self._path, start, end)
        while self.position < end and not self._ended:
            self._read_on(keep_from=start)
        return self._held[max(0, start - self._start) : max(0, end - self._start)]

    def rest(self, start: int) -> Iterator[bytes]:
        """Yields the bytes from `start` to the end, in pieces.

        `start` must not be less than the `start` of the last `take`.
        """
        self.take(start, start)
        yield self._held[max(0, start - self._start) :]
        while not self._ended:
            self._read_on(keep_from=self.position)
            yield self._held[max(0, start - self._start) :]

    @property
    def position(self) -> int:
        """Returns the position up to which the shard was read; at the end this is the size of the shard."""
        return self._start + len(self._held)

    def sha256(self) -> str:
        """Returns the SHA-256 of all bytes up to `position`, in hexadecimal."""
        return self._sha256.hexdigest()

    def _read_on(self, *, keep_from: int) -> None:
        """Reads the next range into memory, and removes the bytes before position `keep_from` from memory."""
        part = self._store.read_range(self._path, self.position, self.position + self._range_bytes)
        # A store returns fewer bytes than requested only at the end of the object.
        self._ended = len(part) < self._range_bytes
        self._sha256.update(part)
        self._on_bytes(len(part))
        # `_held` always begins at `_start` and ends at `position`.
        dropped = min(max(0, keep_from - self._start), len(self._held))
        self._held = self._held[dropped:] + part
        self._start += dropped
