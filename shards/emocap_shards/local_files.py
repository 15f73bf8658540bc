"""Opens files and folders safely on a host that several people share.

If other users may write to a folder, they can put a link to a file of this process's user there, or a pipe to which
nobody ever writes. The functions of this module never wait for a pipe or a device. Files and folders that are meant for
this process's user alone (caches, locks, temporary folders) must belong to that user. Links to such files are not
followed.
"""

import errno
import fcntl
import os
import stat
import time
from pathlib import Path

# The errors of `os.open` for a socket, a pipe that nobody reads, and a device without a driver.
_NO_FILE = {errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP}
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISREG, "a file"),
)
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_POLL_S = 0.005


class UnsafePath(OSError):  # noqa: N818 - the name says more than "error"
    """The path leads to something that is not allowed there, such as a link or a file of another user.

    `strerror` says what was found and what to do.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(errno.EPERM, reason, str(path))


def open_regular(path: str | Path, flags: int = os.O_RDONLY, mode: int = 0o666, *, follow: bool = True) -> int:
    """Opens a regular file, and never waits for a pipe or a device.

    Args:
        path: The file.
        flags: Flags of `os.open`.
        mode: Access rights of a file that is created.
        follow: Whether the last part of the path may be a link.

    Returns:
        The descriptor, which the caller closes.

    Raises:
        UnsafePath: If something other than a regular file lies at the path.
        OSError: If `os.open` raises it. If the path is a folder, the error is an `IsADirectoryError`.
    """
    try:
        # With O_NONBLOCK the opening of a pipe returns at once, with or without an error, instead of waiting for its
        # other end.
        file = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW), mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafePath(path, "it is a link, which is not followed here: delete the link") from error
        if error.errno in _NO_FILE:
            raise _irregular(path, Path(path).stat().st_mode) from error
        raise
    # The open file is examined, and not the path, at which another file may lie by now.
    status = os.fstat(file)
    if stat.S_ISREG(status.st_mode):
        return file
    os.close(file)
    raise _irregular(path, status.st_mode)


def open_own(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """Opens a regular file of this user that has no second name (hard link). Only this user can read a new file.

    Raises:
        UnsafePath: If a file of another user, a file with a second name, or anything other than a regular file lies at
            the path.
        OSError: If `os.open` raises it.
    """
    file = open_regular(path, flags, 0o600, follow=False)
    status = os.fstat(file)
    if status.st_uid == os.geteuid() and status.st_nlink <= 1:
        return file
    os.close(file)
    reason = "it has a second name" if status.st_uid == os.geteuid() else f"it belongs to {owner(status.st_uid)}"
    raise UnsafePath(path, f"{reason}, so others may change it: delete it, or choose another folder")


def make_own_folder(folder: str | Path) -> None:
    """Makes a folder for this user alone, or accepts an existing one that is safe.

    An existing folder must belong to this user, and other users must not be allowed to write to it. `folder` may also
    be a link to such a folder if this user or root has made the link.

    Raises:
        UnsafePath: If the existing folder, or a link to it, belongs to another user, or if others may write to it.
        OSError: If the folder cannot be made.
    """
    Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    # A link to a folder is allowed if both belong to this user, or if root has made the link to a folder of this user.
    name, status = os.lstat(folder), os.stat(folder)  # noqa: PTH116 - the link, and the folder that it leads to
    foreign = next((uid for uid in (status.st_uid, name.st_uid) if uid != os.geteuid()), None)
    if foreign is not None and not (stat.S_ISLNK(name.st_mode) and foreign == 0 and status.st_uid == os.geteuid()):
        cure = f"name a folder of your own, such as {Path(folder) / str(os.geteuid())}"
        raise UnsafePath(folder, f"the folder belongs to {owner(foreign)}, not to {owner(os.geteuid())}: {cure}")
    if status.st_mode & _WRITABLE_BY_OTHERS:
        rights = f"{stat.S_IMODE(status.st_mode):o}"
        raise UnsafePath(folder, f"other users may write to the folder (mode {rights}): chmod 700 it, or name another")


def is_own_folder(folder: str | Path) -> bool:
    """Returns whether the path is a folder of this user, and not a link to one."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def locked(file: int, *, wait_s: float) -> bool:
    """Tries to lock a file for up to `wait_s` seconds and returns whether it succeeded.

    The function polls, because `flock` itself can only wait without a limit.
    """
    gives_up = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= gives_up:
                return False
            time.sleep(_POLL_S)
        else:
            return True


def owner(uid: int) -> str:
    """Returns the name and the user id of the user `uid`, for messages."""
    import pwd

    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _irregular(path: str | Path, mode: int) -> OSError:
    if stat.S_ISDIR(mode):
        return IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    return UnsafePath(path, f"it is {kind}, where a regular file must lie: delete it, or correct the path")
