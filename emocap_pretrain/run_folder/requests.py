"""Stores users' requests to a run as small files in the run's folder.

This works under every launcher, and needs no network port.

<run>/requests/stop.json               asks the run to save and end
<run>/requests/profile-7f3a.json       asks the run to record some steps
<run>/requests/refused-stop.json       a request that could not be read; it is kept and ignored

The status thread of rank 0 (`health/status.py`) reads the requests every few seconds, and the training loop acts on
them on all ranks. While the run trains, the file of a valid request is deleted only after the loop has taken the
request. So a request is not lost if rank 0 dies before that. A request is valid for `VALID_S` seconds.
"""

import logging
import time
from dataclasses import dataclass, replace
from typing import TypeVar

from emocap_shards.store import Store

from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.documents import PROFILE_REQUEST, STOP_REQUEST, ProfileRequest, StopRequest
from emocap_pretrain.run_folder.storage import DocumentKind, Unreadable

FOLDER = "requests"
STOP, PROFILE, REFUSED = f"{FOLDER}/stop.json", f"{FOLDER}/profile-", f"{FOLDER}/refused-"
# An older request was meant for an attempt that has ended since. A living run may also need long to read a request: it
# does so only after it has opened its data and its model.
VALID_S = 3600.0
KEPT_BYTES = 1 << 16  # How much of a refused request is kept.

Request = TypeVar("Request", StopRequest, ProfileRequest)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Requests:
    """Holds requests that the run has not served yet.

    `stop` says whether the run has to stop. `profile` is a request to profile some steps; None if there is none.
    """

    stop: bool = False
    profile: ProfileRequest | None = None


def ask_to_stop(store: Store) -> None:
    """Writes a request to save a checkpoint and end. Rank 0 of the run reads it within seconds.

    A second request replaces the first one.
    """
    storage.write(store, STOP, STOP_REQUEST, StopRequest(time.time()))


def ask_for_profile(store: Store, request: ProfileRequest) -> None:
    """Writes a request to profile some steps. The file also holds the current time."""
    storage.write(store, _path(request), PROFILE_REQUEST, replace(request, at=time.time()))


def pending(store: Store) -> Requests:
    """Returns the requests that the run has not served yet: whether it has to stop, and at most one profile request.

    If there are several profile requests, it returns the one whose path comes first in alphabetical order. The others
    are returned by later calls, after `mark_served` has deleted this one. Files that are not valid requests are
    renamed, so that they are not read again.
    """
    present = sorted(entry.path for entry in store.list(FOLDER))
    stop = _read(store, STOP, STOP_REQUEST) if STOP in present else None
    profiles = (_profile(store, path) for path in present if path.startswith(PROFILE))
    return Requests(stop is not None, next(filter(None, profiles), None))


def mark_served(store: Store, requests: Requests) -> None:
    """Deletes the files of these requests, so that they are not read again. It ignores files that do not exist."""
    if requests.stop:
        store.delete(STOP)
    if requests.profile:
        store.delete(_path(requests.profile))


def _path(request: ProfileRequest) -> str:
    return f"{PROFILE}{request.id}.json"


def _profile(store: Store, path: str) -> ProfileRequest | None:
    request = _read(store, path, PROFILE_REQUEST)
    # `mark_served` deletes a request by its id, so a request at another path would be served again and again.
    if request and path != _path(request):
        _refuse(store, path, f"its id is {request.id}")
        return None
    return request


def _read(store: Store, path: str, kind: DocumentKind[Request]) -> Request | None:
    """Returns the request at a path; None if there is no usable request.

    A file that is not a valid request is renamed, and a request that is older than `VALID_S` seconds is deleted.
    """
    request = storage.read(store, path, kind)
    if isinstance(request, Unreadable):
        _refuse(store, path, request.reason)
        return None
    # The store's clock counts and not the field `at`, because the clock of the user's host may be wrong.
    age_s = store.age_s(path) if request else None
    if age_s is not None and age_s > VALID_S:
        store.delete(path)
        return None
    return request


def _refuse(store: Store, path: str, reason: str) -> None:
    refused = f"{REFUSED}{path.removeprefix(f'{FOLDER}/')}"
    log.warning("the request %s/%s is refused (%s) and kept as %s", store.url, path, reason, refused)
    # The copy is written before the original is deleted. A crash between the two leaves both, and the request is
    # refused once more. Only the beginning of the file is read, because its writer chose its size.
    store.put(refused, store.read_range(path, 0, KEPT_BYTES))
    store.delete(path)
