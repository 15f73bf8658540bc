"""Finds the Ray cluster that a job on this host would join, without importing Ray."""

import os
import socket
import stat
from pathlib import Path

from emocap_cluster.errors import NoCluster

# No more than this is read of the record of an address, which other programs may have written.
ADDRESS_BYTES = 1024
ANSWER_S = 10.0
HERE = "local"  # With this address `ray.init` starts a new cluster.


def address_of_ray() -> str:
    """Returns the address of the Ray cluster that a job joins: `RAY_ADDRESS`, or else the address of this user's
    cluster on this host.

    Returns `HERE` if `RAY_ADDRESS` is not set and there is no such cluster, so that the job starts its own.

    Raises:
        NoCluster: If no server answers at `RAY_ADDRESS`, or if `RAY_ADDRESS` is `auto` and this user runs no cluster on
            this host.
    """
    given = os.environ.get("RAY_ADDRESS", "")
    if given and given != "auto":
        _require_answer(given)
        return given
    found = _recorded_address()
    if given and not found:
        raise NoCluster(
            "RAY_ADDRESS=auto, but this user runs no Ray cluster on this host: set it to HOST:PORT, or unset it."
        )
    return found or HERE


def _recorded_address() -> str | None:
    """Returns the address that `ray start` of this user has recorded on this host, if a server answers there.

    Unless RAY_TMPDIR is set, all users share the folder of this record, /tmp/ray. A record or a folder that belongs to
    another user is ignored, because a server at the recorded address would receive the job's function with its secrets.
    The record of a cluster that has ended is deleted, as `ray stop` would do.
    """
    file = Path(os.environ.get("RAY_TMPDIR") or "/tmp", "ray", "ray_current_cluster")  # noqa: S108
    # Another user may have put a link or a pipe there. A link is not followed, and a pipe is not waited for.
    try:
        number = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(number, encoding="utf-8", errors="replace") as opened:
        # The open file is examined and not its path, so that nobody can exchange the file in between.
        status = os.fstat(number)
        if {status.st_uid, file.parent.stat().st_uid} != {os.geteuid()} or not stat.S_ISREG(status.st_mode):
            return None
        address = opened.read(ADDRESS_BYTES).strip()
    try:
        _connect(address)
    except OSError:
        file.unlink(missing_ok=True)
        return None
    return address or None


def _require_answer(address: str) -> None:
    """Raises `NoCluster` if no server answers at the address. Ray itself would retry such an address for minutes."""
    try:
        _connect(address)
    except OSError as error:
        raise NoCluster(f"there is no answer at RAY_ADDRESS={address} ({error}): correct it, or unset it.") from error


def _connect(address: str) -> None:
    """Raises OSError if no server answers. An address without a port, such as `auto`, is not checked."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
