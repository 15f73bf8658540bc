"""Implements a store in a folder on a local or shared file system, with the guarantees of an object store.

Every guarantee comes from one call of the file system: `rename` replaces an object in one step, `link` creates an
object only if it is absent, and `flock` lets only one process at a time compare a version and write.
"""

import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO

from emocap_shards.errors import ConditionFailed, NotFound, StoreError
from emocap_shards.local_files import locked, open_regular
from emocap_shards.store.failure import local_trouble
from emocap_shards.store.landing import landing
from emocap_shards.store.protocol import DOCUMENT_BYTES, Entry, checked, too_large

_CHUNK_BYTES = 1 << 30
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}  # Deleted, or a link to nothing or to itself.
_LOCK_WAIT_S = 60.0  # A lock is held for as long as it takes to write a small object.


@dataclass(frozen=True, slots=True)
class FolderStore:
    """A store whose objects are the files below `root`, an absolute path.

    An object is complete or absent. A write goes to a hidden file next to its target. The hidden file is flushed to
    disk, and then renamed to the target, or linked to it by `put_if_absent`. `put_if_match` locks another hidden file
    with flock, which the file system must support. Other calls of `put_if_match` wait for this lock, but `put` does
    not.

    Links among the objects are followed, because people assemble datasets from links. A link that leads to something
    other than a regular file, such as a pipe, is an error, and the store does not wait for data from it. Lock files are
    opened without following links.
    """

    root: str

    @property
    def url(self) -> str:
        return self.root

    @property
    def is_near(self) -> bool:
        return True

    def honours_conditions(self) -> bool:
        return True

    def read(self, path: str, *, limit_bytes: int = DOCUMENT_BYTES) -> bytes:
        with self._as_store_error("read", path), _opened(self._at(path)) as file:
            size = os.fstat(file).st_size
            if size > limit_bytes:
                raise too_large(path, self.root, size, limit_bytes)
            # Not more than the checked size is read, also if the file has grown since.
            return _span(file, 0, size)

    def read_versioned(self, path: str, *, limit_bytes: int = DOCUMENT_BYTES) -> tuple[bytes, str]:
        data = self.read(path, limit_bytes=limit_bytes)
        return data, _version(data)

    def read_range(self, path: str, start: int, end: int) -> bytes:
        return self.read_ranges([(path, start, end)])[0]

    def read_ranges(self, spans: Sequence[tuple[str, int, int]]) -> list[bytes]:
        together = groupby(spans, key=itemgetter(0))  # A file is opened once for consecutive spans of it.
        return [part for path, group in together for part in self._parts(path, group)]

    def put(self, path: str, data: bytes) -> None:
        with self._as_store_error("write", path), self._landing(path) as part:
            _write(part, data)
            part.replace(self._at(path))

    def put_file(self, path: str, local_path: str | Path) -> None:
        with self._as_store_error("write", path), self._landing(path) as part:
            _copy(Path(local_path), part)
            part.replace(self._at(path))

    def get_file(self, path: str, local_path: str | Path) -> None:
        with (
            self._as_store_error("copy", path),
            _opened(self._at(path)) as file,
            landing(Path(local_path)) as part,
            part.open("xb") as writer,
        ):
            _pour(file, writer)

    def put_if_absent(self, path: str, data: bytes) -> None:
        target = self._at(path)
        with self._as_store_error("write", path), self._landing(path) as part:
            _write(part, data)
            try:
                # A link fails if the target exists; a rename would replace it. The name in `part` is deleted
                # afterwards.
                os.link(part, target)
            except FileExistsError as error:
                raise ConditionFailed(f"{path} exists already in {self.root}; nothing was written.") from error

    def put_if_match(self, path: str, data: bytes, version: str) -> None:
        with self._as_store_error("write", path), self._locked(path):
            if not self.exists(path) or self._version(path) != version:
                raise ConditionFailed(f"{path} in {self.root} is not the version that was read: read it again.")
            self.put(path, data)

    def list(self, prefix: str = "") -> list[Entry]:
        with self._as_store_error("list", prefix):
            top = self._at(prefix) if prefix else Path(self.root)
            return sorted(_entries(top, self.root), key=lambda entry: entry.path)

    def exists(self, path: str) -> bool:
        with self._as_store_error("find", path):
            return self._at(path).is_file()

    def age_s(self, path: str) -> float | None:
        """Returns the object's age in seconds, or None if this process cannot write to the folder.

        The age is measured by the clock that sets the times of the files in the folder. On a shared disk this is the
        server's clock.
        """
        with self._as_store_error("find", path):
            written_s = self._at(path).stat().st_mtime
        mark = Path(self.root, f".clock-{uuid.uuid4().hex}")
        try:
            mark.touch(exist_ok=False)
            return max(0.0, mark.stat().st_mtime - written_s)
        except OSError:  # A reader without write access cannot find out the server's time.
            return None
        finally:
            with suppress(OSError):
                mark.unlink(missing_ok=True)

    def delete(self, path: str) -> None:
        with self._as_store_error("delete", path):
            self._at(path).unlink(missing_ok=True)

    def delete_tree(self, prefix: str) -> None:
        with self._as_store_error("delete", prefix), suppress(FileNotFoundError):
            shutil.rmtree(self._at(prefix))

    def _at(self, path: str) -> Path:
        return Path(self.root, checked(path))

    def _parts(self, path: str, spans: Iterable[tuple[str, int, int]]) -> Sequence[bytes]:
        with self._as_store_error("read", path), _opened(self._at(path)) as file:
            # Spans are clamped before memory is allocated, because a damaged index can request any number of bytes.
            size = os.fstat(file).st_size
            return [_span(file, start, min(end, size)) for _, start, end in spans]

    def _version(self, path: str) -> str:
        with _opened(self._at(path)) as file, open(file, "rb", closefd=False) as reader:
            return hashlib.file_digest(reader, "sha256").hexdigest()

    @contextmanager
    def _landing(self, path: str) -> Generator[Path]:
        """Yields a hidden path next to the target. The caller writes a file there, and renames it or links it to the
        target.

        If the `with` block raises no error, the folder is then flushed, so that the new name is durable. The hidden
        file is deleted in any case.
        """
        target = self._at(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            yield part
            _flush_folder(target.parent)
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, path: str) -> Generator[None]:
        target = self._at(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # The lock file stays. If it were deleted, two processes could hold the locks of two different files of this
        # name.
        lock = open_regular(target.with_name(f".{target.name}.lock"), os.O_RDWR | os.O_CREAT, follow=False)
        try:
            if not locked(lock, wait_s=_LOCK_WAIT_S):
                message = f"another process has held its lock for {_LOCK_WAIT_S:.0f} s; find out which (fuser)"
                raise StoreError(f"cannot write {path!r} in {self.root}: {message}.")
            yield
        finally:
            os.close(lock)

    @contextmanager
    def _as_store_error(self, verb: str, path: str) -> Generator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            message = f"cannot {verb} {path!r}: no such file in {self.root}; check the path."
            raise NotFound(message, path=path) from error
        except OSError as error:
            raise StoreError(f"cannot {verb} {path!r} in {self.root}: {local_trouble(error)}.") from error


def _entries(top: Path, root: str) -> Iterator[Entry]:
    """Yields the files below a folder that are not hidden; hidden ones are unfinished writes, locks and probes.

    Another process may delete files and folders meanwhile, such as old checkpoints. These are absent then, as in the
    listing of an object store.
    """
    for folder, _, names in os.walk(top, onerror=_unless_deleted):
        for name in names:
            if name.startswith("."):
                continue
            path = os.path.join(folder, name)  # noqa: PTH118 - os.walk yields texts
            try:
                status = os.stat(path)  # noqa: PTH116
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                continue
            if stat.S_ISREG(status.st_mode):
                yield Entry(Path(path).relative_to(root).as_posix(), status.st_size)


def _unless_deleted(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextmanager
def _opened(path: Path) -> Generator[int]:
    """Yields the descriptor of a regular file."""
    file = open_regular(path)
    try:
        yield file
    finally:
        os.close(file)


def _span(descriptor: int, start: int, end: int) -> bytes:
    """Returns bytes [start, end), in several reads if needed, because Linux reads at most 2 GiB in one call."""
    chunks: list[bytes] = []
    while start < end and (chunk := os.pread(descriptor, min(end - start, _CHUNK_BYTES), start)):
        chunks.append(chunk)
        start += len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _write(part: Path, data: bytes) -> None:
    with part.open("xb") as file:
        file.write(data)
        _flush(file)


def _copy(source: Path, part: Path) -> None:
    with _opened(source) as file, part.open("xb") as writer:
        _pour(file, writer)
        _flush(writer)


def _pour(file: int, writer: IO[bytes]) -> None:
    with open(file, "rb", closefd=False) as reader:
        shutil.copyfileobj(reader, writer, 1 << 20)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Makes a new name in the folder durable; flushing the file makes only its bytes durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
