"""The one place of retries: full-jitter backoff until a deadline, and one voice about an outage."""

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, RetryError, retry_if_exception
from tenacity.stop import stop_before_delay
from tenacity.wait import wait_random_exponential

from emocap_shards.errors import StoreError
from emocap_shards.store.failure import EXPECTED, cure, is_transient, reason
from emocap_shards.store.limits import Patience

T = TypeVar("T")
FIRST_WORD_S, NEXT_WORD_S = 5.0, 15.0
_log = logging.getLogger(__name__)


class Retrier:
    """Repeats requests that are safe to repeat. One for a connection: a thousand waiting reads speak once.

    Args:
        where: The store's URL without secrets, for messages.
    """

    def __init__(self, patience: Patience, where: str) -> None:
        self._patience, self._where = patience, where
        self._silent_since: float | None = None
        self._last_word = float("-inf")

    async def __call__(
        self, verb: str, path: str, act: Callable[[int], Awaitable[T]], *, size_bytes: int | None = 0
    ) -> T:
        """Awaits act(1), act(2), ... until one returns; an error that will not pass goes through as it is.

        Args:
            verb: What is done, for messages.
            path: To what.
            act: One attempt; its argument counts from 1.
            size_bytes: That travel in one attempt, which bounds its time; None for no bound.

        Raises:
            StoreError: If the deadline is over.
        """
        limit_s = None if size_bytes is None else self._patience.attempt_s(size_bytes)
        attempt = functools.partial(_attempt, act, limit_s)
        try:
            result = await attempt(1)
        except EXPECTED as error:
            # Tenacity costs as much as a small request, so it begins with the first failure.
            result = await self._again(verb, path, attempt, error)
        if self._silent_since is not None:
            self._back()
        return result

    async def _again(self, verb: str, path: str, attempt: Callable[[int], Awaitable[T]], first: BaseException) -> T:
        number = 0

        async def once() -> T:
            nonlocal number
            number += 1
            if number == 1:
                raise first
            return await attempt(number)

        try:
            return await self._retrying(verb, path)(once)
        except RetryError as error:
            raise self._gave_up(verb, path, number, error) from None

    def _retrying(self, verb: str, path: str) -> AsyncRetrying:
        patience = self._patience
        return AsyncRetrying(
            retry=retry_if_exception(is_transient),
            wait=wait_random_exponential(multiplier=patience.first_wait_s, max=patience.longest_wait_s),
            stop=stop_before_delay(patience.deadline_s),
            before_sleep=functools.partial(self._failed, verb, path),
        )

    def _failed(self, verb: str, path: str, state: RetryCallState) -> None:
        now, waited_s = time.monotonic(), state.seconds_since_start or 0.0
        if waited_s < FIRST_WORD_S or now - self._last_word < NEXT_WORD_S:
            return
        self._last_word = now
        self._silent_since = self._silent_since or now - waited_s
        _log.warning(
            "cannot %s %r in %s for %.0f s now (%d attempts): %s; trying on, for %.0f s in all.",
            verb,
            path,
            self._where,
            waited_s,
            state.attempt_number,
            reason(_error_of(state)),
            self._patience.deadline_s,
        )

    def _back(self) -> None:
        assert self._silent_since is not None
        _log.warning("%s answers again, after %.0f s.", self._where, time.monotonic() - self._silent_since)
        self._silent_since, self._last_word = None, float("-inf")

    def _gave_up(self, verb: str, path: str, attempts: int, error: RetryError) -> StoreError:
        last = error.last_attempt.exception()
        assert last is not None
        spent = f"gave up after {attempts} attempts in {self._patience.deadline_s:g} s"
        return StoreError(f"cannot {verb} {path!r} in {self._where}: {reason(last)}; {spent}; {cure(last)}.")


async def _attempt(act: Callable[[int], Awaitable[T]], limit_s: float | None, number: int) -> T:
    async with asyncio.timeout(limit_s):
        return await act(number)


def _error_of(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None
    return error
