"""Protects the Ray cluster that a job starts for itself from other users of the host and from other hosts."""

import os
import secrets
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray._private import ray_constants

from emocap_cluster.errors import NoCluster

OTHERS = 0o077
OTHERS_WRITE = 0o022
CURE = "set RAY_AUTH_TOKEN_PATH to a path in a folder of your own."
# Makes ranks on one host use its loopback interface; gloo and NCCL would use the host's outer address.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
_SWITCH = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR  # RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER in Ray 2.60.


@contextmanager
def on_loopback() -> Generator[None]:
    """Makes all processes of a Ray cluster that is started in the `with` block listen on 127.0.0.1 alone.

    If `ray.init` is called with `_node_ip_address="127.0.0.1"`, Ray 2.60 replaces this address by the host's outer
    address (`services.resolve_ip_for_localhost`). Ray keeps the loopback address only if the environment variable
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER is 0. This variable is meant for macOS and Windows. The value 0 says that the host
    cannot be part of a larger cluster. This function sets the variable to 0 until the end of the block, and the
    processes that Ray starts inherit it. The constant in `ray_constants` is set too, because `ray_constants` reads the
    variable only when it is imported.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(_SWITCH)
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[_SWITCH] = "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[0]
        if before[1] is None:
            os.environ.pop(_SWITCH, None)
        else:
            os.environ[_SWITCH] = before[1]


def private_folder() -> Path:
    """Returns this user's folder for Ray's sockets and logs. It is created if needed, and only this user can open it.

    Its path is short, because the path of a socket has at most 107 bytes.

    Raises:
        NoCluster: If the folder cannot be created, or if there is already a folder or link at its path that belongs to
            another user or that others can access.
    """
    folder = Path(os.environ.get("RAY_TMPDIR") or "/tmp", f"emocap-{os.geteuid()}")  # noqa: S108
    cure = "remove it, or set RAY_TMPDIR to a folder of your own."
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        # The folder may have existed before, with another owner or mode. `lstat` does not follow a link, which another
        # user could have put into a folder that all users share.
        status = folder.lstat()
    except OSError as error:
        raise NoCluster(f"the folder for Ray's sockets cannot be made: {error}; {cure}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & OTHERS:
        raise NoCluster(f"{folder} must be a folder that belongs to this user, with mode 700: {cure}")
    return folder


def make_token() -> None:
    """Creates the file with Ray's authentication token, if Ray needs this file and it does not exist.

    Ray needs no file if the environment contains a token, or if the user has chosen another mode of authentication. Ray
    itself would create the file with default permissions, with which other users can usually read it.

    Raises:
        NoCluster: If the file cannot be created, or its path is not known because the user has no home folder.
    """
    if (path := _token_file()) is None or path.exists():
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The file is complete when it gets its name, because another job may read it at the same moment.
        number, made = tempfile.mkstemp(prefix="token-", dir=path.parent)
        with os.fdopen(number, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
        # A link, unlike a rename, does not replace the token of a job that was faster. Both jobs then use that token.
        with suppress(FileExistsError):
            os.link(made, path)
        Path(made).unlink()
    except OSError as error:
        raise NoCluster(f"the file of Ray's token cannot be made: {error}; {CURE}") from error


def check_token() -> None:
    """Refuses a token that is not secret, because everyone who knows the token can run code in the cluster.

    Raises:
        NoCluster: If another user can read or replace the file with Ray's token, if it is not a regular file, if it
            cannot be examined, or if its path is not known because the user has no home folder.
    """
    if (path := _token_file()) is None or not os.path.lexists(path):
        return
    try:
        status, folder = path.stat(), path.parent.stat()
    except OSError as error:
        raise NoCluster(f"the file of Ray's token cannot be examined: {error}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise NoCluster(f"{path} must be a regular file, as it holds Ray's token: remove it.")
    # Root may own the file, because root can read every file anyway.
    if status.st_mode & OTHERS or status.st_uid not in (os.geteuid(), 0):
        raise NoCluster(
            f"other users can read Ray's token in {path} (mode {stat.S_IMODE(status.st_mode):03o}): "
            f"`chmod 600 {path}`, and make a new token if the host has other users; or set RAY_AUTH_TOKEN."
        )
    if folder.st_mode & OTHERS_WRITE or folder.st_uid not in (os.geteuid(), 0):
        raise NoCluster(f"other users can replace Ray's token in {path.parent}: `chmod 700 {path.parent}`.")


def _token_file() -> Path | None:
    """Returns the path of the file in which Ray looks for its token.

    Returns None if Ray uses no token, or reads the token from the environment.

    Raises:
        NoCluster: If the path is not known because the user has no home folder.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return None
    if given := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return Path(given)
    try:
        return Path.home() / ".ray" / "auth_token"
    except RuntimeError as error:
        raise NoCluster(f"this user has no home folder for Ray's token; {CURE}") from error
