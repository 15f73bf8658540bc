"""Writes the status of a run into its folder, and reads the requests of users there, in a thread of rank 0.

The thread writes and reads every few seconds. If the store is unreachable, training continues, and the status in the
folder is out of date.

The status thread and the training thread share three fields without a lock. `_fields` is a frozen value that is
replaced as a whole. `superseded` is written only by the status thread. `_requests` is written by both threads: the
training thread takes its value and puts an empty one there. If the status thread stores requests at the same moment,
the empty value may overwrite them. They are not lost: the file of a request is deleted only after the training thread
has taken the request, so the status thread reads the file again.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import Any

from emocap_pretrain.errors import Superseded
from emocap_pretrain.health.position import UNBOUNDED_PHASES, TrainingPosition
from emocap_pretrain.run_folder import requests
from emocap_pretrain.run_folder.attempts import STOP_REQUESTED, STOP_SIGNALLED, Attempt
from emocap_pretrain.run_folder.documents import ENDED, Status
from emocap_pretrain.run_folder.requests import Requests

INTERVAL_S = 5.0  # `run_folder.state` counts a run as dead after twelve times as long.
CLOSE_S = 10.0
FAILED, STOPPED = "failed", "stopped"

log = logging.getLogger(__name__)


class StatusThread:
    """Writes the status and reads requests every `INTERVAL_S` seconds until it is closed.

    Attributes:
        superseded: The reason why this attempt must not write any more; empty while it may write.
    """

    def __init__(self, attempt: Attempt, position: TrainingPosition, **fields: Any) -> None:
        """Starts the thread.

        Args:
            attempt: The attempt whose status is written.
            position: The position of the training thread.
            fields: Initial values of further fields of `Status`.
        """
        self._attempt, self._position = attempt, position
        self._fields = Status(at=time.time(), attempt=attempt.number, restarts=attempt.number - 1, **fields)
        self._requests = Requests()
        self._served: SimpleQueue[Requests] = SimpleQueue()
        self._served_ids: set[str] = set()
        self.superseded = ""
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="emocap-status", daemon=True)
        self._thread.start()

    def update(self, **fields: Any) -> None:
        """Replaces fields of `Status`. The status thread writes them later, so the call does not wait for the store."""
        self._fields = replace(self._fields, **fields)

    def take_requests(self) -> Requests:
        """Returns the requests that were read since the last call. The status thread then deletes their files.

        The training thread calls this method, which does not wait for the store. A profile request is returned only
        once. A request to stop may be returned again, if its file was read again before it was deleted.
        """
        taken, self._requests = self._requests, Requests()
        # The thread may have read a request again before it deleted it.
        if taken.profile and taken.profile.id in self._served_ids:
            taken = Requests(taken.stop)
        if taken.profile:
            self._served_ids.add(taken.profile.id)
        self._served.put(taken)
        return taken

    def close(self, how: str, reason: str) -> None:
        """Writes the status for the last time. If the store does not answer, it waits at most `CLOSE_S` seconds.

        Args:
            how: How the attempt has ended: "done", "stopped" or "failed".
            reason: The reason, as a message.
        """
        self.update(state=ENDED, how=how, reason=reason)
        self._closing.set()
        self._wake.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while True:
            # Both are read before the work: a call of `close` during the work leads to one more round, which writes the
            # last status.
            last = self._closing.is_set()
            self._wake.clear()
            self._log_errors("requests to this run cannot be read", partial(self._read_requests, last=last))
            self._log_errors("the status of the run cannot be written", self._write)
            if last or self.superseded:
                return
            self._wake.wait(INTERVAL_S)

    def _log_errors(self, problem: str, act: Callable[[], None]) -> None:
        """Calls `act`, and catches its errors, so that no error ends this thread.

        The message of a `Superseded` is stored in `superseded`. Any other error is logged as `problem: message`.
        """
        try:
            act()
        except Superseded as error:
            self.superseded = str(error)
        except Exception as error:  # noqa: BLE001 - without the thread the run would look dead while it trains
            log.warning("%s: %s", problem, str(error) or type(error).__name__)

    def _write(self) -> None:
        # Writing would create the folder again if a user has deleted it. So its existence is checked first.
        self._attempt.require_folder()
        self._attempt.write_status(self._status())

    def _status(self) -> Status:
        position, fields = self._position, self._fields
        state = position.phase if position.phase in UNBOUNDED_PHASES else "training"
        state = fields.state if fields.state == ENDED else state
        return replace(fields, at=time.time(), state=state, step=position.step, phase=position.phase)

    def _read_requests(self, *, last: bool) -> None:
        store = self._attempt.store
        # First what training has taken is deleted, then the rest is read.
        while not self._served.empty():
            requests.mark_served(store, self._served.get())
        waiting = requests.pending(store)
        if not last:
            self._requests = waiting
        elif self._fields.how != FAILED:
            # These requests came while the run was ending, and the next attempt must not serve them. `pending` returns
            # at most one profile request at a time.
            while waiting != Requests():
                # The run was ending because of a signal. The user's request becomes the reason, so that a driver does
                # not start the ranks again.
                if waiting.stop and self._fields.how == STOPPED:
                    self.update(reason=self._fields.reason.replace(STOP_SIGNALLED, STOP_REQUESTED, 1))
                requests.mark_served(store, waiting)
                waiting = requests.pending(store)
