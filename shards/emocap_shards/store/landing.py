"""Writes local files such that each file is complete or absent."""

import errno
import os
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from emocap_shards.errors import StoreError
from emocap_shards.store.failure import local_trouble


@contextmanager
def landing(target: Path) -> Generator[Path]:
    """Yields a hidden path next to the target. The caller writes a file at the hidden path.

    At the end of the `with` block the hidden file is renamed to the target; after an error it is deleted. If the bytes
    have to survive a loss of power, the caller must flush them to the disk.

    Raises:
        StoreError: If the local disk fails; the message names the target.
    """
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    with local_errors(target):
        try:
            yield part
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def local_errors(target: Path | str) -> Generator[None]:
    """Turns an error of the local disk in the `with` block into a `StoreError` that names the target."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write {str(target)!r}: {local_trouble(error)}.") from error


def need_room(descriptor: int, size: int) -> None:
    """Checks that the disk of an open file has room for `size` bytes, before these bytes are requested from a server.

    Without this check a server that claims a wrong size could fill the disk.

    Raises:
        OSError: The error of a full disk.
    """
    disk = os.fstatvfs(descriptor)
    if size > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Writes all bytes, in several calls if needed, because a disk that becomes full accepts some bytes first."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
