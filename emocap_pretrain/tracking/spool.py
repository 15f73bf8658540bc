"""Rows on their way to a tracker: kept until they arrived, sent in order by a thread of their own.

A tracker that is down never stops training: rows wait in memory, and in the checkpoints that are saved meanwhile. What
comes after a checkpoint needs no copy: training replays it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, TypedDict, cast, get_args

from emocap_shards.mask import masked

Kind = Literal[
    "metrics", "scores", "rescores", "datasets", "tags", "status", "checkpoint", "forget", "keep", "text", "picture"
]
MOST_AT_ONCE = 200
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
AWAY_AFTER = 1  # One failure is a hiccup, such as a connection that was closed while it was idle.

log = logging.getLogger(__name__)


class Row(TypedDict):
    """Something to be tracked, in JSON's values; `body` is what its kind needs, `at_ms` counts from the epoch."""

    kind: Kind
    step: int
    at_ms: int
    body: dict[str, Any]


def row(kind: Kind, step: int, body: dict[str, Any]) -> Row:
    """A row of now."""
    return {"kind": kind, "step": step, "at_ms": round(time.time() * 1000), "body": body}


def understood(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Stored rows that this version can send; the others are left out with a warning."""
    found = list(rows)
    known = [each for each in found if _is_row(each)]
    if len(known) < len(found):
        log.warning("%d stored rows are not rows for the tracker and are left out", len(found) - len(known))
    return [cast("Row", dict(each)) for each in known]


def _is_row(stored: Mapping[str, Any]) -> bool:
    numbers = (stored.get("step"), stored.get("at_ms"))
    return (
        stored.get("kind") in get_args(Kind)
        and isinstance(stored.get("body"), dict)
        and all(type(each) is int for each in numbers)
    )


class Spool:
    """Sends rows in order, some at a time, and tries again until they arrive."""

    def __init__(
        self,
        deliver: Callable[[Sequence[Row]], None],
        rows: Iterable[Row] = (),
        *,
        name: str = "rows",
        longest_pause_s: float = LONGEST_PAUSE_S,
    ) -> None:
        """Open the spool.

        Args:
            deliver: Takes rows or raises. It is called from one thread only, and must bear to get rows again: of a
                delivery that failed nobody knows how much arrived.
            rows: What an earlier spool could not deliver; it is sent first.
            name: What the rows are, for the log.
            longest_pause_s: Between two tries.
        """
        self._deliver, self._name, self._longest_pause_s = deliver, name, longest_pause_s
        self._waiting = deque(rows)
        self._changed = threading.Condition()
        self._failures = 0  # In a row.
        self._closing = self._given_up = False
        threading.Thread(target=self._run, name=f"emocap-tracking-{name}", daemon=True).start()

    def put(self, new: Row) -> None:
        with self._changed:
            self._waiting.append(new)
            self._changed.notify_all()

    def unsent(self) -> list[Row]:
        """Rows that were put and are not known to have arrived, in order."""
        with self._changed:
            return list(self._waiting)

    def flush(self, wait_s: float) -> bool:
        """Wait until every row arrived; False, and at once, while the tracker does not answer."""
        with self._changed:
            self._changed.wait_for(lambda: self._failures > AWAY_AFTER or not self._waiting, wait_s)
            return not self._waiting

    def close(self, wait_s: float) -> bool:
        """Try for so long to deliver what waits; True if all of it arrived."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting, wait_s)
            self._given_up = True
            self._changed.notify_all()
            return not self._waiting

    def _run(self) -> None:
        while rows := self._next():
            try:
                self._deliver(rows)
            except Exception as error:  # noqa: BLE001 - training continues after any error of the tracker's client
                self._wait(error, min(self._longest_pause_s, FIRST_PAUSE_S * 2 ** min(self._failures, 10)))
            else:
                self._confirm(len(rows))

    def _next(self) -> list[Row]:
        """The rows at the front; none once the spool is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return [] if self._given_up else list(islice(self._waiting, MOST_AT_ONCE))

    def _confirm(self, count: int) -> None:
        with self._changed:
            if self._failures > AWAY_AFTER:
                log.info("the tracker takes %s again", self._name)
            for _ in range(count):
                self._waiting.popleft()
            self._failures = 0
            self._changed.notify_all()

    def _wait(self, error: Exception, pause_s: float) -> None:
        """Pause after a failure, shortly once the spool is closing."""
        with self._changed:
            if self._failures == AWAY_AFTER:
                log.warning("the tracker does not take %s (%s); they wait", self._name, reason(error))
            self._failures += 1
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._closing, pause_s):
                return
            self._changed.wait_for(lambda: self._given_up, min(pause_s, FIRST_PAUSE_S))


def reason(error: BaseException) -> str:
    """Returns why a call failed, in one short line without secrets; for a lost connection its first cause."""
    root = error
    while inner := root.__cause__ or root.__context__:
        root = inner
    told = root if isinstance(root, OSError) else error
    return masked(str(told)).strip().split("\n")[0][:200] or type(told).__name__
