"""Makes temporary folders on the local disk, in which one rank's files of a checkpoint are written or read.

TMPDIR needs room for one rank's share of a checkpoint. Several users, and several ranks of the host, may share
TMPDIR. A process that is killed cannot delete its folder, so the next call of `scratch` on the host deletes the folder.
A lock shows whether a folder is still in use.
"""

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from emocap_shards.errors import StoreError
from emocap_shards.inspecting.wording import size
from emocap_shards.local_files import is_own_folder, open_own

from emocap_pretrain.errors import CheckpointError

PREFIX = "emocap-checkpoint-"
LOCK = "lock"
MIN_AGE_S = 60.0  # A younger folder may not be locked yet by the process that made it.


@contextmanager
def scratch() -> Generator[Path]:
    """Yields an empty folder in TMPDIR and deletes it afterwards.

    First it deletes the folders that killed processes have left there. Several ranks of a host, and several threads of
    a process, may use this function at the same time.

    Raises:
        CheckpointError: If the disk becomes full in the `with` block. The message says how many bytes were written, and
            how many are free.
    """
    _clear()
    # After an error a download may still write into the folder: a later call deletes what remains of it.
    made = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
    with made as name, (Path(name) / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # The kernel releases it when the process dies, also by SIGKILL.
        folder = Path(name) / "files"
        folder.mkdir()
        try:
            yield folder
        except Exception as error:
            if _is_full(error):
                raise _no_room(folder) from error
            raise


def _clear() -> None:
    """Deletes the folders that killed processes have left: those older than `MIN_AGE_S` that no process has locked.

    Folders of other users are not opened.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # A folder that is gone meanwhile, or that has no lock file of ours, is skipped.
        with suppress(OSError):
            # The folder and its lock are opened without following links: another user may have put a link or a pipe
            # with this name into a shared TMPDIR.
            if is_own_folder(path) and time.time() - path.stat().st_mtime > MIN_AGE_S and _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Returns whether no process holds the lock of the folder."""
    # Closing the file also releases a lock that was taken here. Two processes may therefore delete the same folder.
    lock = open_own(folder / LOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(lock)


def _is_full(error: Exception) -> bool:
    """Returns whether an error says that the local disk is full.

    An error of safetensors says this only in its text. A `StoreError` is never about the local disk.
    """
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return not isinstance(error, StoreError) and f"os error {errno.ENOSPC}" in str(error)


def _no_room(folder: Path) -> CheckpointError:
    """Returns the error for a full TMPDIR, with the bytes that were written into `folder` and those that are free."""
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    tmpdir = tempfile.gettempdir()
    free = shutil.disk_usage(tmpdir).free
    return CheckpointError(
        f"{tmpdir} is full: {size(written)} of this rank's share of the checkpoint are written there and {size(free)} "
        "are free; one rank's share has to fit: make room, or set TMPDIR to a larger disk."
    )
