"""What the object store asks of S3, of a web server, of a driver: one attempt of one request each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from emocap_shards.store.protocol import Entry


@dataclass(frozen=True, slots=True)
class ObjectBytes:
    """Bytes of an object.

    Args:
        total: Size of the object, or None where the answer did not say.
        version: The object's version, or "" where the answer did not say.
    """

    data: bytes
    total: int | None
    version: str


@dataclass(frozen=True, slots=True)
class Facts:
    """An object without its bytes.

    Args:
        writer: Who wrote it on a condition, or "" where that is not known.
        age_s: Since when it is as it is, by the server's clock, or None where the answer does not say.
    """

    size: int
    version: str
    writer: str = ""
    age_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing; `token` asks for the next one, "" ends it."""

    entries: list[Entry]
    token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What must be so for a write to happen; `writer` tells our write from a rival's when an answer was lost."""

    version: str = ""
    absent: bool = False
    writer: str = ""


@runtime_checkable
class Backend(Protocol):
    """Paths are relative to the root. Errors are what the library raises, or `Refusal`."""

    trusted: bool
    """Whether its conditions are worth a probe."""
    swaps: bool
    """Whether it can write only if an object still is a version."""

    async def get(self, path: str, start: int, end: int, *, attempt: int) -> ObjectBytes:
        """Bytes [start, end), start < end; fewer, or none, where the object ends earlier."""
        ...

    async def get_whole(self, path: str, *, limit_bytes: int, most_bytes: int | None = None) -> ObjectBytes:
        """All bytes; only a beginning, or none, of an object beyond the limit, whose `total` says so.

        A backend that could not give the rest in ranges may exceed `limit_bytes`, but nobody reads on beyond
        `most_bytes`; `total` is then any number above it.
        """
        ...

    async def head(self, path: str) -> Facts: ...

    async def put(self, path: str, data: bytes, condition: Condition | None = None) -> None: ...

    async def put_file(self, path: str, local_path: str) -> None: ...

    async def page(self, prefix: str, token: str) -> Page:
        """A page of the listing of a folder; `token` is "" or the previous page's."""
        ...

    async def delete(self, paths: Sequence[str]) -> None:
        """Deletes up to 1000 objects; absent ones do not matter."""
        ...


@runtime_checkable
class Multipart(Backend, Protocol):
    """A backend that takes large objects in parts."""

    async def start_upload(self, path: str, writer: str) -> str: ...

    async def put_part(self, path: str, upload: str, number: int, data: bytes) -> str: ...

    async def finish_upload(self, path: str, upload: str, tags: list[str]) -> None: ...

    async def abort_upload(self, path: str, upload: str) -> None: ...
