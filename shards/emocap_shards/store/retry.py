"""Retries failed requests with full-jitter backoff until a deadline, within a budget, and with few lines in the log.

Only this module retries the requests of stores. If two layers of the code did so, the numbers of their attempts would
multiply.
"""

import asyncio
import functools
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from emocap_shards.errors import StoreError
from emocap_shards.store.budget import Budget
from emocap_shards.store.failure import EXPECTED, cure, is_transient, reason, retry_after_s
from emocap_shards.store.limits import RetryConfig

T = TypeVar("T")
FIRST_WORD_S, NEXT_WORD_S = 5.0, 15.0  # An outage is logged after FIRST_WORD_S, and then every NEXT_WORD_S.
SMALL_BYTES = 1 << 16
LAST_S = 1.0  # Before the deadline. A last attempt is made then, even if the server asks clients to wait longer.
_log = logging.getLogger(__name__)


class Retrier:
    """Retries failed requests. Each request must be safe to send more than once.

    Each `Connection` has one `Retrier` for all of its requests. So if a thousand reads wait for the store, the log gets
    one line for all of them.

    Args:
        patience: When a failed request is retried, and when no further attempt is made.
        where: The store's URL without secrets, for messages.
        budget: The budget for the retries of this process.
    """

    def __init__(self, patience: RetryConfig, where: str, budget: Budget) -> None:
        self._patience, self._where, self._budget = patience, where, budget
        self._silent_since: float | None = None
        self._last_word = float("-inf")
        self._is_known = False  # Whether the store has ever answered.
        self._last_reason = "no answer yet"

    async def __call__(
        self, verb: str, path: str, act: Callable[[int], Awaitable[T]], *, size_bytes: int | None = 0
    ) -> T:
        """Awaits act(1), act(2), ... until one of them succeeds, and returns its result. An error that is not transient
        is raised unchanged.

        Args:
            verb: The action for messages, such as "read".
            path: Path of the object, for messages.
            act: Makes one attempt; its argument is the number of the attempt, from 1.
            size_bytes: Number of bytes that are transferred in one attempt. It determines the time limit of an attempt;
                None sets no limit.

        Raises:
            StoreError: If no attempt has succeeded before the deadline.
        """
        limit_s = None if size_bytes is None else self._patience.attempt_s(size_bytes)
        attempt = functools.partial(_attempt, act, limit_s)
        began = time.monotonic()
        # A large request is slow without any trouble, so only small ones are reported.
        watches = not self._is_known and (size_bytes or 0) <= SMALL_BYTES
        # If the store has never answered, a server may have taken the connection and never answer. This is reported
        # after FIRST_WORD_S, before the attempt fails.
        loop = asyncio.get_running_loop()
        watch = loop.call_later(FIRST_WORD_S, self._waiting, verb, path, began) if watches else None
        try:
            result = await attempt(1)
            self._budget.succeeded(again=False)
        except EXPECTED as error:
            result = await self._again(verb, path, attempt, error, began)
            self._budget.succeeded(again=True)
        finally:
            if watch is not None:
                watch.cancel()
        self._is_known = True
        if self._silent_since is not None:
            self._back()
        return result

    async def _again(
        self, verb: str, path: str, attempt: Callable[[int], Awaitable[T]], error: BaseException, began: float
    ) -> T:
        """Retries a request whose first attempt has raised `error`; `began` is the start of that attempt.

        The pause before an attempt is the time that the server asks for plus a random time, so that not all clients
        retry at the same moment.
        """
        # The first attempt counts as the longest silence of a server at most. It may have taken longer without waiting
        # for the store: bytes of a large request were transferred, a read waited for a free place (`Connection.turn`),
        # or the process was stopped (SIGSTOP).
        began = max(began, time.monotonic() - self._patience.attempt_s(0))
        ends, number = began + self._patience.deadline_s, 1
        try:
            while is_transient(error):
                left_s, asked_s = ends - time.monotonic(), retry_after_s(error)
                pause_s = asked_s + self._jitter_s(number)
                # The server asks for more time than is left: the pause is cut, for one attempt before the deadline.
                if asked_s > 0 and pause_s >= left_s > LAST_S:
                    pause_s = left_s - LAST_S
                if pause_s >= left_s:
                    raise self._gave_up(verb, path, number, error) from None
                self._last_reason = f"{reason(error)} ({number} attempts)"
                self._waiting(verb, path, began)
                await asyncio.sleep(pause_s)
                try:
                    # The wait for a token counts as well, so the deadline holds also if many requests wait in this
                    # process.
                    async with asyncio.timeout(ends - time.monotonic()):
                        await self._budget.turn()
                except TimeoutError:
                    raise self._gave_up(verb, path, number, error) from None
                number += 1
                try:
                    return await attempt(number)
                except EXPECTED as failure:
                    error = failure
            raise error
        finally:
            # The traceback of the error refers to this frame. Without the deletion the connection of the request would
            # stay open until the garbage collector runs.
            del error

    def _jitter_s(self, failures: int) -> float:
        bound_s = self._patience.first_wait_s * 2.0 ** min(failures - 1, 60)
        return random.uniform(0, min(bound_s, self._patience.longest_wait_s))

    def _waiting(self, verb: str, path: str, began: float) -> None:
        """Logs that a request, which began at `began`, waits for the store.

        The first line is written after `FIRST_WORD_S`. After that, all waiting requests together write at most one line
        every `NEXT_WORD_S`.
        """
        now = time.monotonic()
        waited_s = now - began
        # The factor allows for a timer that fires a little early.
        if waited_s < FIRST_WORD_S * 0.99 or now - self._last_word < NEXT_WORD_S:
            return
        self._last_word = now
        self._silent_since = self._silent_since or began
        _log.warning(
            "cannot %s %r in %s for %.0f s now: %s; trying again, for %.0f s in all.",
            verb,
            path,
            self._where,
            waited_s,
            self._last_reason,
            self._patience.deadline_s,
        )

    def _back(self) -> None:
        assert self._silent_since is not None
        _log.warning("%s answers again, after %.0f s.", self._where, time.monotonic() - self._silent_since)
        self._silent_since, self._last_word = None, float("-inf")

    def _gave_up(self, verb: str, path: str, attempts: int, last: BaseException) -> StoreError:
        spent = f"gave up after {attempts} attempts in {self._patience.deadline_s:g} s"
        return StoreError(f"cannot {verb} {path!r} in {self._where}: {reason(last)}; {spent}; {cure(last)}.")


async def _attempt(act: Callable[[int], Awaitable[T]], limit_s: float | None, number: int) -> T:
    async with asyncio.timeout(limit_s):
        return await act(number)
