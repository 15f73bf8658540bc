"""How a run stands, for whoever looks into its folder; and the ear for what is asked of it.

Rank 0's thread writes it every few seconds. A store that is away costs nothing but staleness.
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
from emocap_pretrain.health.beat import UNBOUNDED, Beat
from emocap_pretrain.run_folder import requests
from emocap_pretrain.run_folder.attempts import ASKED, TOLD, Attempt
from emocap_pretrain.run_folder.documents import ENDED, Status
from emocap_pretrain.run_folder.requests import Requests

EVERY_S = 5.0
LAST_WORD_S = 10.0
FAILED, STOPPED = "failed", "stopped"

log = logging.getLogger(__name__)


class StatusThread:
    """Writes facts and reads requests until it is closed."""

    def __init__(self, attempt: Attempt, beat: Beat, **facts: Any) -> None:
        self._attempt, self._beat = attempt, beat
        self._facts = Status(at=time.time(), attempt=attempt.number, restarts=attempt.number - 1, **facts)
        self._asked = Requests()
        self._taken: SimpleQueue[Requests] = SimpleQueue()
        self._ids: set[str] = set()
        self.gone = ""  # Why nothing may be written any more.
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="emocap-status", daemon=True)
        self._thread.start()

    def tell(self, **facts: Any) -> None:
        """Facts for the next writing, fields of `Status`; they replace those of the same name."""
        self._facts = replace(self._facts, **facts)

    def asked(self) -> Requests:
        """What has been asked for since the last time."""
        asked, self._asked = self._asked, Requests()
        if asked.profile and asked.profile.id in self._ids:  # The thread saw it again before it was deleted.
            asked = Requests(asked.stop)
        if asked.profile:
            self._ids.add(asked.profile.id)
        self._taken.put(asked)
        return asked

    def close(self, how: str, reason: str) -> None:
        """Write a last time; a store that is away is not waited for longer than a few seconds.

        Args:
            how: "done", "stopped" or "failed".
            reason: In words.
        """
        self.tell(state=ENDED, how=how, reason=reason)
        self._closing.set()
        self._wake.set()
        self._thread.join(LAST_WORD_S)

    def _run(self) -> None:
        while True:
            last = self._closing.is_set()
            self._wake.clear()
            self._safely("requests to this run cannot be read", partial(self._listen, last=last))
            self._safely("the run's status is stale", self._report)
            if last or self.gone:
                return
            self._wake.wait(EVERY_S)

    def _safely(self, what: str, act: Callable[[], None]) -> None:
        """Listening and reporting fail each for itself, and nothing in the run's folder ends this thread."""
        try:
            act()
        except Superseded as error:
            self.gone = str(error)
        except Exception as error:  # noqa: BLE001 - without the thread the run would look dead while it trains
            log.warning("%s: %s", what, str(error) or type(error).__name__)

    def _report(self) -> None:
        self._attempt.require_folder()
        self._attempt.tell(self._status())

    def _status(self) -> Status:
        beat, facts = self._beat, self._facts
        state = beat.phase if beat.phase in UNBOUNDED else "training"
        state = facts.state if facts.state == ENDED else state
        return replace(facts, at=time.time(), state=state, step=beat.step, phase=beat.phase)

    def _listen(self, *, last: bool) -> None:
        store = self._attempt.store
        while not self._taken.empty():
            requests.served(store, self._taken.get())
        waiting = requests.waiting(store)
        if not last:
            self._asked = waiting
        elif self._facts.how != FAILED:  # Asked while the run was ending: it is not meant for the next start.
            if waiting.stop and self._facts.how == STOPPED:
                self.tell(reason=self._facts.reason.replace(TOLD, ASKED, 1))
            requests.served(store, waiting)
