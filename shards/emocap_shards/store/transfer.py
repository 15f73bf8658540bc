"""Transfers large objects in parts, several parts at the same time.

A `Connection` combines a backend with retries and limits; a process has one for each store. There are two limits:
`turn` limits the number of simultaneous reads of all threads of the process, and `parts_in_flight` limits how many
parts of one file are in memory.
"""

import asyncio
import logging
import math
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from emocap_shards.errors import StoreError
from emocap_shards.store.backend import Backend, Facts, Multipart, ObjectBytes
from emocap_shards.store.failure import EXPECTED, ShortAnswer, answer, reason
from emocap_shards.store.landing import local_errors, need_room, write_at
from emocap_shards.store.limits import RetryConfig, TransferConfig
from emocap_shards.store.retry import Retrier
from emocap_shards.store.together import in_parallel

MOST_PARTS = 10_000  # S3 accepts at most this many parts of one upload.
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Connection:
    """A backend with retries and a limit on the requests in flight. Each process has one connection for each store."""

    backend: Backend
    ask: Retrier
    patience: RetryConfig
    traffic: TransferConfig
    turn: asyncio.Semaphore

    async def get(self, path: str, start: int, end: int) -> ObjectBytes:
        """Returns bytes [start, end) of the object. There are fewer only if the object ends earlier."""

        async def act(number: int) -> ObjectBytes:
            # A place in `turn` is held for one attempt, and not during the pause before the next one.
            async with self.turn, asyncio.timeout(self.patience.attempt_s(end - start)):
                part = await self.backend.get(path, start, end, attempt=number)
            # The number of bytes that the range has, given the size of the object. Any other number is an answer that
            # was cut or is too long.
            there = (end if part.total is None else max(start, min(end, part.total))) - start
            if len(part.data) != there:
                raise ShortAnswer(f"got {len(part.data)} of {there} bytes from {start}")
            return part

        return await self.ask("read", path, act, size_bytes=None)  # The wait for a free place has no limit.

    async def get_whole(self, path: str, *, most_bytes: int) -> ObjectBytes:
        """Returns all bytes of the object, which is read in parts if it is large.

        If the object is larger than `most_bytes`, only `total` of the result is meaningful.
        """
        limit = 4 * self.traffic.part_bytes

        async def act(_: int) -> ObjectBytes:
            async with self.turn, asyncio.timeout(self.patience.attempt_s(min(limit, most_bytes))):
                return await self.backend.get_whole(path, limit_bytes=limit, most_bytes=most_bytes)

        part = await self.ask("read", path, act, size_bytes=None)  # The wait for a free place has no limit.
        if part.total is None or len(part.data) == part.total or part.total > most_bytes:
            return part
        data = await self.get_spans([(path, 0, part.total)], version=part.version)
        return ObjectBytes(data[0], part.total, part.version)

    async def get_spans(self, spans: list[tuple[str, int, int]], *, version: str = "") -> list[bytes]:
        """Returns the bytes of every span. A span is a range of an object, and is read in parts if it is long.

        All parts of a span must come from the same version of the object. If `version` is given, they must come from
        this version.

        Raises:
            StoreError: If an object was overwritten while one of its spans was read.
        """
        sizes = await self._sizes(spans)
        pieces = [
            (number, path, begin, stop)
            for number, (path, start, end) in enumerate(spans)
            for begin, stop in pieces_of(start, min(end, sizes.get(path, end)), self.traffic.part_bytes)
        ]
        found = await in_parallel(pieces, lambda piece: self.get(*piece[1:]), width=self.traffic.in_flight)
        results = [b""] * len(spans)
        for number, group in groupby(zip(pieces, found, strict=True), key=lambda pair: pair[0][0]):
            parts = [part for _, part in group]
            if len({part.version for part in parts if part.version} | ({version} if version else set())) > 1:
                raise StoreError(f"{spans[number][0]!r} was overwritten while it was read; read it again.")
            results[number] = parts[0].data if len(parts) == 1 else b"".join(part.data for part in parts)
        return results

    async def _sizes(self, spans: list[tuple[str, int, int]]) -> dict[str, int]:
        """Returns the size, by path, of each object from which a very long span is requested.

        A span is very long if it has more than `in_flight` * `part_bytes` bytes. The caller cuts it at the end of the
        object, because the length of a span may come from a damaged index, and then can be any number.
        """
        far = self.traffic.in_flight * self.traffic.part_bytes
        paths = list({path for path, start, end in spans if end - start > far})
        found = await in_parallel(paths, self.head, width=self.traffic.in_flight) if paths else []
        return {path: facts.size for path, facts in zip(paths, found, strict=True)}

    async def get_to(self, path: str, descriptor: int, target: Path) -> None:
        """Copies an object to an open local file. Parts are written in the order in which they arrive.

        Raises:
            StoreError: If the object changes during the copy, or the local disk fails. The message about the disk names
                `target`.
        """
        part_bytes = self.traffic.part_bytes
        # The first part also tells the size and the version of the object, to which all other parts must fit.
        first = await self.get(path, 0, part_bytes)
        facts = (
            Facts(first.total, first.version) if first.total is not None and first.version else await self.head(path)
        )
        with local_errors(target):
            need_room(descriptor, facts.size)

        async def copy(piece: tuple[int, int]) -> None:
            part = first if piece[0] == 0 else await self.get(path, *piece)
            if part.version not in {"", facts.version} or len(part.data) != piece[1] - piece[0]:
                raise _changed(path)
            with local_errors(target):
                await asyncio.to_thread(write_at, descriptor, part.data, piece[0])

        await in_parallel(pieces_of(0, facts.size, part_bytes), copy, width=self.traffic.parts_in_flight)
        # Without versions in the answers, a change is noticed by the object's properties before and after the copy.
        if not first.version and await self.head(path) != facts:
            raise _changed(path)

    async def head(self, path: str) -> Facts:
        return await self.ask("find", path, lambda _: self.backend.head(path))

    async def put_file(self, path: str, local_path: Path) -> None:
        size = local_path.stat().st_size
        if not isinstance(self.backend, Multipart):
            await self.ask("write", path, lambda _: self.backend.put_file(path, str(local_path)), size_bytes=size)
            return
        descriptor = os.open(local_path, os.O_RDONLY)
        try:
            await self.put_large(path, size, lambda start, end: os.pread(descriptor, end - start, start))
        finally:
            os.close(descriptor)

    async def put_large(self, path: str, size: int, take: Callable[[int, int], bytes]) -> None:
        """Writes an object of `size` bytes, in parts if it is large. `take(start, end)` returns bytes [start, end) of
        the object, and is called in threads.
        """
        backend = self.backend
        if size <= 2 * self.traffic.part_bytes or not isinstance(backend, Multipart):
            data = await asyncio.to_thread(take, 0, size)
            await self.ask("write", path, lambda _: backend.put(path, data), size_bytes=size)
            return
        writer = uuid.uuid4().hex
        upload = await self.ask("write", path, lambda _: backend.start_upload(path, writer))
        try:
            await self._put_parts(backend, path, upload, size, take, writer)
        except BaseException:
            # Also after a cancellation: the parts of an unfinished upload would stay in the bucket, invisible.
            await _abort(backend, path, upload)
            raise

    async def _put_parts(
        self, backend: Multipart, path: str, upload: str, size: int, take: Callable[[int, int], bytes], writer: str
    ) -> None:
        pieces = pieces_of(0, size, max(self.traffic.part_bytes, math.ceil(size / MOST_PARTS)))

        async def put(job: tuple[int, tuple[int, int]]) -> str:
            number, piece = job
            data = await asyncio.to_thread(take, *piece)
            if len(data) != piece[1] - piece[0]:
                raise StoreError(f"the file for {path!r} shrank while it was uploaded; nothing was written.")
            return await self.ask(
                "write", path, lambda _: backend.put_part(path, upload, number, data), size_bytes=len(data)
            )

        tags = await in_parallel(list(enumerate(pieces, 1)), put, width=self.traffic.parts_in_flight)

        async def finish(number: int) -> None:
            try:
                await backend.finish_upload(path, upload, tags)
            except EXPECTED as error:
                # The server knows the upload no longer, so it has finished it, and an earlier answer was lost.
                if number == 1 or answer(error)[1] != "NoSuchUpload":
                    raise
                facts = await backend.head(path)
                if facts.size != size or facts.writer not in {writer, ""}:
                    raise

        await self.ask("write", path, finish, size_bytes=None)  # S3 may need minutes to assemble the parts.


def pieces_of(start: int, end: int, length: int) -> list[tuple[int, int]]:
    """Returns [start, end) cut into pieces of `length`; the last piece may be shorter. The list is empty for an empty
    range.
    """
    return [(begin, min(end, begin + length)) for begin in range(start, end, length)]


def _changed(path: str) -> StoreError:
    return StoreError(f"{path!r} was overwritten while it was copied; nothing was kept: copy it again.")


async def _abort(backend: Multipart, path: str, upload: str) -> None:
    """Tries once to abort an upload. An error of this attempt is only logged, because the caller raises the original
    error.
    """
    try:
        await backend.abort_upload(path, upload)
    except EXPECTED as error:
        cure = "a lifecycle rule AbortIncompleteMultipartUpload of the bucket removes it"
        _log.warning("the parts of an unfinished upload of %r remain (%s); %s.", path, reason(error), cure)
