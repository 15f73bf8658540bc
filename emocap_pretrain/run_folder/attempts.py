"""Every launch of a run is an attempt with a number; the newest attempt owns the run.

    <run>/attempts/00003/attempt.json          when it was launched, on how many ranks; put only if absent
    <run>/attempts/00003/failed-00001.json     why rank 1 of that attempt ended
    <run>/attempts/00003/status.json           its state, every few seconds

An attempt that was taken for dead (a partition, a frozen host) may wake up again. Before it commits anything it looks
for an attempt with a higher number, and ends if there is one. Where a store ignores conditions, two attempts in the
same second may take the same number; then the race between their checkpoints is open.

Version 0.1.0 wrote `starts/00003/start.json`. Such attempts are read, and the numbers continue after them.
"""

import logging
import re
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from emocap_shards.errors import BudgetSpent, ConditionFailed, NotFound, StoreError
from emocap_shards.store import Store

from emocap_pretrain.errors import ConfigError, DataError, Superseded, TrackingError
from emocap_pretrain.logs import shown
from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.documents import ATTEMPT, FAILURE, STATUS, AttemptDocument, Failure, Status
from emocap_pretrain.run_folder.storage import DocumentKind, Unreadable

FOLDER, OLD_FOLDER = "attempts", "starts"
ATTEMPT_FILE, OLD_ATTEMPT_FILE, STATUS_FILE = "attempt.json", "start.json", "status.json"
# With these words begins the reason in the status of an attempt that a person ended, or a signal.
ASKED, TOLD = "asked to stop", "told to stop"
LONGEST_MESSAGE = 2000
LOOKS, PAUSE_S = 3, 0.05  # What seems to be gone is looked up again.

FINAL = (ConfigError, DataError, BudgetSpent, Superseded)
PASSING = (StoreError, TrackingError, OSError)

_BEGUN = re.compile(rf"(?:{FOLDER}/(\d{{5,12}})/{ATTEMPT_FILE}|{OLD_FOLDER}/(\d{{5,12}})/{OLD_ATTEMPT_FILE})")
_FAILED = re.compile(r".*/failed-(\d{5,12})\.json")

log = logging.getLogger(__name__)
Form = TypeVar("Form")


@dataclass(frozen=True, slots=True)
class Attempt:
    """This process's view of one attempt of the run at the store's root."""

    store: Store
    number: int

    @classmethod
    def begin(cls, store: Store, *, ranks: int = 1) -> "Attempt":
        """Take the next number; of several processes that ask at once each gets its own. Rank 0 alone calls it."""
        known = numbers(store)
        number = max(known, default=0) + 1
        while True:
            body = ATTEMPT.dump(AttemptDocument(number, time.time(), ranks))
            try:
                store.put_if_absent(f"{FOLDER}/{number:05d}/{ATTEMPT_FILE}", body)
            except ConditionFailed:
                number += 1
            else:
                break
        if store.list(OLD_FOLDER):  # A process of version 0.1.0 that wakes up looks there alone for its successor.
            store.put(f"{OLD_FOLDER}/{number:05d}/{OLD_ATTEMPT_FILE}", body)
        return cls(store, number)

    def check(self) -> None:
        """Raises:
        Superseded: If a newer attempt has taken the run over, or the run's folder was deleted.
        """
        owner = newest(self.store)
        if owner > self.number:
            raise Superseded(
                f"attempt {owner} of the run at {self.store.url} has taken over from attempt {self.number}: "
                "this one ends."
            )
        if owner < self.number:
            self.require_folder()

    def require_folder(self) -> None:
        """Raises:
        Superseded: If this attempt's own document is gone; a folder that a person has deleted does not come back.
        """
        path = f"{FOLDER}/{self.number:05d}/{ATTEMPT_FILE}"
        for _ in range(LOOKS):
            if self.store.exists(path):
                return
            time.sleep(PAUSE_S)
        raise Superseded(
            f"the folder of the run at {self.store.url} was deleted or replaced: attempt {self.number} ends, "
            "and nothing more is saved."
        )

    def tell(self, status: Status) -> None:
        told = replace(status, reason=shown(status.reason))
        storage.write(self.store, f"{FOLDER}/{self.number:05d}/{STATUS_FILE}", STATUS, told)

    def fail(self, failure: Failure) -> None:
        """Record a failure; a store that does not take it costs the record, not more."""
        path = f"{FOLDER}/{self.number:05d}/failed-{failure.rank:05d}.json"
        told = replace(failure, message=shown(failure.message)[:LONGEST_MESSAGE], at=time.time())
        try:
            self.require_folder()
            storage.write(self.store, path, FAILURE, told)
        except (StoreError, OSError, Superseded) as error:
            log.warning("the failure of rank %d could not be written down: %s", failure.rank, error)


def newest(store: Store) -> int:
    """The number of the newest attempt; 0 before the first."""
    return max(numbers(store), default=0)


def numbers(store: Store) -> list[int]:
    """The numbers of all attempts, ascending; a folder with another name, such as a copy, is not an attempt."""
    entries = [*store.list(OLD_FOLDER), *store.list(FOLDER)]
    matches = (_BEGUN.fullmatch(entry.path) for entry in entries)
    texts = {text for match in matches if match for text in match.groups() if text}
    return sorted(int(text) for text in texts if text == f"{int(text):05d}")


def launched(store: Store, number: int) -> AttemptDocument | Unreadable | None:
    """When and on how many ranks an attempt was launched."""
    return _read(store, number, (ATTEMPT_FILE, OLD_ATTEMPT_FILE), ATTEMPT)


def status(store: Store, number: int) -> Status | Unreadable | None:
    """Returns the last status that the attempt has written; None before the first."""
    return _read(store, number, (STATUS_FILE, STATUS_FILE), STATUS)


def age_s(store: Store, number: int) -> float | None:
    """Seconds since the attempt gave its last sign of life, by the store's clock; None where the store does not say."""
    for folder, begun in ((FOLDER, ATTEMPT_FILE), (OLD_FOLDER, OLD_ATTEMPT_FILE)):
        for file in (STATUS_FILE, begun):
            with suppress(NotFound):
                return store.age_s(f"{folder}/{number:05d}/{file}")
    return None


def failures(store: Store, number: int) -> list[Failure]:
    """Returns the failures that ranks of an attempt have stored, by rank; an unreadable one has only the rank."""
    paths = [entry.path for folder in (FOLDER, OLD_FOLDER) for entry in store.list(f"{folder}/{number:05d}")]
    ranks = {path: int(match[1]) for path in paths if (match := _FAILED.fullmatch(path))}
    found = (_failure(store, path, rank) for path, rank in ranks.items())
    return sorted(filter(None, found), key=lambda each: each.rank)


def _failure(store: Store, path: str, rank: int) -> Failure | None:
    failure = storage.read(store, path, FAILURE)
    if isinstance(failure, Unreadable):
        return Failure(rank, kind="Unknown", message=f"its record cannot be read: {failure.reason}")
    return failure


def cause(found: list[Failure]) -> Failure | None:
    """The failure that the others followed from: the first that is more than the loss of another rank."""
    return next((each for each in found if not each.lost), next(iter(found), None))


def _read(store: Store, number: int, files: tuple[str, str], kind: DocumentKind[Form]) -> Form | Unreadable | None:
    """The document of an attempt: where this version writes it, else where version 0.1.0 did."""
    new, old = files
    found = storage.read(store, f"{FOLDER}/{number:05d}/{new}", kind)
    return storage.read(store, f"{OLD_FOLDER}/{number:05d}/{old}", kind) if found is None else found
