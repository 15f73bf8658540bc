"""Defines the interface through which an `ObjectStore` sends requests: to S3, to web servers, or by the drivers of
fsspec.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from emocap_shards.store.protocol import Entry


@dataclass(frozen=True, slots=True)
class ObjectBytes:
    """The bytes of an object that one request returned.

    Args:
        total: Size of the whole object, or None if the answer does not contain it.
        version: The object's version, or "" if the answer does not contain it.
    """

    data: bytes
    total: int | None
    version: str


@dataclass(frozen=True, slots=True)
class Facts:
    """The properties of an object that a store reports without the object's bytes.

    Args:
        size: Size in bytes.
        version: The object's version, or "" if the answer does not contain it.
        writer: The identifier of the write that made the object (see `Condition.writer`), or "" if it is unknown.
        age_s: Seconds since the object was written, by the server's clock, or None if the answer does not contain the
            time.
    """

    size: int
    version: str
    writer: str = ""
    age_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing. The request for the next page contains `token`; on the last page `token` is ""."""

    entries: list[Entry]
    token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """The condition of a write. With `absent`, the object must not exist; otherwise it must still have this `version`.

    `writer` is a random identifier of this write, and is stored with the object. If the server's answer is lost, the
    stored identifier shows whether this write made the object.
    """

    version: str = ""
    absent: bool = False
    writer: str = ""


@runtime_checkable
class Backend(Protocol):
    """Sends the requests to one kind of store, such as S3. Each method makes a single attempt.

    All methods run on the event loop of this process (`together.wait_for`), so they must not block.

    Paths are relative to the root of the store. The methods raise the errors of the underlying library, or `Refusal`.
    """

    trusted: bool
    """True if conditional writes may work, so that a probe of them is worthwhile."""
    swaps: bool
    """True if the backend can write on the condition that an object still has a given version."""

    async def get(self, path: str, start: int, end: int, *, attempt: int) -> ObjectBytes:
        """Returns bytes [start, end), where start < end. If the object ends earlier, the result has fewer bytes, or
        none. `attempt` is the number of the attempt, from 1.
        """
        ...

    async def get_whole(self, path: str, *, limit_bytes: int, most_bytes: int) -> ObjectBytes:
        """Returns the bytes of an object, and its size as `total`. A large object is not returned as a whole.

        If the object has more than `limit_bytes` bytes, the backend may return no bytes or only the beginning, together
        with the size. The caller then reads the object in ranges. A backend may also return all bytes, for example
        because it cannot read ranges, or because the server does not send the size in advance.

        If the object has more than `most_bytes` bytes, the caller refuses it. In this case the result has at most
        `most_bytes` + 1 bytes. `total` is then larger than `most_bytes`, but may differ from the object's size.
        """
        ...

    async def head(self, path: str) -> Facts: ...

    async def put(self, path: str, data: bytes, condition: Condition | None = None) -> None: ...

    async def put_file(self, path: str, local_path: str) -> None: ...

    async def page(self, prefix: str, token: str) -> Page:
        """Returns one page of the listing of the folder `prefix`. `token` is "" for the first page, and `Page.token` of
        the previous page for every further one.
        """
        ...

    async def delete(self, paths: Sequence[str]) -> None:
        """Deletes up to 1000 objects; absent ones are ignored."""
        ...


@runtime_checkable
class Multipart(Backend, Protocol):
    """A backend that accepts large objects in parts."""

    async def start_upload(self, path: str, writer: str) -> str: ...

    async def put_part(self, path: str, upload: str, number: int, data: bytes) -> str: ...

    async def finish_upload(self, path: str, upload: str, tags: list[str]) -> None: ...

    async def abort_upload(self, path: str, upload: str) -> None: ...
