"""A store behind fsspec: S3, Google's, Azure's, HTTP, memory."""

import functools
import os
import threading
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError
from fsspec.core import url_to_fs

from emocap_shards.errors import ConditionFailed, NotFound, StoreError
from emocap_shards.store.protocol import Entry, checked

_S3 = {
    "use_listings_cache": False,
    "config_kwargs": {"connect_timeout": 10, "read_timeout": 30, "retries": {"mode": "standard", "max_attempts": 5}},
}
_OPTIONS: dict[str, dict[str, Any]] = {"s3": _S3, "s3a": _S3}
# The memory file system looks and then writes; this makes the two one act inside a process.
_MEMORY = threading.Lock()


@dataclass(frozen=True)
class ObjectStore:
    """A store behind fsspec. Only S3, Google's store and memory:// are trusted with conditions."""

    url: str

    def honours_conditions(self) -> bool:
        return self._protocol in {"memory", "s3", "s3a", "gs", "gcs"} and _refuses_second_write(self)

    def read(self, path: str) -> bytes:
        with self._told("read", path):
            return self._fs.cat_file(self._at(path))

    def read_versioned(self, path: str) -> tuple[bytes, str]:
        # Version first: if the object changes in between, the bytes are newer and `put_if_match` is refused.
        version = self._version(path)
        return self.read(path), version

    def read_range(self, path: str, start: int, end: int) -> bytes:
        return self.read_ranges([(path, start, end)])[0]

    def read_ranges(self, spans: Sequence[tuple[str, int, int]]) -> list[bytes]:
        paths = [self._at(path) for path, _, _ in spans]
        starts, ends = [start for _, start, _ in spans], [end for _, _, end in spans]
        parts = self._fs.cat_ranges(paths, starts, ends, on_error="return")
        return [self._range(span[0], part) for span, part in zip(spans, parts, strict=True)]

    def put(self, path: str, data: bytes) -> None:
        with self._told("write", path):
            self._fs.pipe_file(self._at(path), data)

    def put_file(self, path: str, local_path: str | Path) -> None:
        with self._told("write", path):
            self._fs.put_file(str(local_path), self._at(path))

    def get_file(self, path: str, local_path: str | Path) -> None:
        target = Path(local_path)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        with self._told("copy", path):
            try:
                self._fs.get_file(self._at(path), str(part))
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)

    def put_if_absent(self, path: str, data: bytes) -> None:
        with self._told("write", path), _MEMORY if self._protocol == "memory" else nullcontext():
            try:
                self._fs.pipe_file(self._at(path), data, mode="create")
            except OSError as error:
                if not _lost(error):
                    raise
                raise ConditionFailed(f"{path} exists already in {self.url}; nothing was written.") from error

    def put_if_match(self, path: str, data: bytes, version: str) -> None:
        if self._protocol == "memory":
            self._swap_in_memory(path, data, version)
        elif self._protocol in {"s3", "s3a"}:
            self._swap_on_s3(path, data, version)
        else:
            raise StoreError(f"{self.url} cannot write on a condition; keep what needs it on S3 or in a folder.")

    def list(self, prefix: str = "") -> list[Entry]:
        top = self._at(prefix.rstrip("/")) if prefix else self._root
        with self._told("list", prefix):
            found: dict[str, dict[str, Any]] = self._fs.find(top, detail=True)
            if set(found) == {top}:  # an object with the folder's own name is not below the folder
                return []
            entries = (Entry(self._below(name), int(info["size"])) for name, info in found.items())
            return sorted((entry for entry in entries if not _hidden(entry)), key=lambda entry: entry.path)

    def exists(self, path: str) -> bool:
        # Not `isfile`: that takes every error, also a lost connection, for absence.
        try:
            with self._told("find", path):
                return self._fs.info(self._at(path))["type"] == "file"
        except NotFound:
            return False

    def delete(self, path: str) -> None:
        with self._told("delete", path):
            try:
                self._fs.rm_file(self._at(path))
            except FileNotFoundError:
                return

    def delete_tree(self, prefix: str) -> None:
        for entry in self.list(checked(prefix)):
            self.delete(entry.path)

    @property
    def _protocol(self) -> str:
        return self.url.split("://", 1)[0]

    @property
    def _fs(self) -> Any:
        return _filesystem(self.url, os.getpid())[0]

    @property
    def _root(self) -> str:
        return _filesystem(self.url, os.getpid())[1].rstrip("/")

    def _at(self, path: str) -> str:
        return f"{self._root}/{checked(path)}"

    def _below(self, name: str) -> str:
        return name.removeprefix(self._root).lstrip("/")

    def _range(self, path: str, part: bytes | BaseException) -> bytes:
        """The bytes; none when the range starts behind the object's end."""
        if isinstance(part, OSError) and _code(part) in {"InvalidRange", "416"}:
            return b""
        with self._told("read", path):
            if isinstance(part, BaseException):
                raise part
            return bytes(part)

    def _version(self, path: str) -> str:
        with self._told("read", path):
            info: dict[str, Any] = self._fs.info(self._at(path))
            return str(info.get("ETag") or info.get("etag") or info.get("created"))

    def _swap_in_memory(self, path: str, data: bytes, version: str) -> None:
        with _MEMORY:
            if not self.exists(path) or self._version(path) != version:
                raise _stale(path, self.url)
            self.put(path, data)

    def _swap_on_s3(self, path: str, data: bytes, version: str) -> None:
        bucket, key, _ = self._fs.split_path(self._at(path))
        with self._told("write", path):
            try:
                self._fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfMatch=version)
            except OSError as error:
                if isinstance(error, FileNotFoundError) or _lost(error):
                    raise _stale(path, self.url) from error
                raise

    @contextmanager
    def _told(self, verb: str, path: str) -> Generator[None]:
        try:
            yield
        except FileNotFoundError as error:
            message = f"cannot {verb} {path!r}: no such object in {self.url}; check the path."
            raise NotFound(message, path=path) from error
        except (OSError, BotoCoreError) as error:
            cure = "check endpoint, credentials and bucket"
            raise StoreError(f"cannot {verb} {path!r} in {self.url}: {error!r}; {cure}.") from error


@functools.lru_cache(maxsize=64)
def _filesystem(url: str, pid: int) -> tuple[Any, str]:  # noqa: ARG001 - a fork must not share connections
    fs, root = url_to_fs(url, **_OPTIONS.get(url.split("://", 1)[0], {}))
    return fs, root


@functools.lru_cache(maxsize=64)
def _refuses_second_write(store: ObjectStore) -> bool:
    """Asked once for a store, by writing a probe object twice."""
    probe = f".emocap-probe-{uuid.uuid4().hex}"
    try:
        store.put_if_absent(probe, b"first")
        store.put_if_absent(probe, b"second")
    except ConditionFailed:
        return True
    finally:
        store.delete(probe)
    return False


def _stale(path: str, url: str) -> ConditionFailed:
    return ConditionFailed(f"{path} in {url} is not the version that was read: read it again.")


def _hidden(entry: Entry) -> bool:
    return entry.path.rsplit("/", 1)[-1].startswith(".")


def _code(error: OSError) -> str:
    """The code that S3 answered with, or "" when the error is not S3's."""
    response: dict[str, Any] = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _lost(error: OSError) -> bool:
    codes = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
    return isinstance(error, FileExistsError) or _code(error) in codes
