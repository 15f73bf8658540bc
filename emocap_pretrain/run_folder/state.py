"""Reads from a run's folder whether the run is alive, which step it has reached, and how its attempts ended.

Commands such as `emocap status` use this module in a process that does not belong to the run. A run counts as alive if
it has not ended and its status was written less than `DEAD_S` seconds ago. The clock of the store measures this age,
because the clocks of two hosts may differ by hours. If a store does not report ages, this module waits for the status
to change.

The processes of the run are not contacted, because the reader may have no connection to their hosts, and because this
module must work under every launcher. Therefore an answer may be some seconds old, and a killed run looks alive for up
to `DEAD_S` seconds (decisions 17 and 20).
"""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

from emocap_shards.store import Store

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.run_folder import attempts
from emocap_pretrain.run_folder.documents import ENDED, AttemptDocument, Failure, Status
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.parent import Parent
from emocap_pretrain.run_folder.storage import Unreadable

# A status is written every 5 s. After `STALE_S` the commands show its age. After `DEAD_S` the run counts as dead, and
# the commands refuse to stop or profile it.
STALE_S, DEAD_S = 20.0, 60.0
POLL_S = 5.0
SKEW_S = 60.0  # A larger difference between clocks is reported.


@dataclass(frozen=True, slots=True)
class AttemptState:
    """Holds the state of one attempt, as far as the documents in the run's folder describe it.

    Args:
        number: Number of the attempt.
        launched: When and on how many ranks the attempt was launched.
        status: Last status of the attempt.
        cause: The failure that ended the attempt, if a rank recorded one.
        silent_s: Seconds since the status was written, by the store's clock. It is infinite for all attempts except the
            newest one, because only the newest attempt can be alive.
        faults: Documents of the attempt that cannot be read.
        skew_s: Seconds by which the clock of rank 0's host is ahead of this host's clock; None if that is not known.
    """

    number: int
    launched: AttemptDocument
    status: Status | None
    cause: Failure | None
    silent_s: float = math.inf
    faults: tuple[Unreadable, ...] = ()
    skew_s: float | None = None

    @property
    def step(self) -> int:
        """Returns the last step that the attempt is known to have reached."""
        return max(self.status.step if self.status else 0, self.cause.step if self.cause else 0)

    @property
    def how(self) -> str:
        """Returns how the attempt has ended: "done", "stopped" or "failed"; "" before its end."""
        return self.status.how if self.status else ""

    @property
    def reason(self) -> str:
        """Returns the reason that the attempt has written for its end; "" if it has not written any."""
        return self.status.reason if self.status else ""

    @property
    def alive(self) -> bool:
        """Returns whether the attempt has not ended and has written its status within the last `DEAD_S` seconds.

        If the status cannot be read, the attempt counts as not ended, and only the age of the file decides.
        """
        ended = self.status is not None and self.status.state == ENDED
        return not ended and self.silent_s < DEAD_S

    @property
    def ending(self) -> str:
        """Returns a text that says how the attempt ended.

        While the attempt is alive, the text is empty, unless a rank has already recorded a failure.
        """
        cause = self.cause
        # A rank's own error says more than the status, which rank 0 may not have written any more. The status says more
        # than a record that only reports the loss of another rank.
        if cause and not cause.lost:
            return f"rank {cause.rank} ({cause.host}): {cause.kind}: {cause.message}"
        if self.status and self.status.state == ENDED:
            return f"{self.status.how}: {self.status.reason}" if self.status.reason else self.status.how
        if cause:
            return cause.message
        return "" if self.alive else "without a record of its end: it was killed, or its host is gone"


@dataclass(frozen=True, slots=True)
class RunState:
    """Holds the newest attempts of a run, ascending by number.

    `warm_start` is the checkpoint of another run with whose weights the run began; None for any other run.
    """

    url: str
    attempts: tuple[AttemptState, ...]
    warm_start: Parent | None = None

    @classmethod
    def read(cls, store: Store, *, last: int = 10) -> "RunState":
        """Reads the state of a run.

        Args:
            store: The run's folder.
            last: How many of the newest attempts are read.

        Raises:
            ConfigError: If no run was ever started there.
        """
        numbers = attempts.numbers(store)[-last:]
        if not numbers:
            raise ConfigError(f"no run was ever started at {store.url}: check the url, it is the `url` of the config.")
        found = tuple(_attempt(store, number, newest=number == numbers[-1]) for number in numbers)
        return cls(store.url, found, RunFolder(store).warm_start())

    @property
    def newest(self) -> AttemptState:
        """Returns the newest attempt, which supersedes all older ones: they commit nothing any more."""
        return self.attempts[-1]

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON value that `emocap status --json` prints."""
        newest = self.newest
        return {
            "url": self.url,
            "alive": newest.alive,
            "silent_s": round(newest.silent_s, 1),
            "clock_skew_s": None if newest.skew_s is None else round(newest.skew_s, 1),
            "status": _known_fields(newest.status),
            "warm_start": _known_fields(self.warm_start),
            "attempts": [
                {
                    "number": each.number,
                    "launched": _known_fields(each.launched),
                    "step": each.step,
                    "ended": each.ending,
                    "unreadable": [str(fault) for fault in each.faults],
                }
                for each in self.attempts
            ],
        }


def _known_fields(document: Status | AttemptDocument | Parent | None) -> dict[str, Any]:
    """Returns the fields of a document that are not None."""
    return {name: value for name, value in asdict(document).items() if value is not None} if document else {}


def _attempt(store: Store, number: int, *, newest: bool) -> AttemptState:
    launched, status = attempts.launched(store, number), attempts.status(store, number)
    cause = attempts.cause(attempts.failures(store, number))
    known = status if isinstance(status, Status) else None
    age_s = attempts.age_s(store, number) if newest else math.inf
    # `known.at` is a time by the clock of rank 0's host. If that clock were equal to this host's clock, `known.at` plus
    # the age would be the time now.
    if age_s is None:
        age_s, skew_s = _watched_s(store, number, status), None
    else:
        skew_s = known.at + age_s - time.time() if newest and known else None
    return AttemptState(
        number,
        launched if isinstance(launched, AttemptDocument) else AttemptDocument(number),
        known,
        cause,
        silent_s=age_s,
        faults=tuple(each for each in (launched, status) if isinstance(each, Unreadable)),
        skew_s=skew_s,
    )


def _watched_s(store: Store, number: int, status: Status | Unreadable | None) -> float:
    """Estimates the age of an attempt's status in a store that does not report ages, by waiting for a new status.

    Returns:
        The estimated age in seconds. It is 0 if the attempt writes a new status within `DEAD_S` seconds; the function
        then returns at once. It is `DEAD_S` if no new status appears, or if `status` says that the attempt has ended.
    """
    end_s = time.monotonic() + DEAD_S
    while time.monotonic() < end_s and not (isinstance(status, Status) and status.state == ENDED):
        time.sleep(min(POLL_S, DEAD_S))
        if attempts.status(store, number) != status:
            return 0.0
    return DEAD_S
