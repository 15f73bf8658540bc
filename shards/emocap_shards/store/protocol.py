"""Defines the interface and the guarantees of a store."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from emocap_shards.errors import StoreError, TooLarge

DOCUMENT_BYTES = 64 << 20
"""The default limit of `read`. A limit is needed because the writer of an object chooses the object's size."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object in a listing: its path below the store's root and its size in bytes."""

    path: str
    size: int


@runtime_checkable
class Store(Protocol):
    """Reads and writes the objects below one root. Paths are relative to the root and written with "/".

    A store is a small picklable value; connections are opened in the process that uses the store. At every moment an
    object is complete or absent, and its bytes are durable when `put` returns. All methods block, and threads may share
    a store.

    Failed requests are retried (`RetryConfig`), and the log reports the wait from time to time. A permanent error is
    raised at once. A method that fails raises `StoreError`. Its subclass `NotFound` means that the object does not
    exist, and `ConditionFailed` means that the condition of a write does not hold. `delete` and `delete_tree` ignore
    objects that do not exist.

    Example:
        ```python
        store = open_store("s3://bucket/run")
        data, version = store.read_versioned("state.json")
        store.put_if_match("state.json", changed(data), version)  # ConditionFailed if another writer was faster
        ```
    """

    @property
    def url(self) -> str: ...

    @property
    def is_near(self) -> bool:
        """True for a folder in a file system of this machine. A cache would not make reading from it faster."""
        ...

    def honours_conditions(self) -> bool:
        """Returns whether the server enforces the conditions of `put_if_absent` and `put_if_match`.

        Some S3 servers ignore conditions, so that every such write succeeds.
        """
        ...

    def read(self, path: str, *, limit_bytes: int = DOCUMENT_BYTES) -> bytes:
        """Returns all bytes of an object. For an object of up to 32 MiB on S3, the checksum that the server sends is
        verified, if there is one.

        Args:
            path: Path of the object.
            limit_bytes: If the object is larger, `TooLarge` is raised, and the object is not read to its end.
        """
        ...

    def read_versioned(self, path: str, *, limit_bytes: int = DOCUMENT_BYTES) -> tuple[bytes, str]:
        """Returns the bytes of an object and its version, which the caller can pass to `put_if_match`."""
        ...

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Returns bytes [start, end). There are fewer, or none, only if the object ends earlier.

        Bits that flip during the transfer are not detected, because no server sends a checksum of a range. The caller
        must verify the bytes.
        """
        ...

    def read_ranges(self, spans: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Returns the results of `read_range` for several spans, which are requested at the same time if possible.

        A span is (path, start, end). The results are in the order of the spans.
        """
        ...

    def put(self, path: str, data: bytes) -> None: ...

    def put_file(self, path: str, local_path: str | Path) -> None:
        """Streams a local file into the store, in parts if the store supports it."""
        ...

    def get_file(self, path: str, local_path: str | Path) -> None:
        """Copies an object to a local file, which is complete or absent. The caller must verify the file's bytes, as
        with `read_range`.

        Raises:
            StoreError: Also if the object was overwritten during the copy, or the local disk is full.
        """
        ...

    def put_if_absent(self, path: str, data: bytes) -> None:
        """Writes an object, unless it already exists. If several callers write, one succeeds and the others get
        `ConditionFailed`.

        If the answer to a successful write is lost, the write is retried. The retry finds that the existing object
        comes from the same call, and succeeds.
        """
        ...

    def put_if_match(self, path: str, data: bytes, version: str) -> None:
        """Writes an object if it still has the version that `read_versioned` returned.

        Raises:
            ConditionFailed: If it has another version, or was deleted.
            StoreError: Also if the store does not support this condition. Folders, S3 and `memory://` support it.
        """
        ...

    def list(self, prefix: str = "") -> list[Entry]:
        """Returns every object below the folder `prefix`, sorted by path; hidden files are not listed."""
        ...

    def exists(self, path: str) -> bool: ...

    def age_s(self, path: str) -> float | None:
        """Returns the seconds since the object was written, by the store's own clock; None if the store does not report
        the time.

        The clocks of two computers may differ by hours, so a time that is stored inside an object does not tell the
        object's age.
        """
        ...

    def delete(self, path: str) -> None: ...

    def delete_tree(self, prefix: str) -> None:
        """Deletes every object below the folder `prefix`."""
        ...


def too_large(path: str, url: str, size: int, limit_bytes: int) -> TooLarge:
    cure = "check that it is the right file, and that it is not damaged"
    return TooLarge(f"cannot read {path!r} in {url}: {size} bytes, where {limit_bytes} is the limit; {cure}.")


def checked(path: str) -> str:
    """Returns the path unchanged, after checking that it stays below the root of a store.

    Raises:
        StoreError: If the path is empty, absolute, or leads upwards.
    """
    if not path or path.startswith("/") or {"", ".", ".."} & set(path.rstrip("/").split("/")):
        raise StoreError(f"{path!r} is not a path below a store's root; write it like 'folder/file'.")
    return path
