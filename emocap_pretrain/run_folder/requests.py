"""Stores requests of people to a run as small files in its folder. This works under every launcher and opens no port.

<run>/requests/stop.json               save and end
<run>/requests/profile-7f3a.json       record so many steps
<run>/requests/refused-stop.json       what could not be understood; nobody reads it again
"""

import logging
import re
import time
from dataclasses import dataclass, replace
from typing import TypeVar

from emocap_shards.store import Store

from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.documents import PROFILE_REQUEST, STOP_REQUEST, ProfileRequest, StopRequest
from emocap_pretrain.run_folder.storage import DocumentKind, Unreadable

FOLDER = "requests"
STOP, PROFILE, REFUSED = f"{FOLDER}/stop.json", f"{FOLDER}/profile-", f"{FOLDER}/refused-"
VALID_S = 3600.0  # A request that nobody served for so long is meant for an attempt that is gone.
KEPT_BYTES = 1 << 16  # Of a request that is refused.

_PROFILE = re.compile(rf"{PROFILE}([A-Za-z0-9]{{1,32}})\.json")

Request = TypeVar("Request", StopRequest, ProfileRequest)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Requests:
    """Returns the requests that exist now."""

    stop: bool = False
    profile: ProfileRequest | None = None


def ask_to_stop(store: Store) -> None:
    storage.write(store, STOP, STOP_REQUEST, StopRequest(time.time()))


def ask_for_profile(store: Store, request: ProfileRequest) -> None:
    storage.write(store, _path(request), PROFILE_REQUEST, replace(request, at=time.time()))


def waiting(store: Store) -> Requests:
    """Returns the requests that are not served yet, and one of several profiles. Unreadable ones are renamed."""
    present = sorted(entry.path for entry in store.list(FOLDER))
    stop = _read(store, STOP, STOP_REQUEST) if STOP in present else None
    profiles = (_profile(store, path) for path in present if path.startswith(PROFILE))
    return Requests(stop is not None, next(filter(None, profiles), None))


def served(store: Store, requests: Requests) -> None:
    """They are not asked again."""
    if requests.stop:
        store.delete(STOP)
    if requests.profile:
        store.delete(_path(requests.profile))


def _path(request: ProfileRequest) -> str:
    return f"{PROFILE}{request.id}.json"


def _profile(store: Store, path: str) -> ProfileRequest | None:
    request = _read(store, path, PROFILE_REQUEST)
    if request and path != _path(request):  # It would be served again and again: it is deleted by its id.
        _refuse(store, path, f"its id is {request.id}")
        return None
    return request


def _read(store: Store, path: str, kind: DocumentKind[Request]) -> Request | None:
    """The request, if it can be understood and is fresh."""
    request = storage.read(store, path, kind)
    if isinstance(request, Unreadable):
        _refuse(store, path, request.reason)
        return None
    age_s = store.age_s(path) if request else None
    if age_s is not None and age_s > VALID_S:
        store.delete(path)
        return None
    return request


def _refuse(store: Store, path: str, reason: str) -> None:
    refused = f"{REFUSED}{path.removeprefix(f'{FOLDER}/')}"
    log.warning("the request %s/%s is refused (%s) and kept as %s", store.url, path, reason, refused)
    store.put(refused, store.read_range(path, 0, KEPT_BYTES))
    store.delete(path)
