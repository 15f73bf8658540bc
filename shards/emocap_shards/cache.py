"""Keeps segments of shards in a folder on a node's disk, for all processes of the node.

A segment is a group of neighbouring samples of a shard. It is one file in the folder, and the name of the file contains
the shard's digest and the segment's number. A process that needs a missing segment tries to lock the `.part` file of
the segment. The process that gets the lock fetches the segment. Meanwhile, the other processes fetch other segments,
and then they wait a bounded time for this one. If a process dies, its `.part` file remains without a lock, and another
process takes it over.

Readers verify the CRC-32C of every sample that comes from the cache, and request damaged samples from the store. So a
file that a power loss has damaged is harmless. If the folder cannot be used when a process tries it for the first time,
an error is raised. If the disk fails later, the run continues, and samples that are not in the cache are read from the
store.

The folder belongs to one user of the host. A folder of another user, or a folder that others may write to, is refused,
because a user who can write to the folder can change the training data. A CRC-32C protects against accidents, not
against an attacker.
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from emocap_shards.cache_ledger import CacheLedger, is_at, release
from emocap_shards.errors import StoreError
from emocap_shards.local_files import locked, make_own_folder, open_own
from emocap_shards.segment import Segment, ShardRows, Span

Fetch = Callable[[Sequence[Span]], list[bytes]]

# Segments that a process fetches together, and holds in memory at that time, about 32 MiB.
IN_FLIGHT = 8
# How long another process may take for a segment. After that its samples are read from the store.
WAIT_S = 60.0
POLL_S = 0.05
# How long a process stores nothing after an error of the disk.
REST_S = 300.0
# The disk is full. This may pass, so it does not mean that the folder is unusable.
_FULL = (errno.ENOSPC, errno.EDQUOT)

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Experience:
    """Holds what this process knows about the cache's folder.

    `usable` becomes True when this process first uses the folder without an error, and then remains True. After an
    error of the disk, this process stores nothing until the time `rests_until`. `warned` is True after such an error
    was logged.
    """

    usable: bool = False
    rests_until: float = 0.0  # time.monotonic()
    warned: bool = False


@dataclass(frozen=True, slots=True)
class Cache:
    """Keeps the most recently used segments in `folder`, at most `max_bytes` bytes of them.

    All processes and threads of a node may use the same folder at the same time. `max_bytes` bounds what all of them
    store there. The folder must be on a disk of the node, because the locks are those of `flock` (decision 13). A
    pickled cache contains only `folder` and `max_bytes`. A cache need not be closed, and the files remain when the
    process ends.

    Example:
        ```python
        stream = Stream(url="s3://bucket/faces", global_batch=4096, cache=Cache("/nvme/shards", max_bytes=64 << 30))
        ```
    """

    folder: str
    max_bytes: int
    _seen: _Experience = field(default_factory=_Experience, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", str(Path(self.folder).expanduser()))

    def __reduce__(self) -> tuple[type["Cache"], tuple[str, int]]:
        return Cache, (self.folder, self.max_bytes)

    def fill(self, segments: Iterable[Segment], fetch: Fetch) -> None:
        """Fetches missing segments as `bring` does, but neither waits for other processes nor returns segments."""
        for _ in self.bring(segments, fetch, wait_s=0):
            pass

    def bring(
        self, segments: Iterable[Segment], fetch: Fetch, *, wait_s: float = WAIT_S
    ) -> Generator[tuple[Segment, bytes]]:
        """Calls `fetch` for the segments that are not in the cache, and waits for those that other processes fetch.

        After the call, a segment may be neither yielded nor in the cache. This happens if the segment is larger than
        the whole cache, if another process did not finish it in time, or if the disk fails. The samples of such a
        segment must be read from the store.

        Yields:
            Every segment that this call fetched, with its bytes, even if the segment could not be stored.

        Raises:
            StoreError: If the folder cannot be used at the first attempt although the disk is not full, or if `fetch`
                raises this error.
        """
        # A segment that is larger than the whole cache would never fit, so it is not fetched here.
        missing = {segment.name: segment for segment in segments if segment.size_bytes <= self.max_bytes}
        waited_s = 0.0
        while self._keeps() and missing:
            # A round fetches up to IN_FLIGHT segments that no other process is fetching. If it finds none, others are
            # fetching all that is missing: then this process waits, but only for those that give a sign of life.
            before = len(missing)
            yield from self._fetch_free(missing, fetch)
            if missing and len(missing) == before:
                missing = {name: segment for name, segment in missing.items() if self._may_come(segment)}
                if waited_s >= wait_s:
                    break
                time.sleep(POLL_S)
                waited_s += POLL_S

    def read(self, segment: Segment, wanted: ShardRows) -> list[bytes] | None:
        """Returns the bytes of each sample in `wanted`, which lie in the segment.

        Returns None if the segment is not in the cache, or if the disk fails.
        """
        try:
            file = open_own(self._file(segment))
        except OSError:
            return None
        try:
            # The time of the file is the time of its last use, by which the ledger chooses what to evict.
            with suppress(OSError):  # The disk may have become read-only.
                os.utime(file)
            return [os.pread(file, length, start) for start, length in segment.places(wanted)]
        except OSError:
            return None
        finally:
            os.close(file)

    def drop(self, segment: Segment) -> None:
        """Deletes the file of a segment, because its bytes are damaged."""
        with suppress(OSError):  # If it cannot be deleted, it is found to be damaged each time.
            self._file(segment).unlink()

    def _keeps(self) -> bool:
        """Returns whether the folder accepts segments, as far as this process knows.

        Raises:
            StoreError: If the folder cannot be used at the first attempt although the disk is not full.
        """
        if time.monotonic() < self._seen.rests_until:
            return False
        if not self._seen.usable:
            # An unusable folder is an error only at the first attempt, and a full disk is none. Whatever the disk does
            # later, the run continues without the cache (decision 13).
            try:
                make_own_folder(self.folder)
                with self._ledger.opened():
                    self._seen.usable = True
            except OSError as error:
                if error.errno not in _FULL and not self._seen.warned:
                    why, cure = f"{error.filename}: {error.strerror or error}", "set another folder, or none"
                    raise StoreError(f"the cache {self.folder} cannot be used ({why}); {cure}.") from error
                self._rest(error)
        return self._seen.usable

    def _rest(self, error: OSError) -> None:
        self._seen.rests_until = time.monotonic() + REST_S
        if not self._seen.warned:
            self._seen.warned = True
            _log.warning(
                "the cache %s stores no further segment (%s); samples that are missing there are read from the store, "
                "and the cache is tried again every %.0f minutes.",
                self.folder,
                error,
                REST_S / 60,
            )

    def _fetch_free(self, missing: dict[str, Segment], fetch: Fetch) -> list[tuple[Segment, bytes]]:
        """Fetches up to `IN_FLIGHT` of the missing segments that no other process is fetching.

        These segments, and those that are already in the cache, are removed from `missing`.
        """
        # A segment gets its final name while its `.part` file is still locked. So whoever gets the lock next finds
        # either the complete segment or none. After the renaming `release` only unlocks.
        with ExitStack() as claims:
            mine: list[tuple[Segment, int]] = []
            for name, segment in list(missing.items()):
                if _is_there(self._file(segment)):
                    del missing[name]
                elif len(mine) < IN_FLIGHT and (file := self._claim(segment)) is not None:
                    claims.callback(release, file, self._part(segment))
                    mine.append((segment, file))
            brought = _intact([segment for segment, _ in mine], fetch) if mine else []
            for (segment, file), data in zip(mine, brought, strict=True):
                self._keep(segment, file, data)
                del missing[segment.name]
        return [(segment, data) for (segment, _), data in zip(mine, brought, strict=True)]

    def _claim(self, segment: Segment) -> int | None:
        """Locks the `.part` file of a segment, truncates it to 0 bytes, and returns its descriptor.

        Returns None if another process has the lock or has just finished the segment, or if the disk fails.
        """
        part = self._part(segment)
        try:
            Path(self.folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            part.parent.mkdir(mode=0o700, exist_ok=True)
            with ExitStack() as unless_mine:
                file = open_own(part, os.O_RDWR | os.O_CREAT)
                unless_mine.callback(os.close, file)
                # Until the lock is held, this process must only close the file. Afterwards it must also delete it.
                if not locked(file, wait_s=0):
                    return None
                unless_mine.pop_all()
                unless_mine.callback(release, file, part)
                # Between the opening and the locking, the former owner may have renamed or deleted the file. The lock
                # would then be on a file that no other process looks at.
                if not is_at(file, part) or _is_there(self._file(segment)):
                    return None
                # A process that was killed may have left bytes here.
                os.ftruncate(file, 0)
                # A sign of life for the processes that wait (`_may_come`).
                os.utime(file)
                unless_mine.pop_all()
                return file
        except FileNotFoundError:
            return None  # Somebody deletes the folder; the next attempt makes it again.
        except OSError as error:
            self._rest(error)
            return None

    def _may_come(self, segment: Segment) -> bool:
        """Returns whether another process may still be writing the segment into the cache.

        This is so if the `.part` file of the segment was modified in the last `WAIT_S` seconds. A process modifies this
        file when it claims the segment, and when it writes the segment. The result is also True if there is no such
        file, because another process may just have completed the segment.
        """
        try:
            return time.time() - self._part(segment).stat().st_mtime < WAIT_S
        except OSError:  # The other process may just have finished or given up; the next round shows which.
            return True

    def _keep(self, segment: Segment, file: int, data: bytes) -> None:
        """Stores the bytes of a segment, if there is room.

        `file` is the descriptor of the segment's `.part` file. The bytes are added to the count of the cache's bytes
        (`CacheLedger.book`) before they are written. So the folder never holds more than `max_bytes`, even if the
        process crashes in between.
        """
        # A full disk is met once by evicting half of the cache. If that does not help, this process stores nothing for
        # REST_S (decision 13).
        for last in (False, True):
            try:
                if self._keeps() and self._ledger.book(file, len(data), halve=last):
                    if os.pwrite(file, data, 0) < len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    # Nothing is flushed to the disk, because readers verify every sample that they read from the cache.
                    self._part(segment).replace(self._file(segment))
                break
            except FileNotFoundError:
                break  # Somebody deletes the folder.
            except OSError as error:
                if last or error.errno not in _FULL:
                    self._rest(error)
                    break

    @property
    def _ledger(self) -> CacheLedger:
        return CacheLedger(Path(self.folder), self.max_bytes)

    def _file(self, segment: Segment) -> Path:
        return Path(self.folder, segment.name[:2], f"{segment.name}.seg")

    def _part(self, segment: Segment) -> Path:
        return self._file(segment).with_suffix(".part")


def _intact(segments: Sequence[Segment], fetch: Fetch) -> list[bytes]:
    """Returns the bytes of the segments. A damaged segment is fetched once more, because bits may flip in the transfer.

    If a segment is damaged after the second fetch too, its bytes are returned nevertheless. The damage may be in one
    sample only, and the reader verifies each sample separately.
    """
    parts = fetch([segment.span for segment in segments])
    again = [number for number, segment in enumerate(segments) if not segment.is_intact(parts[number])]
    for number, part in zip(again, fetch([segments[number].span for number in again]) if again else [], strict=True):
        parts[number] = part
    return parts


def _is_there(path: Path) -> bool:
    """Returns whether the path exists. The result is False if the disk reports an error."""
    with suppress(OSError):
        return path.exists()
    return False
