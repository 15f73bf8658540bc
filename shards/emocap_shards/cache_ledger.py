"""Records how many bytes a cache's folder holds, so that the record is safe if a process dies at any point.

The record is a file named `ledger`, which contains only the number of bytes. Before a process writes a segment, it
books the bytes of the segment: it adds their number to the ledger, and then sets the `.part` file of the segment to its
full size. It keeps the `.part` file locked until the bytes are written. A process books bytes and evicts segments only
while it holds the lock of the ledger. If a process dies, the number in the ledger may be too high, but never too low.
"""

import errno
import fcntl
import os
import re
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from emocap_shards.local_files import UnsafePath, locked, open_own

# A process holds the ledger for as long as it takes to look at every file of the cache.
WAIT_S = 30.0
# A `.part` file of this age has no owner even if it is locked: a forked child may have inherited the lock.
ABANDONED_S = 3600
# An eviction leaves this share of `max_bytes` in use. It looks at every file, so it makes room for many bookings at
# once.
FILLED = 0.9


@dataclass(frozen=True, slots=True)
class CacheLedger:
    """Counts the bytes of a cache's files and keeps their sum within `max_bytes`.

    The files are in subfolders of `folder`. A `.seg` file is a complete segment, and a `.part` file is a segment that a
    process is writing.
    """

    folder: Path
    max_bytes: int

    def book(self, file: int, count: int, *, halve: bool) -> bool:
        """Books `count` bytes for a `.part` file, and sets the size of the file to `count`.

        Other processes read this size to count the booked bytes. If there is no room, the least recently used segments
        are evicted.

        Args:
            file: The descriptor of the `.part` file, which the caller has locked.
            count: Number of bytes to book.
            halve: Whether to evict segments, even if there is room, until at most half of the cache's bytes remain.

        Returns:
            Whether the bytes are booked. If not, there is no room for them, and the file is empty.
        """
        with self.opened() as ledger:
            # If this is the second call for the file, its first size must not be counted by `_evict`.
            os.ftruncate(file, 0)
            said = os.pread(ledger, 64, 0)
            # A ledger without a number counts as full, so that `_evict` counts the files anew.
            total = (int(said) if re.fullmatch(rb"\d{1,18}", said) else self.max_bytes) + count
            # The counted bytes replace those of the ledger, so an error of the ledger lasts only until the cache is
            # full.
            if halve or total > self.max_bytes:
                total = self._evict(int(self.max_bytes * FILLED) - count, halve=halve) + count
            has_room = total <= self.max_bytes
            # Overwritten in place with a fixed length: this works on a full disk, and a crash leaves no partial number.
            # The ledger is written before the file grows: a crash between the two leaves the number too high, not too
            # low.
            os.pwrite(ledger, b"%018d" % (total if has_room else total - count), 0)
            os.ftruncate(ledger, 18)
            os.ftruncate(file, count if has_room else 0)
            return has_room

    @contextmanager
    def opened(self) -> Generator[int]:
        """Locks the ledger, yields its descriptor, and unlocks it afterwards.

        Raises:
            TimeoutError: If another process has held the lock for `WAIT_S`.
            OSError: If the file cannot be opened.
        """
        file = open_own(self.folder / "ledger", os.O_RDWR | os.O_CREAT)
        try:
            if not locked(file, wait_s=WAIT_S):
                raise TimeoutError(errno.ETIMEDOUT, f"another process has held the ledger for {WAIT_S:.0f} s")
            # Unlocked explicitly: a child that was forked meanwhile holds the lock with its own descriptor, which the
            # `close` below does not close.
            try:
                yield file
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)
        finally:
            os.close(file)

    def _evict(self, bound: int, *, halve: bool) -> int:
        """Deletes the least recently used segments until at most `bound` bytes remain.

        With `halve`, the limit is the smaller one of `bound` and half of the bytes in the cache. Returns the number of
        bytes that remain, including those that are booked but not yet written.
        """
        now = time.time()
        coming = sum(_live_bytes(part, now) for part in self.folder.glob("*/*.part"))
        found = sorted(_uses(self.folder, now))
        total = sum(size for _, size, _ in found) + coming
        bound = min(bound, total // 2) if halve else bound
        for _, size, path in found:
            if total <= bound:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total


def _uses(folder: Path, now: float) -> Generator[tuple[float, int, Path]]:
    """Yields (time of the last use, size in bytes, path) of every complete segment.

    A time in the future comes from a wrong clock. It is replaced by `now`, in the file too.
    """
    for path in folder.glob("*/*.seg"):
        with suppress(FileNotFoundError):  # another process has deleted it
            stat = path.lstat()
            if stat.st_mtime > now:
                os.utime(path, (now, now), follow_symlinks=False)
            yield min(stat.st_mtime, now), stat.st_size, path


def _live_bytes(part: Path, now: float) -> int:
    """Returns the number of bytes that a living process has booked for a `.part` file, which is the size of the file.

    If the process has died, or if the file was not modified for `ABANDONED_S` seconds, the file is deleted and the
    result is 0.
    """
    try:
        file = open_own(part, os.O_RDWR)
    except (FileNotFoundError, UnsafePath):
        return 0
    if locked(file, wait_s=0):
        # The lock is free, so its owner has died.
        release(file, part)
        return 0
    try:
        stat = os.fstat(file)
        if now - stat.st_mtime < ABANDONED_S:
            return stat.st_size
        part.unlink(missing_ok=True)
        return 0
    finally:
        os.close(file)


def release(file: int, part: Path) -> None:
    """Deletes the `.part` file, unlocks it and closes its descriptor `file`.

    If the path no longer leads to this file, for instance because it was renamed, nothing is deleted. To close the
    descriptor alone would not unlock the file if a child was forked in the meantime, because the child has a copy of
    the descriptor.
    """
    try:
        with suppress(OSError):  # An empty file that remains is reused or deleted by another process.
            if is_at(file, part):
                part.unlink()
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)


def is_at(file: int, path: Path) -> bool:
    """Returns whether the path still leads to the open file `file`, which may have been renamed or deleted."""
    try:
        return os.fstat(file).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
