"""Local files that are whole or absent."""

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
    """A hidden path beside the target to write to; at the end it takes the target's name, or goes after an error.

    Raises:
        StoreError: If the local disk refuses; the line names the target.
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
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write {str(target)!r}: {local_trouble(error)}.") from error


def need_room(descriptor: int, size: int) -> None:
    """Returns only if the disk of an open file has room for so many bytes: a server may say any size.

    Raises:
        OSError: As a full disk does.
    """
    disk = os.fstatvfs(descriptor)
    if size > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """All of the bytes: a full disk takes some first, and refuses then."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
