"""A shard read from front to back in ranges, and hashed on the way."""

import hashlib
from collections.abc import Callable, Iterator

from emocap_shards.store import Store

RANGE_BYTES = 8 << 20


class Tape:
    """Holds one range and one sample at a time, however large the shard is.

    `tell` hears how many bytes each range had. Bytes are asked for in rising order; an index that goes back costs
    a read of its own.
    """

    def __init__(self, store: Store, path: str, tell: Callable[[int], None], *, range_bytes: int = RANGE_BYTES) -> None:
        self._store = store
        self._path = path
        self._tell = tell
        self._range_bytes = range_bytes
        self._held = b""
        self._start = 0  # of the held bytes
        self._ended = False
        self._sha256 = hashlib.sha256()

    def take(self, start: int, end: int) -> bytes:
        """Bytes [start, end); fewer where the shard ends earlier."""
        if start < self._start:
            return self._store.read_range(self._path, start, end)
        while self.position < end and not self._ended:
            self._read_on(keep_from=start)
        return self._held[max(0, start - self._start) : max(0, end - self._start)]

    def rest(self, start: int) -> Iterator[bytes]:
        """The bytes from `start` on, which is no less than what was taken last, in pieces."""
        self.take(start, start)
        yield self._held[max(0, start - self._start) :]
        while not self._ended:
            self._read_on(keep_from=self.position)
            yield self._held[max(0, start - self._start) :]

    @property
    def position(self) -> int:
        """How far the tape was read: in the end, the size of the shard."""
        return self._start + len(self._held)

    def sha256(self) -> str:
        """Of all bytes up to `position`."""
        return self._sha256.hexdigest()

    def _read_on(self, *, keep_from: int) -> None:
        part = self._store.read_range(self._path, self.position, self.position + self._range_bytes)
        self._ended = len(part) < self._range_bytes
        self._sha256.update(part)
        self._tell(len(part))
        dropped = min(max(0, keep_from - self._start), len(self._held))
        self._held = self._held[dropped:] + part
        self._start += dropped
