"""What a store promises."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from emocap_shards.errors import StoreError, TooLarge

DOCUMENT_BYTES = 64 << 20
"""The most that `read` takes into memory unless it is told otherwise: whoever writes an object chooses its size."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object in a listing: its path below the store's root, its size in bytes."""

    path: str
    size: int


@runtime_checkable
class Store(Protocol):
    """Objects below one root. Paths are relative to it, written with "/".

    A store is a small picklable value; connections open in the process that uses it. An object is whole or absent
    at every moment, and what `put` returned from is durable. A store that fails is waited for (`RetryConfig`), with a
    line in the log now and then; what cannot succeed later is an error at once. Every method raises `StoreError`:
    `NotFound` when there is no such object (`delete` and `delete_tree` do not mind), `ConditionFailed` when a
    condition lost.
    """

    @property
    def url(self) -> str: ...

    @property
    def is_near(self) -> bool:
        """Whether it is a folder that this machine's system reads itself: a cache of it gains nothing."""
        ...

    def honours_conditions(self) -> bool:
        """Whether `put_if_absent` has one winner and `put_if_match` refuses: some S3 servers ignore conditions."""
        ...

    def read(self, path: str, *, limit_bytes: int = DOCUMENT_BYTES) -> bytes:
        """All bytes. S3's own checksum is verified up to 32 MiB, where the server sends one.

        Args:
            path: Of the object.
            limit_bytes: A larger object is a `TooLarge` error, and is not read to its end.
        """
        ...

    def read_versioned(self, path: str, *, limit_bytes: int = DOCUMENT_BYTES) -> tuple[bytes, str]:
        """The bytes, and the version to give to `put_if_match`."""
        ...

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes [start, end); fewer, or none, where the object ends earlier, and only there.

        Bits that flip on the way are not seen: no server sends a checksum of a range. Who calls must verify.
        """
        ...

    def read_ranges(self, spans: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Many `read_range`s in one call, at the same time where the store can."""
        ...

    def put(self, path: str, data: bytes) -> None: ...

    def put_file(self, path: str, local_path: str | Path) -> None:
        """Streams a local file into the store, in parts where the store has them."""
        ...

    def get_file(self, path: str, local_path: str | Path) -> None:
        """Copies an object to a local file, which is whole or absent; verify it, as with `read_range`.

        Raises:
            StoreError: Also if the object was overwritten meanwhile, or the local disk is full.
        """
        ...

    def put_if_absent(self, path: str, data: bytes) -> None:
        """Of all who call it for a path, one wins; the others get `ConditionFailed`.

        If the answer to our own write was lost, the object that then stands there is recognized as ours.
        """
        ...

    def put_if_match(self, path: str, data: bytes, version: str) -> None:
        """Writes only if the object still is the version that `read_versioned` gave."""
        ...

    def list(self, prefix: str = "") -> list[Entry]:
        """Every object below the folder `prefix`, sorted by path; hidden files are not listed."""
        ...

    def exists(self, path: str) -> bool: ...

    def age_s(self, path: str) -> float | None:
        """Seconds since the object was written, by the store's own clock; None where the store does not say.

        Two computers' clocks may differ by hours, so a time inside of an object says nothing about its age.
        """
        ...

    def delete(self, path: str) -> None: ...

    def delete_tree(self, prefix: str) -> None:
        """Deletes every object below the folder `prefix`."""
        ...


def too_large(path: str, url: str, size: int, limit_bytes: int) -> TooLarge:
    cure = "check that it is the file that you mean, and that it is not damaged"
    return TooLarge(f"cannot read {path!r} in {url}: {size} bytes, where {limit_bytes} is the limit; {cure}.")


def checked(path: str) -> str:
    """The path itself, if it stays below the root of its store.

    Raises:
        StoreError: If it is empty, absolute, or climbs.
    """
    if not path or path.startswith("/") or {"", ".", ".."} & set(path.rstrip("/").split("/")):
        raise StoreError(f"{path!r} is no path below a store's root; write it like 'folder/file'.")
    return path
