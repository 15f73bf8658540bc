"""Defines what the object store needs from S3, a web server or a driver: one attempt of one request per method."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from emocap_shards.store.protocol import Entry


@dataclass(frozen=True, slots=True)
class ObjectBytes:
    """Bytes of an object.

    Args:
        total: Size of the whole object, or None if the answer does not say it.
        version: The object's version, or "" if the answer does not say it.
    """

    data: bytes
    total: int | None
    version: str


@dataclass(frozen=True, slots=True)
class Facts:
    """The properties of an object that a store reports without its bytes.

    Args:
        size: Size in bytes.
        version: The object's version, or "".
        writer: Identifies who wrote it with a condition, or "" if that is unknown.
        age_s: Time since it was written, by the server's clock, or None if the answer does not say it.
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

    `writer` is unique to one write. It distinguishes our write from another one if an answer was lost.
    """

    version: str = ""
    absent: bool = False
    writer: str = ""


@runtime_checkable
class Backend(Protocol):
    """One attempt of each request.

    Paths are relative to the root. Errors are those of the underlying library, or `Refusal`.
    """

    trusted: bool
    """True if conditional writes may work, so that a probe of them is worthwhile."""
    swaps: bool
    """True if it can write on the condition that an object still has a given version."""

    async def get(self, path: str, start: int, end: int, *, attempt: int) -> ObjectBytes:
        """Returns bytes [start, end) with start < end; fewer, or none, if the object ends earlier."""
        ...

    async def get_whole(self, path: str, *, limit_bytes: int, most_bytes: int | None = None) -> ObjectBytes:
        """Returns all bytes. Of an object above the limit it returns only the beginning, or nothing, and `total` says
        the size.

        A backend that cannot return the rest in ranges may exceed `limit_bytes`. No backend reads beyond `most_bytes`;
        `total` is then some number above it.
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
