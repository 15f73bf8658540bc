"""A folder on a node's disk that keeps segments of shards for all processes of the node.

A segment is one file, named by its shard's digest. Whoever wants one that is missing locks its `.part` file; the one
that gets the lock fetches, the others go on to the next, and wait a bounded time for what is left. A process that dies
leaves a `.part` without a lock, which the next one takes over. Nothing is trusted: readers check every sample's CRC-32C
again, so a file that a power loss tore costs a request, no data. Nothing here may end a run: what the disk refuses is
read from the store.

The folder belongs to one user of the host. Another user's, or one that others may write to, is refused, for whoever
writes to it chooses what is trained on: a CRC-32C protects from accidents, not from people.
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from emocap_shards.errors import StoreError
from emocap_shards.ledger import CacheLedger, is_at, locked, release
from emocap_shards.local_files import make_own_folder, open_own
from emocap_shards.segment import Segment, ShardRows, Span

Fetch = Callable[[Sequence[Span]], list[bytes]]

# Segments in one go: what a process holds in memory while it fetches.
IN_FLIGHT = 8
# How long others may take for a segment before its samples are read without it; a store gives up as soon.
WAIT_S = 60.0
POLL_S = 0.05
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
        waited_s = 0.0
        while self._keeps() and missing:
            before = len(missing)
            yield from self._fetch_free(missing, fetch)
            if missing and len(missing) == before:
                missing = {name: segment for name, segment in missing.items() if self._shows_life(segment)}
                if waited_s >= wait_s:
                    break
                time.sleep(POLL_S)
                waited_s += POLL_S

    def read(self, segment: Segment, wanted: ShardRows) -> list[bytes] | None:
        """The bytes of some samples of a segment; None if it is not there, or its disk does not give it."""
        try:
            file = open_own(self._file(segment))
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
                make_own_folder(self.folder)
                with self._ledger.opened():
                    self._seen.usable = True
            except OSError as error:
                if error.errno not in _FULL:
                    why, cure = f"{error.filename}: {error.strerror or error}", "set another folder, or none"
                    raise StoreError(f"the cache {self.folder} cannot be used ({why}); {cure}.") from error
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
                    claims.callback(release, file, self._part(segment))
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
            part.parent.mkdir(mode=0o700, exist_ok=True)
            with ExitStack() as unless_mine:
                file = open_own(part, os.O_RDWR | os.O_CREAT)
                unless_mine.callback(os.close, file)
                if not locked(file, wait_s=0):
                    return None
                unless_mine.pop_all()
                unless_mine.callback(release, file, part)
                if not is_at(file, part) or _is_there(self._file(segment)):
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
                if self._keeps() and self._ledger.book(file, len(data), halve=last):
                    if os.pwrite(file, data, 0) < len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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
    """The bytes of the segments; what arrives damaged is fetched once more, for bits also flip on the way."""
    parts = fetch([segment.span for segment in segments])
    again = [number for number, segment in enumerate(segments) if not segment.is_intact(parts[number])]
    for number, part in zip(again, fetch([segments[number].span for number in again]) if again else [], strict=True):
        parts[number] = part
    return parts


def _is_there(path: Path) -> bool:
    """Also False where the disk does not say."""
    with suppress(OSError):
        return path.exists()
    return False
