"""How many bytes a cache's folder holds, agreed between processes that may die at any point.

All booking and all evicting happens under the lock of one file, the ledger, which may only ever say too much: what is
booked but not written yet is a `.part` file of that size under its owner's lock.
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

from emocap_shards.local_files import UnsafePath, open_own

# The ledger is held for as long as it takes to look at every file.
WAIT_S = 30.0
# A `.part` file this old is nobody's, also under a lock: a child that was forked at a bad moment may hold that.
ABANDONED_S = 3600
# After an eviction this share of the room is taken.
FILLED = 0.9
_POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class CacheLedger:
    """Of the `.seg` and `.part` files in the folders of `folder`: at most `max_bytes`."""

    folder: Path
    max_bytes: int

    def book(self, file: int, count: int, *, halve: bool) -> bool:
        """Enters a `.part` of `count` bytes in the ledger, and gives it its size, so that others can count it.

        Returns:
            Whether there is room, at the cost of other segments; `halve` takes half of them away in any case.
        """
        with self.opened() as ledger:
            os.ftruncate(file, 0)
            said = os.pread(ledger, 64, 0)
            total = (int(said) if re.fullmatch(rb"\d{1,18}", said) else self.max_bytes) + count
            if halve or total > self.max_bytes:
                total = self._evict(int(self.max_bytes * FILLED) - count, halve=halve) + count
            has_room = total <= self.max_bytes
            # In place and of one length: a full disk has no room for more, and a crash leaves nothing half.
            os.pwrite(ledger, b"%018d" % (total if has_room else total - count), 0)
            os.ftruncate(ledger, 18)
            os.ftruncate(file, count if has_room else 0)
            return has_room

    @contextmanager
    def opened(self) -> Generator[int]:
        """The open ledger under its lock; it may only ever say too much."""
        file = open_own(self.folder / "ledger", os.O_RDWR | os.O_CREAT)
        try:
            if not locked(file, wait_s=WAIT_S):
                raise TimeoutError(errno.ETIMEDOUT, f"another process has held the ledger for {WAIT_S:.0f} s")
            try:
                yield file
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)
        finally:
            os.close(file)

    def _evict(self, bound: int, *, halve: bool) -> int:
        """Deletes the segments whose use lies back longest; how many bytes are left, with those on their way."""
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
    """Last use, bytes and path of every segment. A use in the future, of a clock that was wrong, becomes one of now."""
    for path in folder.glob("*/*.seg"):
        with suppress(FileNotFoundError):  # another process has taken it away
            stat = path.lstat()
            if stat.st_mtime > now:
                os.utime(path, (now, now), follow_symlinks=False)
            yield min(stat.st_mtime, now), stat.st_size, path


def _live_bytes(part: Path, now: float) -> int:
    """What somebody has booked for a segment; what a fetch that died has left is deleted."""
    try:
        file = open_own(part, os.O_RDWR)
    except (FileNotFoundError, UnsafePath):
        return 0
    if locked(file, wait_s=0):
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


def locked(file: int, *, wait_s: float) -> bool:
    """Asks again and again, for `flock` itself waits without a limit."""
    gives_up = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= gives_up:
                return False
            time.sleep(_POLL_S)
        else:
            return True


def release(file: int, part: Path) -> None:
    """Ends a claim. To close the file is not enough: a child that was forked meanwhile holds the lock with its copy."""
    try:
        with suppress(OSError):  # an empty file that stays is taken over, or evicted
            if is_at(file, part):
                part.unlink()
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)


def is_at(file: int, path: Path) -> bool:
    """Whether the open file is still the one with this name."""
    try:
        return os.fstat(file).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
