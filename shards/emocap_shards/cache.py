"""A folder on a node's disk that keeps segments of shards for all processes of the node.

A segment is one file, named by its shard's digest. Whoever wants one that is missing locks its `.part` file; the one
that gets the lock fetches, the others go on to the next, and wait a bounded time for what is left. A process that dies
leaves a `.part` without a lock, which the next one takes over. Nothing is trusted: readers check every sample's CRC-32C
again, so a file that a power loss tore costs a request, no data. Nothing here may end a run: what the disk refuses is
read from the store.
"""

import errno
import fcntl
import logging
import os
import re
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from emocap_shards.errors import StoreError
from emocap_shards.segment import Rows, Segment, Span

Fetch = Callable[[Sequence[Span]], list[bytes]]

# Segments in one go: what a process holds in memory while it fetches.
IN_FLIGHT = 8
# How long others may take for a segment before its samples are read without it; a store gives up as soon.
WAIT_S = 60.0
# The ledger is held for as long as it takes to look at every file.
LEDGER_WAIT_S = 30.0
POLL_S = 0.02
# A `.part` file this old is nobody's, also under a lock: a child that was forked at a bad moment may hold that.
ABANDONED_S = 3600
# After an eviction this share of the room is taken.
FILLED = 0.9
# How long a process keeps nothing after the disk has refused.
REST_S = 300.0
# Another process, or another file, may have room again: nothing is wrong with the folder.
_FULL = (errno.ENOSPC, errno.EDQUOT)

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Experience:
    """What this process has seen of the folder."""

    usable: bool = False
    rests_until: float = 0.0  # time.monotonic()
    warned: bool = False


@dataclass(frozen=True, slots=True)
class Cache:
    """At most `max_bytes` of segments in `folder`, the ones used last."""

    folder: str
    max_bytes: int
    _seen: _Experience = field(default_factory=_Experience, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", str(Path(self.folder).expanduser()))

    def __reduce__(self) -> tuple[type["Cache"], tuple[str, int]]:
        return Cache, (self.folder, self.max_bytes)

    def fill(self, segments: Iterable[Segment], fetch: Fetch) -> None:
        """`bring`, of which nothing is wanted now: others are not waited for, and few segments are in memory."""
        for _ in self.bring(segments, fetch, wait_s=0):
            pass

    def bring(
        self, segments: Iterable[Segment], fetch: Fetch, *, wait_s: float = WAIT_S
    ) -> Generator[tuple[Segment, bytes]]:
        """Fetches the segments that are missing, and waits for those that others are fetching.

        A segment that is neither given nor found by `read` afterwards is one that this cache has no room for, or that
        nobody brought in time: its samples are better read without it.

        Yields:
            Every segment that this call fetched, a few at a time, whether it could be kept or not.

        Raises:
            StoreError: If the folder cannot be used when it is first tried, or `fetch` fails.
        """
        missing = {segment.name: segment for segment in segments if segment.size_bytes <= self.max_bytes}
        gives_up = time.monotonic() + wait_s
        while missing and self._keeps():
            before = len(missing)
            yield from self._fetch_free(missing, fetch)
            if missing and len(missing) == before:
                missing = {name: segment for name, segment in missing.items() if self._shows_life(segment)}
                if time.monotonic() >= gives_up:
                    break
                time.sleep(POLL_S)

    def read(self, segment: Segment, wanted: Rows) -> list[bytes] | None:
        """The bytes of some samples of a segment; None if it is not there, or its disk does not give it."""
        try:
            file = os.open(self._file(segment), os.O_RDONLY)
        except OSError:
            return None
        try:
            with suppress(OSError):  # a disk that is read-only now
                os.utime(file)
            return [os.pread(file, length, start) for start, length in segment.places(wanted)]
        except OSError:
            return None
        finally:
            os.close(file)

    def drop(self, segment: Segment) -> None:
        """Forget a segment that turned out to be damaged here."""
        with suppress(OSError):  # where it cannot be deleted, it is found damaged each time
            self._file(segment).unlink()

    def _keeps(self) -> bool:
        """Whether the folder takes segments, as far as this process knows."""
        if time.monotonic() < self._seen.rests_until:
            return False
        if not self._seen.usable:
            try:
                Path(self.folder).mkdir(mode=0o700, parents=True, exist_ok=True)
                with self._ledger():
                    self._seen.usable = True
            except OSError as error:
                if error.errno not in _FULL:
                    cure = "set another folder, or none"
                    raise StoreError(f"the cache {self.folder} cannot be used ({error}); {cure}.") from error
                self._rest(error)
        return self._seen.usable

    def _rest(self, error: OSError) -> None:
        self._seen.rests_until = time.monotonic() + REST_S
        if not self._seen.warned:
            self._seen.warned = True
            _log.warning(
                "the cache %s keeps no further segment (%s); samples that it lacks are read from the store one by one, "
                "and every %.0f minutes it is tried again.",
                self.folder,
                error,
                REST_S / 60,
            )

    def _fetch_free(self, missing: dict[str, Segment], fetch: Fetch) -> list[tuple[Segment, bytes]]:
        """Fetches the first few that nobody else is fetching; strikes off `missing` what needs no further thought."""
        with ExitStack() as claims:
            mine: list[tuple[Segment, int]] = []
            for name, segment in list(missing.items()):
                if _is_there(self._file(segment)):
                    del missing[name]
                elif len(mine) < IN_FLIGHT and (file := self._claim(segment)) is not None:
                    claims.callback(_release, file, self._part(segment))
                    mine.append((segment, file))
            brought = _intact([segment for segment, _ in mine], fetch) if mine else []
            for (segment, file), data in zip(mine, brought, strict=True):
                self._keep(segment, file, data)
                del missing[segment.name]
        return [(segment, data) for (segment, _), data in zip(mine, brought, strict=True)]

    def _claim(self, segment: Segment) -> int | None:
        """The open `.part` file under its lock, empty; None if another has it, or has just finished it."""
        part = self._part(segment)
        try:
            Path(self.folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            part.parent.mkdir(exist_ok=True)
            with ExitStack() as unless_mine:
                file = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
                unless_mine.callback(os.close, file)
                if not _locked(file, wait_s=0):
                    return None
                unless_mine.pop_all()
                unless_mine.callback(_release, file, part)
                if not _is_at(file, part) or _is_there(self._file(segment)):
                    return None
                os.ftruncate(file, 0)
                os.utime(file)
                unless_mine.pop_all()
                return file
        except FileNotFoundError:
            return None  # Somebody deletes the folder: the next try makes it anew.
        except OSError as error:
            self._rest(error)
            return None

    def _shows_life(self, segment: Segment) -> bool:
        """Whether somebody may still bring it: who claims a segment, or writes it, changes the time of its `.part`."""
        try:
            return time.time() - self._part(segment).stat().st_mtime < WAIT_S
        except OSError:
            return True

    def _keep(self, segment: Segment, file: int, data: bytes) -> None:
        """Room is booked before it is used, so that a crash in between never leads to more than the bound."""
        for last in (False, True):
            try:
                if self._keeps() and self._book(file, len(data), halve=last):
                    if os.pwrite(file, data, 0) < len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    self._part(segment).replace(self._file(segment))
            except FileNotFoundError:
                return  # Somebody deletes the folder.
            except OSError as error:
                if last or error.errno not in _FULL:
                    return self._rest(error)
            else:
                return None

    def _book(self, file: int, count: int, *, halve: bool) -> bool:
        """Enters a `.part` of `count` bytes in the ledger, and gives it its size, so that others can count it.

        Returns:
            Whether there is room, at the cost of other segments; `halve` takes half of them away in any case.
        """
        with self._ledger() as ledger:
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
    def _ledger(self) -> Generator[int]:
        """The open ledger under its lock; it may only ever say too much."""
        file = os.open(Path(self.folder, "ledger"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _locked(file, wait_s=LEDGER_WAIT_S):
                raise TimeoutError(errno.ETIMEDOUT, f"another process has held the ledger for {LEDGER_WAIT_S:.0f} s")
            try:
                yield file
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)
        finally:
            os.close(file)

    def _evict(self, bound: int, *, halve: bool) -> int:
        """Deletes the segments whose use lies back longest; how many bytes are left, with those on their way."""
        folder, now = Path(self.folder), time.time()
        coming = sum(_live_bytes(part, now) for part in folder.glob("*/*.part"))
        found = sorted(_uses(folder, now))
        total = sum(size for _, size, _ in found) + coming
        bound = min(bound, total // 2) if halve else bound
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


def _uses(folder: Path, now: float) -> Generator[tuple[float, int, Path]]:
    """Last use, bytes and path of every segment. A use in the future, of a clock that was wrong, becomes one of now."""
    for path in folder.glob("*/*.seg"):
        with suppress(FileNotFoundError):  # another process has taken it away
            stat = path.stat()
            if stat.st_mtime > now:
                os.utime(path, (now, now))
            yield min(stat.st_mtime, now), stat.st_size, path


def _live_bytes(part: Path, now: float) -> int:
    """What somebody has booked for a segment; what a fetch that died has left is deleted."""
    try:
        file = os.open(part, os.O_RDWR)
    except FileNotFoundError:
        return 0
    if _locked(file, wait_s=0):
        _release(file, part)
        return 0
    try:
        stat = os.fstat(file)
        if now - stat.st_mtime < ABANDONED_S:
            return stat.st_size
        part.unlink(missing_ok=True)
        return 0
    finally:
        os.close(file)


def _locked(file: int, *, wait_s: float) -> bool:
    """Asks again and again, for `flock` itself waits without a limit."""
    gives_up = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= gives_up:
                return False
            time.sleep(POLL_S / 4)
        else:
            return True


def _release(file: int, part: Path) -> None:
    """Ends a claim. To close the file is not enough: a child that was forked meanwhile holds the lock with its copy."""
    try:
        with suppress(OSError):  # an empty file that stays is taken over, or evicted
            if _is_at(file, part):
                part.unlink()
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)


def _is_there(path: Path) -> bool:
    """Also False where the disk does not say."""
    with suppress(OSError):
        return path.exists()
    return False


def _is_at(file: int, path: Path) -> bool:
    """Whether the open file is still the one with this name."""
    try:
        return os.fstat(file).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
