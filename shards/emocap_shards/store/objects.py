"""Implements a store of objects on S3, web servers, fsspec's drivers or memory.

The methods of `ObjectStore` are synchronous. `_run` runs the work of a method as a coroutine on fsspec's event loop,
which has its own thread. It turns the errors of the libraries into those of `emocap_shards.errors`. A `Connection`
makes the requests; each process has one for each store.
"""

import asyncio
import functools
import os
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from emocap_shards.errors import ConditionFailed, NotFound, ShardsError, StoreError
from emocap_shards.mask import MASK, masked
from emocap_shards.store.backend import Backend, Condition
from emocap_shards.store.budget import budget_of, server_of
from emocap_shards.store.failure import EXPECTED, cure, is_absence, is_lost_condition, reason
from emocap_shards.store.landing import landing
from emocap_shards.store.limits import RetryConfig, TransferConfig
from emocap_shards.store.protocol import DOCUMENT_BYTES, Entry, checked, too_large
from emocap_shards.store.retry import Retrier
from emocap_shards.store.together import in_parallel, wait_for
from emocap_shards.store.transfer import Connection

T = TypeVar("T")
OTHER_VERSION = '"00000000000000000000000000000000"'  # An ETag that no object has, for a probe of conditions.
DELETED_AT_ONCE = 1000  # S3 accepts at most this many paths in one request.
MOST_PAGES = 10_000  # Pages of a listing; each page has up to 1000 objects.


@dataclass(frozen=True)
class ObjectStore:
    """A store that retries a request until it succeeds, fails permanently, or reaches the deadline (`retry.py`).

    Args:
        url: The URL with *** in place of user, password and query.
        patience: When a failed request is retried, and when no further attempt is made.
        traffic: Limits on simultaneous requests.
        secret_url: The URL with its secrets, or "" if it has none. This field is not pickled.
    """

    url: str
    patience: RetryConfig = RetryConfig()  # noqa: RUF009 - a frozen value
    traffic: TransferConfig = TransferConfig()  # noqa: RUF009 - a frozen value
    secret_url: str = field(default="", repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "secret_url": ""}

    @property
    def is_near(self) -> bool:
        return False

    def honours_conditions(self) -> bool:
        return self._connection.backend.trusted and _refuses_second_write(self)

    def read(self, path: str, *, limit_bytes: int = DOCUMENT_BYTES) -> bytes:
        return self.read_versioned(path, limit_bytes=limit_bytes)[0]

    def read_versioned(self, path: str, *, limit_bytes: int = DOCUMENT_BYTES) -> tuple[bytes, str]:
        part = self._run("read", path, lambda: self._connection.get_whole(checked(path), most_bytes=limit_bytes))
        size = max(len(part.data), part.total or 0)
        if size > limit_bytes:
            raise too_large(path, self.url, size, limit_bytes)
        return part.data, part.version

    def read_range(self, path: str, start: int, end: int) -> bytes:
        return self.read_ranges([(path, start, end)])[0]

    def read_ranges(self, spans: Sequence[tuple[str, int, int]]) -> list[bytes]:
        wanted = [(checked(path), start, end) for path, start, end in spans]
        return self._run("read", wanted[0][0], lambda: self._connection.get_spans(wanted)) if wanted else []

    def put(self, path: str, data: bytes) -> None:
        self._run("write", path, lambda: self._connection.put_large(checked(path), len(data), lambda a, b: data[a:b]))

    def put_file(self, path: str, local_path: str | Path) -> None:
        if not Path(local_path).is_file():
            message = f"cannot write {path!r} to {self.url}: no such local file, {str(local_path)!r}; check its path."
            raise NotFound(message, path=str(local_path))
        self._run("write", path, lambda: self._connection.put_file(checked(path), Path(local_path)))

    def get_file(self, path: str, local_path: str | Path) -> None:
        target = Path(local_path)
        with landing(target) as part, part.open("xb") as file:
            self._run("copy", path, lambda: self._connection.get_to(checked(path), file.fileno(), target))
            # The bytes are on the disk before `landing` gives the file its name.
            os.fsync(file.fileno())

    def put_if_absent(self, path: str, data: bytes) -> None:
        if not self._won(path, data, Condition(absent=True, writer=uuid.uuid4().hex)):
            raise ConditionFailed(f"{path} exists already in {self.url}; nothing was written.")

    def put_if_match(self, path: str, data: bytes, version: str) -> None:
        if not self._won(path, data, Condition(version=version, writer=uuid.uuid4().hex)):
            raise ConditionFailed(f"{path} in {self.url} is not the version that was read: read it again.")

    def list(self, prefix: str = "") -> list[Entry]:
        top = checked(prefix).rstrip("/") if prefix else ""
        entries = self._run("list", prefix, lambda: self._list(top))
        return sorted((entry for entry in entries if not _hidden(entry)), key=lambda entry: entry.path)

    def exists(self, path: str) -> bool:
        try:
            self._run("find", path, lambda: self._connection.head(checked(path)))
        except NotFound:
            return False
        return True

    def age_s(self, path: str) -> float | None:
        return self._run("find", path, lambda: self._connection.head(checked(path))).age_s

    def delete(self, path: str) -> None:
        self._run("delete", path, lambda: self._delete([checked(path)]))

    def delete_tree(self, prefix: str) -> None:
        self._run("delete", prefix, lambda: self._delete_tree(checked(prefix).rstrip("/")))

    @property
    def swaps(self) -> bool:
        """True if `put_if_match` is supported; otherwise `put_if_match` raises `StoreError`."""
        return self._connection.backend.swaps

    @property
    def _connection(self) -> Connection:
        return _connection(self, self.secret_url or self.url, os.getpid())

    def _won(self, path: str, data: bytes, condition: Condition) -> bool:
        try:
            self._run("write", path, lambda: self._put_on(checked(path), data, condition))
        except NotFound:  # the object of `put_if_match` does not exist any more
            return False
        except ConditionFailed:
            return False
        return True

    async def _put_on(self, path: str, data: bytes, condition: Condition) -> None:
        """Writes an object if `condition` holds. If the condition fails only because an earlier attempt of this call
        has written the object, the write has succeeded.

        An answer can be lost after the server has written. The metadata of the object then says which call wrote it.
        This is checked after the first attempt too, because aiohttp itself retries a PUT on a connection that was cut.

        If the server keeps no metadata, later attempts compare the bytes. Two callers that write equal bytes may then
        both succeed, if an answer to one of them is lost.

        Raises:
            ConditionFailed: If the condition fails because of another write.
        """
        backend = self._connection.backend

        async def act(number: int) -> None:
            try:
                await backend.put(path, data, condition)
            except EXPECTED as error:
                if not is_lost_condition(error):
                    raise
                # The condition fails also if an earlier attempt of this very call has made the object.
                if not await self._is_ours(path, data, condition.writer, again=number > 1):
                    raise ConditionFailed(path) from error

        await self._connection.ask("write", path, act, size_bytes=len(data))

    async def _is_ours(self, path: str, data: bytes, writer: str, *, again: bool) -> bool:
        backend = self._connection.backend
        try:
            facts = await backend.head(path)
            # A server that keeps no metadata reports no writer. Then a first attempt is never ours, and a later one is
            # if its bytes are the same.
            if facts.writer or not again or facts.size != len(data):
                return facts.writer == writer
            return (await backend.get_whole(path, limit_bytes=len(data), most_bytes=len(data))).data == data
        except EXPECTED as error:
            if is_absence(error):
                return False
            raise

    async def _list(self, top: str) -> Sequence[Entry]:
        connection, token = self._connection, ""
        found: deque[Entry] = deque()
        for number in range(MOST_PAGES):
            page = await connection.ask("list", top, lambda _, token=token: connection.backend.page(top, token))
            found += page.entries
            if not page.token:
                return found
            # A broken server could repeat a page without end.
            if page.token == token:
                raise StoreError(f"the listing of {top!r} in {self.url} repeats page {number}: check the server.")
            token = page.token
        raise StoreError(f"the listing of {top!r} in {self.url} has more than {MOST_PAGES} pages: choose a folder.")

    async def _delete(self, paths: Sequence[str]) -> None:
        connection = self._connection

        async def delete(some: Sequence[str]) -> None:
            try:
                await connection.ask("delete", some[0], lambda _: connection.backend.delete(some))
            except EXPECTED as error:
                if not is_absence(error):
                    raise

        groups = [paths[first : first + DELETED_AT_ONCE] for first in range(0, len(paths), DELETED_AT_ONCE)]
        await in_parallel(groups, delete, width=connection.traffic.in_flight)

    async def _delete_tree(self, top: str) -> None:
        paths = [entry.path for entry in await self._list(top)]
        if paths:
            await self._delete(paths)

    def _run(self, verb: str, path: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return wait_for(work())
        except ShardsError:
            raise
        except EXPECTED as error:
            # A traceback also prints causes, so a cause that contains a secret is left out.
            cause = error if masked(str(error)) == str(error) else None
            if is_absence(error):
                message = f"cannot {verb} {path!r}: no such object in {self.url}; check the path."
                raise NotFound(message, path=path) from cause
            raise StoreError(f"cannot {verb} {path!r} in {self.url}: {reason(error)}; {cure(error)}.") from cause


# `url` has the secrets, which `store` does not compare, so the cache needs it too.
@functools.lru_cache(maxsize=64)
def _connection(store: ObjectStore, url: str, pid: int) -> Connection:  # A forked process must not share connections.
    if MASK in url:
        cure = "open it by its full URL in this process, or put user and password into ~/.netrc"
        raise StoreError(f"{url}: the secrets of a URL are not sent to other processes; {cure}.")
    patience, traffic = store.patience, store.traffic
    retrier = Retrier(patience, store.url, budget_of(server_of(store.url), pid))
    turn = asyncio.Semaphore(traffic.in_flight)
    return Connection(_backend(url, patience, traffic), retrier, patience, traffic, turn)


def _backend(url: str, patience: RetryConfig, traffic: TransferConfig) -> Backend:
    """Returns the backend for a URL.

    Backends are imported here, so that a folder or a memory store does not wait for the import of S3's libraries.
    """
    protocol = url.split("://", 1)[0]
    if protocol in {"s3", "s3a"}:
        from emocap_shards.store.s3 import S3

        return S3(url, patience, traffic)
    if protocol in {"http", "https"}:
        from emocap_shards.store.web import WebServer

        return WebServer(url, patience, traffic)
    if protocol == "memory":
        from emocap_shards.store.memory import Memory

        return Memory(url)
    from emocap_shards.store.driver import Driver

    return Driver(url)


@functools.lru_cache(maxsize=64)
def _refuses_second_write(store: ObjectStore) -> bool:
    """Returns whether the server enforces the conditions of writes. A probe object is written to find this out, once
    for each store.
    """
    probe = f".emocap-probe-{uuid.uuid4().hex}"
    try:
        # The second and the third write must be refused. A server that ignores conditions accepts them.
        store.put_if_absent(probe, b"first")
        second = _refuses(lambda: store.put_if_absent(probe, b"second"))
        third = not store.swaps or _refuses(lambda: store.put_if_match(probe, b"third", OTHER_VERSION))
        return second and third
    finally:
        store.delete(probe)


def _refuses(write: Callable[[], None]) -> bool:
    try:
        write()
    except ConditionFailed:
        return True
    return False


def _hidden(entry: Entry) -> bool:
    return entry.path.rsplit("/", 1)[-1].startswith(".")
