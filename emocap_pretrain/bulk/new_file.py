"""Writes a new file that gets its name only when it is complete and on the disk."""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from emocap_shards.errors import StoreError


@contextmanager
def disk_errors(path: Path) -> Generator[None]:
    """Turns an `OSError` of the `with` block, which writes to `path`, into a `StoreError` with advice."""
    try:
        yield
    except OSError as error:
        cure = "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "correct this"
        said = error.strerror or error
        raise StoreError(f"{path} cannot be written ({said}): {cure}, and start the same command again.") from error


@contextmanager
def writing_to(path: Path) -> Generator[Path]:
    """Yields the path of a temporary file beside `path`, and renames the file to `path` at the end of the block.

    Before the file is renamed, its bytes are flushed to the disk. If the block raises an error, the file is deleted.

    Raises:
        StoreError: If the disk is full, or the file cannot be written for another reason.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
