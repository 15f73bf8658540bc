"""Room for one rank's share of a checkpoint on the local disk."""

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
NEWBORN_S = 60.0  # A folder this young may be about to be locked by its maker.


@contextmanager
def scratch() -> Generator[Path]:
    """An empty folder in TMPDIR, gone afterwards; what killed processes have left there goes too.

    Raises:
        CheckpointError: If the disk gets full in the body; it says what has to fit.
    """
    _clear()
    # After an error a download may still write into it: what that leaves is cleared like a killed process's.
    made = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
    with made as name, (Path(name) / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # The kernel lets go of it when the process dies, however it dies.
        folder = Path(name) / "files"
        folder.mkdir()
        try:
            yield folder
        except Exception as error:
            if _is_full(error):
                raise _no_room(folder) from error
            raise


def _clear() -> None:
    """Deletes the folders that killed processes have left, which are not locked; other users' are not looked into."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # What is gone meanwhile, or holds something else than a lock of ours, is not ours to clear.
        with suppress(OSError):
            if is_own_folder(path) and time.time() - path.stat().st_mtime > NEWBORN_S and _is_left(path):
                shutil.rmtree(path, ignore_errors=True)


def _is_left(folder: Path) -> bool:
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
    """Whether this disk had no room; safetensors tells it in words alone. A store's error is of the store's disk."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return not isinstance(error, StoreError) and f"os error {errno.ENOSPC}" in str(error)


def _no_room(folder: Path) -> CheckpointError:
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    place = tempfile.gettempdir()
    free = shutil.disk_usage(place).free
    return CheckpointError(
        f"{place} is full: {size(written)} of this rank's share of the checkpoint are written there and {size(free)} "
        "are free; one rank's share has to fit: make room, or set TMPDIR to a larger disk."
    )
