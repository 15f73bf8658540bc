"""Keeps rows until a tracking server has accepted them, and sends them in order. A row is one report about a run.

Rows are sent in a separate thread, so an unreachable server never stops training: rows are kept in memory and in the
checkpoints that are saved meanwhile. Rows of steps after the newest checkpoint need not be in a checkpoint: a resumed
run repeats these steps and makes the rows again.

A row leaves the queue only after its delivery is confirmed. If the confirmation is lost, the row is delivered again.
Therefore the function that delivers rows must make sure that a repeated row counts once.
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
MAX_ROWS_PER_CALL = 200
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 30.0
TOLERATED_FAILURES = 1  # One failure is normal, such as a connection that was closed while it was idle.

log = logging.getLogger(__name__)


class Row(TypedDict):
    """Holds one report to the tracking server, as JSON values.

    Attributes:
        kind: Kind of the report, such as the metrics of a step.
        step: The step that the report belongs to; 0 for a report about the whole run.
        at_ms: When the report was made, in milliseconds since 1970.
        body: The values of the report; their keys depend on `kind`.
    """

    kind: Kind
    step: int
    at_ms: int
    body: dict[str, Any]


def row(kind: Kind, step: int, body: dict[str, Any]) -> Row:
    """Returns a row with the current time."""
    return {"kind": kind, "step": step, "at_ms": round(time.time() * 1000), "body": body}


def readable_rows(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Returns those of the stored rows that this version can send. The others are left out with a warning."""
    found = list(rows)
    known = [each for each in found if _is_row(each)]
    if len(known) < len(found):
        log.warning("%d stored rows cannot be sent to the tracker and are left out", len(found) - len(known))
    return [cast("Row", dict(each)) for each in known]


def _is_row(stored: Mapping[str, Any]) -> bool:
    # `type(...) is int` refuses bool, which `isinstance` would accept.
    numbers = (stored.get("step"), stored.get("at_ms"))
    return (
        stored.get("kind") in get_args(Kind)
        and isinstance(stored.get("body"), dict)
        and all(type(each) is int for each in numbers)
    )


class Spool:
    """Sends rows (reports about a run) in order, several in one call of `deliver`, and retries a call that fails.

    All public methods may be called from any thread. `put` and `unsent` return at once. The lock of the condition
    variable `_changed` protects the queue, the count of failures, and the flags `_closing` and `_given_up`. No thread
    holds this lock while rows are delivered.

    Example:
        spool = Spool(run.deliver, name="rows")
        spool.put(row("metrics", 10, {"loss": 2.0}))
        spool.flush(2.0)  # True if the row has arrived within 2 s.
        spool.close(20.0)
        spool.unsent()  # What did not arrive; the next attempt sends it.
    """

    def __init__(
        self,
        deliver: Callable[[Sequence[Row]], None],
        rows: Iterable[Row] = (),
        *,
        name: str = "rows",
        max_pause_s: float = MAX_PAUSE_S,
    ) -> None:
        """Starts the thread that sends the rows.

        Args:
            deliver: Sends rows, or raises an error. Only the spool's thread calls this function. It must accept rows
                that it has sent before, because a call that fails may have sent some of its rows.
            rows: The rows that an earlier spool could not send; they are sent first.
            name: The noun that log messages use for the rows, such as "texts and pictures".
            max_pause_s: Longest pause after a failed call. The first pause is `FIRST_PAUSE_S` seconds long, and each
                further failure in a row doubles the pause up to this limit.
        """
        self._deliver, self._name, self._max_pause_s = deliver, name, max_pause_s
        self._waiting = deque(rows)
        self._changed = threading.Condition()
        self._failures = 0  # Failures since the last success.
        self._closing = self._given_up = False
        threading.Thread(target=self._run, name=f"emocap-tracking-{name}", daemon=True).start()

    def put(self, new: Row) -> None:
        """Adds a row to the queue without waiting for the server."""
        with self._changed:
            self._waiting.append(new)
            self._changed.notify_all()

    def unsent(self) -> list[Row]:
        """Returns the rows that have not arrived, or whose arrival is not confirmed, in their order."""
        with self._changed:
            return list(self._waiting)

    def flush(self, wait_s: float) -> bool:
        """Waits up to `wait_s` seconds until all rows have arrived, and returns whether they have.

        It stops waiting once two calls of `deliver` in a row have failed, for example because the server is
        unreachable.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failures > TOLERATED_FAILURES or not self._waiting, wait_s)
            return not self._waiting

    def close(self, wait_s: float) -> bool:
        """Ends the spool after it has tried to send the remaining rows for up to `wait_s` seconds.

        Returns:
            Whether all rows have arrived.
        """
        # `_closing` ends the thread once the queue is empty, and shortens its pauses. `_given_up` ends it in any case.
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
                self._pause(error, min(self._max_pause_s, FIRST_PAUSE_S * 2 ** min(self._failures, 10)))
            else:
                self._confirm(len(rows))

    def _next(self) -> list[Row]:
        """Waits for rows and returns the oldest ones. It returns an empty list if the thread must end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return [] if self._given_up else list(islice(self._waiting, MAX_ROWS_PER_CALL))

    def _confirm(self, count: int) -> None:
        with self._changed:
            if self._failures > TOLERATED_FAILURES:
                log.info("the tracker takes %s again", self._name)
            # `put` adds at the other end, so the first rows are still those that were delivered.
            for _ in range(count):
                self._waiting.popleft()
            self._failures = 0
            self._changed.notify_all()

    def _pause(self, error: Exception, pause_s: float) -> None:
        """Counts a failure and waits `pause_s` seconds, or at most `FIRST_PAUSE_S` while the spool is being closed.

        Of several failures in a row, only the second one is logged.
        """
        with self._changed:
            if self._failures == TOLERATED_FAILURES:
                log.warning(
                    "the tracker does not take %s (%s); they are kept and sent later", self._name, reason(error)
                )
            self._failures += 1
            self._changed.notify_all()  # `flush` stops waiting.
            if not self._changed.wait_for(lambda: self._closing, pause_s):
                return
            self._changed.wait_for(lambda: self._given_up, min(pause_s, FIRST_PAUSE_S))


def reason(error: BaseException) -> str:
    """Returns why a call failed, in one short line without secrets.

    If an error of the operating system, such as a refused connection, is the root cause of `error`, the line is the
    text of that root cause. Otherwise it is the text of `error`.
    """
    root = error
    while inner := root.__cause__ or root.__context__:
        root = inner
    shown = root if isinstance(root, OSError) else error
    return masked(str(shown)).strip().split("\n")[0][:200] or type(shown).__name__
