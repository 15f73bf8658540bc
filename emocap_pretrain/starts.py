"""Every start of a run has a number; the newest owns the run.

    <run>/starts/00003/start.json             who started it, on how many ranks; put only if absent
    <run>/starts/00003/failed-00001.json      why rank 1 of that start ended
    <run>/starts/00003/status.json            how it stands, now and then

A start that was taken for dead (a partition, a frozen host) may wake up again. Before it commits anything it looks for
a start with a higher number, and ends if there is one. Where a store ignores conditions, two starts in the same second
may take the same number; then the race between their checkpoints is open.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from emocap_shards.errors import BudgetSpent, ConditionFailed, StoreError
from emocap_shards.store import Store

from emocap_pretrain.errors import ConfigError, DataError, Superseded, TrackingError
from emocap_pretrain.logs import shown, shown_tree

FOLDER = "starts"
START, STATUS, FAILED = "start.json", "status.json", "failed-"
ASKED = "asked to stop; the state is saved"  # The reason in the status of a start that a person ended.
LONGEST_MESSAGE = 2000
SMALL_BYTES = 1 << 20

FINAL = (ConfigError, DataError, BudgetSpent, Superseded)
PASSING = (StoreError, TrackingError, OSError)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rank ended: `kind` is the error's class, `step` the one that it was at.

    `final` failures come again at every try (a wrong setting); `lost` ones only say that another rank is gone;
    `passing` ones are outages of something else.
    """

    rank: int
    host: str
    step: int
    kind: str
    message: str
    final: bool = False
    lost: bool = False
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """This process's view of one start of the run at the store's root."""

    store: Store
    number: int

    @classmethod
    def begin(cls, store: Store, facts: Mapping[str, Any]) -> "Start":
        """Take the next number; of several processes that ask at once each gets its own. Rank 0 alone calls it."""
        number = newest(store) + 1
        body = json.dumps(shown_tree({"number": number, "at": time.time(), **facts}), indent=1).encode()
        while True:
            try:
                store.put_if_absent(f"{_folder(number)}/{START}", body)
            except ConditionFailed:
                number += 1
            else:
                return cls(store, number)

    def check(self) -> None:
        """Raises:
        Superseded: If a newer start has taken the run over.
        """
        owner = newest(self.store)
        if owner > self.number:
            raise Superseded(
                f"start {owner} of the run at {self.store.url} has taken over from start {self.number}: this one ends."
            )

    def tell(self, status: Mapping[str, Any]) -> None:
        self.store.put(f"{_folder(self.number)}/{STATUS}", json.dumps(shown_tree(dict(status))).encode())

    def fail(self, failure: Failure) -> None:
        """Leave word of a failure; a store that does not take it costs the word, not the failure."""
        path = f"{_folder(self.number)}/{FAILED}{failure.rank:05d}.json"
        body = {**asdict(failure), "message": shown(failure.message)[:LONGEST_MESSAGE], "at": time.time()}
        try:
            self.store.put(path, json.dumps(body, indent=1).encode())
        except (StoreError, OSError) as error:
            log.warning("the failure of rank %d could not be written down: %s", failure.rank, error)


def newest(store: Store) -> int:
    """The number of the newest start; 0 before the first."""
    return max(numbers(store), default=0)


def numbers(store: Store) -> list[int]:
    """Of all starts, ascending."""
    paths = (entry.path for entry in store.list(FOLDER))
    return sorted(int(path.split("/")[1]) for path in paths if path.endswith(f"/{START}"))


def failures(store: Store, number: int) -> list[Failure]:
    """What ranks of a start left behind, by rank."""
    found: list[Failure] = []
    for entry in store.list(_folder(number)):
        name = entry.path.rpartition("/")[2]
        if name.startswith(FAILED):
            body = _read(store, entry.path)
            body.pop("at", None)
            found.append(Failure(**body))
    return sorted(found, key=lambda each: each.rank)


def cause(found: list[Failure]) -> Failure | None:
    """The failure that the others followed from: the first that is more than the loss of another rank."""
    return next((each for each in found if not each.lost), next(iter(found), None))


def status(store: Store, number: int) -> dict[str, Any]:
    """What `tell` wrote last.

    Raises:
        NotFound: If it has written nothing yet.
    """
    return _read(store, f"{_folder(number)}/{STATUS}")


def _read(store: Store, path: str) -> dict[str, Any]:
    return dict(json.loads(store.read(path, limit_bytes=SMALL_BYTES)))


def _folder(number: int) -> str:
    return f"{FOLDER}/{number:05d}"
