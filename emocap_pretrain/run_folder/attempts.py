"""Numbers the attempts of a run and stores their documents. An attempt is one launch; the newest one owns the run.

    <run>/attempts/00003/attempt.json          when and on how many ranks attempt 3 was launched; written only if absent
    <run>/attempts/00003/failed-00001.json     why rank 1 of that attempt ended
    <run>/attempts/00003/status.json           the state of that attempt, written every few seconds

An attempt that seemed dead (a network partition, a frozen host) may continue later. Before an attempt commits anything,
it looks for an attempt with a higher number, and ends if there is one. If a store ignores conditional writes, two
attempts that begin in the same second may take the same number. If both then save the same step, the later checkpoint
replaces the earlier one.

Version 0.1.0 wrote `starts/00003/start.json` instead of `attempt.json`. Such attempts are read too, and new attempts
get higher numbers.

In a job, rank 0 begins the attempt and writes its status, and every rank may record its own failure. Processes outside
the job, such as a driver or a command, read these documents with the functions of this module (decision 17).
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
from emocap_pretrain.run_folder.storage import DocumentKind, Unreadable, read_repeatedly

FOLDER, OLD_FOLDER = "attempts", "starts"
ATTEMPT_FILE, OLD_ATTEMPT_FILE, STATUS_FILE = "attempt.json", "start.json", "status.json"
# First words of `Status.reason` for an attempt that a user ended with `emocap stop`, or that a signal ended.
STOP_REQUESTED, STOP_SIGNALLED = "asked to stop", "told to stop"
LONGEST_MESSAGE = 2000  # Characters of an error's message that are stored.

# Errors that every further attempt would raise again, and errors of other services, which a later attempt may not meet.
# A driver does not restart the ranks after a final one. After a passing one it restarts them even if the same error
# comes twice in a row at the same step, which otherwise proves a bug (decision 15).
FINAL = (ConfigError, DataError, BudgetSpent, Superseded)
PASSING = (StoreError, TrackingError, OSError)

# An attempt exists once its `attempt.json` exists. Other files in such a folder, for example a status, do not make one.
_BEGUN = re.compile(rf"(?:{FOLDER}/(\d{{5,12}})/{ATTEMPT_FILE}|{OLD_FOLDER}/(\d{{5,12}})/{OLD_ATTEMPT_FILE})")
_FAILED = re.compile(r".*/failed-(\d{5,12})\.json")

log = logging.getLogger(__name__)
Form = TypeVar("Form")


@dataclass(frozen=True, slots=True)
class Attempt:
    """Represents one attempt of the run whose folder is `store`.

    Its methods check that the attempt still owns the run, and write the attempt's documents. The object is immutable,
    so every rank and every thread may use it.
    """

    store: Store
    number: int

    @classmethod
    def begin(cls, store: Store, *, ranks: int = 1) -> "Attempt":
        """Begins an attempt: takes the next number and writes `attempt.json`. Only rank 0 calls this method.

        If two attempts begin at the same time, they get different numbers, unless the store ignores conditional writes.

        Args:
            store: The run's folder.
            ranks: World size of the attempt.
        """
        number = newest(store) + 1
        # The write decides, not the listing: it fails if another attempt has taken the number meanwhile, or if the
        # listing was stale.
        while True:
            body = ATTEMPT.dump(AttemptDocument(number, time.time(), ranks))
            try:
                store.put_if_absent(f"{FOLDER}/{number:05d}/{ATTEMPT_FILE}", body)
            except ConditionFailed:
                number += 1
            else:
                break
        if store.list(OLD_FOLDER):  # A process of version 0.1.0 that continues looks for its successor only there.
            store.put(f"{OLD_FOLDER}/{number:05d}/{OLD_ATTEMPT_FILE}", body)
        return cls(store, number)

    def check(self) -> None:
        """Checks that this attempt still owns the run, by listing the attempts in the store.

        It must be called before each commit and each deletion. A new attempt may still begin between the check and the
        write that follows it (docs/checkpoints.md explains the consequences for a checkpoint).

        Raises:
            Superseded: If a newer attempt has taken the run over, or the run's folder was deleted.
        """
        owner = newest(self.store)
        if owner > self.number:
            raise Superseded(
                f"attempt {owner} of the run at {self.store.url} has taken over from attempt {self.number}, which "
                "ends now."
            )
        # The listing does not show this attempt: it is stale, or the folder was deleted. A direct look-up decides.
        if owner < self.number:
            self.require_folder()

    def require_folder(self) -> None:
        """Checks that `attempt.json` still exists, so that this attempt does not create a deleted run folder again.

        Raises:
            Superseded: If `attempt.json` does not exist.
        """
        path = f"{FOLDER}/{self.number:05d}/{ATTEMPT_FILE}"
        if not any(read_repeatedly(lambda: self.store.exists(path))):
            raise Superseded(
                f"the folder of the run at {self.store.url} was deleted or replaced: attempt {self.number} ends, "
                "and nothing more is saved."
            )

    def write_status(self, status: Status) -> None:
        """Writes `status.json`, with secrets masked in the reason.

        Raises:
            StoreError: If the store refuses the document.
        """
        masked = replace(status, reason=shown(status.reason))
        storage.write(self.store, f"{FOLDER}/{self.number:05d}/{STATUS_FILE}", STATUS, masked)

    def record_failure(self, failure: Failure) -> None:
        """Writes `failed-<rank>.json` with the current time, and with secrets masked in the message.

        An error of the store is logged and not raised, because the failure itself is more important. Any rank may call
        this method, and it is not a collective: the other ranks may be lost.
        """
        path = f"{FOLDER}/{self.number:05d}/failed-{failure.rank:05d}.json"
        masked = replace(failure, message=shown(failure.message)[:LONGEST_MESSAGE], at=time.time())
        try:
            self.require_folder()
            storage.write(self.store, path, FAILURE, masked)
        except (StoreError, OSError, Superseded) as error:
            log.warning("the failure of rank %d could not be recorded: %s", failure.rank, error)


def newest(store: Store) -> int:
    """Returns the number of the newest attempt; 0 before the first attempt."""
    return max(numbers(store), default=0)


def numbers(store: Store) -> list[int]:
    """Returns the numbers of all attempts, ascending. Folders with other names, such as a copy, are ignored."""
    # A number is written with at least five digits, and with more only if it needs them. So `000003` is not a number.
    entries = [*store.list(OLD_FOLDER), *store.list(FOLDER)]
    matches = (_BEGUN.fullmatch(entry.path) for entry in entries)
    texts = {text for match in matches if match for text in match.groups() if text}
    return sorted(int(text) for text in texts if text == f"{int(text):05d}")


def launched(store: Store, number: int) -> AttemptDocument | Unreadable | None:
    """Returns `attempt.json`, which says when and on how many ranks the attempt was launched; None if it is absent."""
    return _read(store, number, ATTEMPT_FILE, OLD_ATTEMPT_FILE, ATTEMPT)


def status(store: Store, number: int) -> Status | Unreadable | None:
    """Returns the last status that the attempt has written; None if the attempt has not written any."""
    return _read(store, number, STATUS_FILE, STATUS_FILE, STATUS)


def age_s(store: Store, number: int) -> float | None:
    """Returns the seconds since the attempt last wrote its status, or since it began if it has not written one.

    The seconds are measured by the store's clock. The result is None if the store does not report ages, or if neither
    `status.json` nor `attempt.json` exists.
    """
    # The status of an attempt is newer than its `attempt.json`, so it is looked up first.
    for folder, begun in ((FOLDER, ATTEMPT_FILE), (OLD_FOLDER, OLD_ATTEMPT_FILE)):
        for file in (STATUS_FILE, begun):
            with suppress(NotFound):
                return store.age_s(f"{folder}/{number:05d}/{file}")
    return None


def failures(store: Store, number: int) -> list[Failure]:
    """Returns the failures that ranks of an attempt have stored, in the order of the ranks.

    A document that cannot be read counts as a failure whose `kind` is "Unknown".
    """
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
    """Returns the failure that probably caused the others; None if there are no failures.

    It is the first failure in the list that does not merely report the loss of another rank. If all failures report
    such a loss, it is the first one in the list. The times of the failures are not compared.
    """
    return next((each for each in found if not each.lost), next(iter(found), None))


def _read(store: Store, number: int, new: str, old: str, kind: DocumentKind[Form]) -> Form | Unreadable | None:
    """Reads a document of an attempt: the file `new`, or the file `old` of version 0.1.0 if `new` is absent.

    The two files are in different folders, because version 0.1.0 had another name for the folder of attempts.
    """
    found = storage.read(store, f"{FOLDER}/{number:05d}/{new}", kind)
    return storage.read(store, f"{OLD_FOLDER}/{number:05d}/{old}", kind) if found is None else found
