"""Defines the interface between the object store and S3, web servers or the drivers of fsspec."""

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
        version: The object's version, or "".
        writer: The `Condition.writer` of the write that made the object, or "" if that is unknown.
        age_s: Seconds since the object was written, by the server's clock, or None if the answer does not contain the
            time.
    """

    size: int
    version: str
    writer: str = ""
    age_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing; `token` requests the next page, and "" marks the last one."""

    entries: list[Entry]
    token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """The condition of a write: the object is absent, or still has this version.

    `writer` is a random name of this one write. If an answer is lost, it shows whether this write made the object.
    """

    version: str = ""
    absent: bool = False
    writer: str = ""


@runtime_checkable
class Backend(Protocol):
    """Sends the requests of a store of one kind. Each method makes a single attempt.

    All methods run on the event loop of this process (`together.wait_for`), so they must not block.

    Paths are relative to the root. The methods raise the errors of the underlying library, or `Refusal`.
    """

    trusted: bool
    """True if conditional writes may work, so that a probe of them is worthwhile."""
    swaps: bool
    """True if the backend can write on the condition that an object still has a given version."""

    async def get(self, path: str, start: int, end: int, *, attempt: int) -> ObjectBytes:
        """Returns bytes [start, end) with start < end; fewer, or none, if the object ends earlier."""
        ...

    async def get_whole(self, path: str, *, limit_bytes: int, most_bytes: int | None = None) -> ObjectBytes:
        """Returns all bytes of an object of at most `limit_bytes`.

        For a larger object the result contains only the beginning, or no bytes, and `total` is the object's size. A
        backend that cannot return the rest in ranges may exceed `limit_bytes`. No backend reads beyond `most_bytes`;
        for an object above that, `total` is some number above `most_bytes`.
        """
        ...

    async def head(self, path: str) -> Facts: ...

    async def put(self, path: str, data: bytes, condition: Condition | None = None) -> None: ...

    async def put_file(self, path: str, local_path: str) -> None: ...

    async def page(self, prefix: str, token: str) -> Page:
        """Returns a page of the listing of a folder; `token` is "" or that of the previous page."""
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
