"""What people ask of a run: small files in its folder, so that it works under every launcher and opens no port.

<run>/requests/stop.json            save and end
<run>/requests/profile-7f3a.json    record so many steps
"""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from emocap_shards.errors import NotFound
from emocap_shards.store import Store

STOP, PROFILE = "requests/stop.json", "requests/profile-"
VALID_S = 3600.0  # A request that nobody served for so long is meant for a start that is gone.
SMALL_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """Record the next `steps` steps on these ranks; None is all."""

    id: str
    steps: int
    ranks: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> "ProfileRequest":
        ranks = body["ranks"]
        return cls(str(body["id"]), int(body["steps"]), None if ranks is None else tuple(int(each) for each in ranks))


@dataclass(frozen=True, slots=True)
class Requests:
    """What is asked for now."""

    stop: bool = False
    profile: ProfileRequest | None = None


def ask_to_stop(store: Store) -> None:
    store.put(STOP, json.dumps({"at": time.time()}).encode())


def ask_for_profile(store: Store, request: ProfileRequest) -> None:
    store.put(_path(request), json.dumps({"at": time.time(), **request.to_json()}).encode())


def waiting(store: Store) -> Requests:
    """What nobody has served yet; of several profiles one."""
    present = sorted(entry.path for entry in store.list("requests"))
    stop = _read(store, STOP) if STOP in present else None
    profiles = (_read(store, path) for path in present if path.startswith(PROFILE))
    profile = next(filter(None, profiles), None)
    return Requests(stop is not None, ProfileRequest.from_json(profile) if profile else None)


def served(store: Store, requests: Requests) -> None:
    """They are not asked again."""
    if requests.stop:
        store.delete(STOP)
    if requests.profile:
        store.delete(_path(requests.profile))


def _path(request: ProfileRequest) -> str:
    return f"{PROFILE}{request.id}.json"


def _read(store: Store, path: str) -> dict[str, Any] | None:
    """The request, if it is fresh."""
    try:
        body = dict(json.loads(store.read(path, limit_bytes=SMALL_BYTES)))
    except NotFound:
        return None
    if time.time() - float(body["at"]) > VALID_S:
        store.delete(path)
        return None
    return body
