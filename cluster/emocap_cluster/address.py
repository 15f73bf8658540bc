"""Which Ray cluster a job on this host would join, found without importing Ray."""

import os
import socket
import stat
from pathlib import Path

from emocap_cluster.errors import NoCluster

ADDRESS_BYTES = 1024
ANSWER_S = 10.0
HERE = "local"


def address_of_ray() -> str:
    """The address of `RAY_ADDRESS`, or of the cluster of this user on this host; `HERE` if a job starts its own.

    Raises:
        NoCluster: If nobody answers at `RAY_ADDRESS`, or it is `auto` and this user runs no cluster here.
    """
    given = os.environ.get("RAY_ADDRESS", "")
    if given and given != "auto":
        _refuse_silence(given)
        return given
    found = _remembered()
    if given and not found:
        raise NoCluster(
            "RAY_ADDRESS=auto, but this user runs no Ray cluster on this host: set it to HOST:PORT, or unset it."
        )
    return found or HERE


def _remembered() -> str | None:
    """The address that `ray start` of this user has left on this host, if somebody answers there.

    The folder is shared between users, so a file, or a folder, of another user is not believed: whoever answers at
    such an address would get the job's function, with its secrets. The address of a cluster that is gone is deleted, as
    `ray stop` would do it.
    """
    file = Path(os.environ.get("RAY_TMPDIR") or "/tmp", "ray", "ray_current_cluster")  # noqa: S108
    try:
        number = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(number, encoding="utf-8", errors="replace") as opened:
        status = os.fstat(number)
        if {status.st_uid, file.parent.stat().st_uid} != {os.geteuid()} or not stat.S_ISREG(status.st_mode):
            return None
        address = opened.read(ADDRESS_BYTES).strip()
    try:
        _knock(address)
    except OSError:
        file.unlink(missing_ok=True)
        return None
    return address or None


def _refuse_silence(address: str) -> None:
    """Ray tries an address for minutes where nobody answers."""
    try:
        _knock(address)
    except OSError as error:
        raise NoCluster(f"nobody answers at RAY_ADDRESS={address} ({error}): correct it, or unset it.") from error


def _knock(address: str) -> None:
    """Raises OSError where nobody answers; an address without a port, such as `auto`, is Ray's own."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
