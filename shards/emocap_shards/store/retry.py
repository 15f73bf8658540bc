"""Repeats failed requests with full-jitter backoff until a deadline, within a budget, and with few lines in the log.

All retries of stores are in this module. If two layers repeated requests, their numbers of attempts would multiply.
"""

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, RetryError, retry_if_exception
from tenacity.wait import wait_random_exponential

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
    """Repeats requests that are safe to repeat.

    Each connection has one, so that a thousand waiting reads together write one line to the log.

    Args:
        patience: When a request is repeated, and when the store gives up.
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
        """Awaits act(1), act(2), ... until one returns; an error that is not transient is raised unchanged.

        Args:
            verb: The action for messages, such as "read".
            path: Path of the object, for messages.
            act: Makes one attempt; its argument is the number of the attempt, from 1.
            size_bytes: Bytes that are transferred in one attempt, which limit its time; None for no limit.

        Raises:
            StoreError: If the deadline is over.
        """
        limit_s = None if size_bytes is None else self._patience.attempt_s(size_bytes)
        attempt = functools.partial(_attempt, act, limit_s)
        began = time.monotonic()
        # A large request is slow without any trouble, so only small ones are reported.
        watches = not self._is_known and (size_bytes or 0) <= SMALL_BYTES
        watch = _later(FIRST_WORD_S, self._waiting, verb, path, began) if watches else None
        try:
            result = await attempt(1)
            self._budget.succeeded(again=False)
        except EXPECTED as error:
            # Tenacity costs as much time as a small request, so it is used only after the first failure.
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
        self, verb: str, path: str, attempt: Callable[[int], Awaitable[T]], first: BaseException, began: float
    ) -> T:
        number, last = 0, first
        # The time in which a process was stopped (SIGSTOP) does not count as waiting for the store.
        began = max(began, time.monotonic() - self._patience.attempt_s(0))

        async def once() -> T:
            nonlocal number, last
            number += 1
            try:
                if number == 1:
                    raise first
                return await attempt(number)
            except EXPECTED as error:
                last = error
                raise

        try:
            return await self._retrying(verb, path, began)(once)
        except (RetryError, _Spent):
            raise self._gave_up(verb, path, number, last) from None

    def _retrying(self, verb: str, path: str, began: float) -> AsyncRetrying:
        patience = self._patience
        jitter = wait_random_exponential(multiplier=patience.first_wait_s, max=patience.longest_wait_s)
        left_s = lambda: began + patience.deadline_s - time.monotonic()  # noqa: E731

        def pause_s(state: RetryCallState) -> float:
            """Returns a random pause plus the time that the server asks for, so that clients return one by one."""
            random_s, asked_s, left = jitter(state), retry_after_s(_error_of(state)), left_s()
            too_long = asked_s > 0 and asked_s + random_s >= left
            return left - LAST_S if too_long and left > LAST_S else asked_s + random_s

        async def sleep(seconds: float) -> None:
            await asyncio.sleep(seconds)
            try:
                async with asyncio.timeout(left_s()):
                    await self._budget.turn()
            except TimeoutError as error:
                raise _Spent from error

        return AsyncRetrying(
            retry=retry_if_exception(is_transient),
            wait=pause_s,
            stop=lambda state: state.upcoming_sleep >= left_s(),
            before_sleep=functools.partial(self._failed, verb, path, began),
            sleep=sleep,
        )

    def _failed(self, verb: str, path: str, began: float, state: RetryCallState) -> None:
        self._last_reason = f"{reason(_error_of(state))} ({state.attempt_number} attempts)"
        self._waiting(verb, path, began)

    def _waiting(self, verb: str, path: str, began: float) -> None:
        """Logs that a request waits for the store; the line is written from time to time, once for all waiting
        requests.
        """
        now = time.monotonic()
        waited_s = now - began
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


class _Spent(Exception):  # noqa: N818 - never leaves this file
    """Raised when the deadline passes while a request waits for the retry budget."""


def _later(seconds: float, act: Callable[..., None], *arguments: object) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(seconds, act, *arguments)


async def _attempt(act: Callable[[int], Awaitable[T]], limit_s: float | None, number: int) -> T:
    async with asyncio.timeout(limit_s):
        return await act(number)


def _error_of(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None
    return error
