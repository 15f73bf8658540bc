"""A folder on a node's disk that keeps segments of shards for all processes of the node.

A segment is one file, named by its shard's digest. Whoever wants one that is missing locks its `.part` file; the one
that gets the lock fetches, the others wait for it or go on to the next. A process that dies leaves a `.part` without
a lock, which the next one takes over. Nothing is trusted: readers check every sample's CRC-32C again, so a file that
a power loss tore costs a request, no data.
"""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from emocap_shards.errors import StoreError
from emocap_shards.segment import Rows, Segment, Span

Fetch = Callable[[Sequence[Span]], list[bytes]]

# Segments in one go: what a process holds in memory while it fetches.
IN_FLIGHT = 8
# A `.part` file this old is nobody's: a store gives up long before.
ABANDONED_S = 3600
# After an eviction this share of the room is taken.
FILLED = 0.9

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cache:
    """At most `max_bytes` of segments in `folder`, the ones used last."""

    folder: str
    max_bytes: int

    def fill(self, segments: Iterable[Segment], fetch: Fetch) -> None:
        """Returns when every segment is there, whoever brought it, or could not be kept for want of room.

        Raises:
            StoreError: If the folder cannot be used, or `fetch` fails.
        """
        missing = {segment.name: segment for segment in segments if not self._file(segment).exists()}
        while missing:
            tried = self._fetch_free(list(missing.values()), fetch)
            if not tried:
                name, segment = next(iter(missing.items()))
                with self._claimed(segment, wait=True):
                    pass  # Whoever held it has brought it, or died: then the next round finds it free.
                tried = [name] if self._file(segment).exists() else []
            for name in tried:
                missing.pop(name)

    def read(self, segment: Segment, wanted: Rows) -> list[bytes] | None:
        """The bytes of some samples of a segment; None if it is not there."""
        try:
            file = os.open(self._file(segment), os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            os.utime(file)
            begin = segment.samples.start
            lengths = (wanted.stops - wanted.starts).tolist()
            places = zip(lengths, (wanted.starts - begin).tolist(), strict=True)
            return [os.pread(file, length, start) for length, start in places]
        finally:
            os.close(file)

    def drop(self, segment: Segment) -> None:
        """Forget a segment that turned out to be damaged here."""
        self._file(segment).unlink(missing_ok=True)

    def _fetch_free(self, segments: Sequence[Segment], fetch: Fetch) -> list[str]:
        """Fetches the first few that nobody else is fetching; the names of those that need no further thought."""
        done: list[str] = []
        with ExitStack() as claims:
            mine: list[tuple[Segment, int]] = []
            for segment in segments:
                file = claims.enter_context(self._claimed(segment, wait=False))
                if self._file(segment).exists():
                    done.append(segment.name)
                elif file is not None:
                    mine.append((segment, file))
                if len(mine) == IN_FLIGHT:
                    break
            for (segment, file), data in zip(mine, _intact([each for each, _ in mine], fetch), strict=True):
                self._keep(segment, file, data)
                done.append(segment.name)
        return done

    def _keep(self, segment: Segment, file: int, data: bytes) -> None:
        """Room is booked before it is used, so that a crash in between never leads to more than the bound."""
        try:
            self._book(len(data))
            os.ftruncate(file, 0)
            if os.pwrite(file, data, 0) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._part(segment).replace(self._file(segment))
        except OSError as error:
            self._part(segment).unlink(missing_ok=True)
            _log.warning(
                "%s keeps no further segment (%s); its samples are read from the store again.", self.folder, error
            )

    @contextmanager
    def _claimed(self, segment: Segment, *, wait: bool) -> Generator[int | None]:
        """The open `.part` file under its lock; None if another process has it, or has just finished it."""
        part = self._part(segment)
        with self._opened(part) as file:
            mine = _locked(file, wait=wait) and _is_at(file, part)
            try:
                yield file if mine else None
            finally:
                if mine and self._file(segment).exists():
                    part.unlink(missing_ok=True)

    @contextmanager
    def _opened(self, part: Path) -> Generator[int]:
        try:
            Path(self.folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            part.parent.mkdir(exist_ok=True)
            file = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(
                f"the cache {self.folder} cannot be used ({error}); set another folder, or none."
            ) from error
        try:
            yield file
        finally:
            os.close(file)

    def _book(self, count: int) -> None:
        """Adds to the ledger of bytes; makes room when it says more than the bound."""
        with (Path(self.folder) / "ledger").open("a+") as ledger:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            ledger.seek(0)
            said = ledger.read()
            total = (int(said) if said.isdigit() else self.max_bytes) + count
            if total > self.max_bytes:
                total = self._evict(int(self.max_bytes * FILLED) - count) + count
            ledger.truncate(0)
            ledger.write(str(total))

    def _evict(self, bound: int) -> int:
        """Deletes the segments whose use lies back longest; how many bytes are left."""
        found = sorted((stat.st_mtime, stat.st_size, path) for path, stat in _stats(Path(self.folder)))
        total = sum(size for _, size, _ in found)
        for _, size, path in found:
            if total <= bound:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total

    def _file(self, segment: Segment) -> Path:
        return Path(self.folder, segment.name[:2], f"{segment.name}.seg")

    def _part(self, segment: Segment) -> Path:
        return self._file(segment).with_suffix(".part")


def _intact(segments: Sequence[Segment], fetch: Fetch) -> list[bytes]:
    """The bytes of the segments; what arrives damaged is fetched once more, for bits also flip on the way."""
    parts = fetch([segment.span for segment in segments])
    again = [number for number, segment in enumerate(segments) if not segment.is_intact(parts[number])]
    for number, part in zip(again, fetch([segments[number].span for number in again]) if again else [], strict=True):
        parts[number] = part
    return parts


def _stats(folder: Path) -> Generator[tuple[Path, os.stat_result]]:
    """Segments, and what is left of fetches that died."""
    for path in (*folder.glob("*/*.seg"), *folder.glob("*/*.part")):
        with suppress(FileNotFoundError):  # another process has taken it away
            stat = path.stat()
            if path.suffix == ".seg" or time.time() - stat.st_mtime > ABANDONED_S:
                yield path, stat


def _locked(file: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _is_at(file: int, path: Path) -> bool:
    """Whether the open file is still the one with this name."""
    try:
        return os.fstat(file).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
