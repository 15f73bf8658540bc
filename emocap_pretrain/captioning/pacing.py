"""Decides when a request may be sent: limits of requests and tokens per minute, and pauses that an endpoint asks for.

Waits go through a `PacingClock`, so that tests decide when time passes. `MinuteWindow` is a pure function of the times
that it is given.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from emocap_shards.store.failure import header_seconds

MINUTE_S = 60.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0  # Bounds of the random wait before the second and before a late attempt.


class PacingClock(Protocol):
    """Tells the time, waits, and limits waits. A test has an implementation in which time passes on command."""

    def now(self) -> float:
        """Returns seconds since any fixed time."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        ...

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Returns a context that raises `TimeoutError` if its block takes longer."""
        ...


class SystemClock:
    """Implements `PacingClock` with the real time."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        return asyncio.timeout(seconds)


@dataclass(slots=True)
class SentRequest:
    """Holds when a request was sent, and its tokens: an estimate at first, and later the number of the endpoint.

    `counted` says whether the request lies in the window, and its tokens in the sum of the window.
    """

    at: float
    tokens: float
    counted: bool = False


@dataclass(slots=True)
class MinuteWindow:
    """Limits requests and tokens in any 60 seconds. None is no limit.

    A request with more tokens than the limit is sent once no other request lies in the last minute.
    """

    requests: int | None
    tokens: int | None
    _sent: deque[SentRequest] = field(default_factory=deque[SentRequest])
    _used: float = 0.0  # The sum of the tokens in `_sent`.

    def wait_s(self, now: float, tokens: float) -> float:
        """Returns the seconds until a request with this number of tokens may be sent; 0 if it may be sent at once."""
        while self._sent and self._sent[0].at <= now - MINUTE_S:
            oldest = self._sent.popleft()
            oldest.counted = False
            self._used -= oldest.tokens
        free_at = now
        if self.requests is not None and len(self._sent) >= self.requests:
            free_at = self._sent[len(self._sent) - self.requests].at + MINUTE_S
        if self.tokens is not None:
            # The oldest requests leave the window until the new one fits.
            excess = self._used + tokens - self.tokens
            for each in self._sent:
                if excess <= 0:
                    break
                excess -= each.tokens
                free_at = max(free_at, each.at + MINUTE_S)
        return free_at - now

    def add(self, now: float, tokens: float) -> SentRequest:
        """Records that a request is sent, and returns its entry."""
        entry = SentRequest(now, tokens)
        if self.requests is not None or self.tokens is not None:
            entry.counted = True
            self._sent.append(entry)
            self._used += tokens
        return entry

    def correct(self, entry: SentRequest, tokens: float) -> None:
        """Replaces the estimated tokens of a request by their number."""
        if entry.counted:
            self._used += tokens - entry.tokens
        entry.tokens = tokens


class Pacer:
    """Lets requests pass one after the other, within a window and not during a pause.

    Args:
        clock: The clock.
        window: The limits.
    """

    def __init__(self, clock: PacingClock, window: MinuteWindow) -> None:
        self._clock, self._window = clock, window
        self._line = asyncio.Lock()
        self._paused_until = clock.now()

    async def turn(self, tokens: float) -> SentRequest:
        """Waits until a request may be sent, and records it. Callers pass in the order of their calls."""
        async with self._line:
            while (wait_s := self._wait_s(tokens)) > 0:
                await self._clock.sleep(wait_s)
            return self._window.add(self._clock.now(), tokens)

    def correct(self, entry: SentRequest, tokens: float) -> None:
        """Replaces the estimated tokens of a request by their number."""
        self._window.correct(entry, tokens)

    def pause(self, seconds: float) -> None:
        """Sends no request for the next seconds, because the endpoint has asked for that."""
        self._paused_until = max(self._paused_until, self._clock.now() + seconds)

    def _wait_s(self, tokens: float) -> float:
        now = self._clock.now()
        return max(self._paused_until - now, self._window.wait_s(now, tokens))


def backoff_s(failures: int, draw: Callable[[], float] = random.random) -> float:
    """Returns a random wait before the next attempt after a number of failures (full jitter, exponential bound)."""
    return draw() * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures - 1, 30))


def asked_wait_s(retry_after: str, retry_after_ms: str = "") -> float:
    """Returns the seconds to wait according to the headers Retry-After (seconds or a date) and retry-after-ms.

    The result is 0 without these headers, or if they cannot be read.
    """
    for text, unit in ((retry_after_ms, 1e-3), (retry_after, 1.0)):
        try:
            if 0 <= (seconds := float(text[:16]) * unit) < float("inf"):
                return seconds
        except ValueError:
            continue
    return header_seconds(retry_after)
