"""Limits how many retries a process may send to a server, so that waiting clients do not overload a recovering server.

The budget is a token bucket, as in the retry quota of AWS's clients and in gRPC's retry throttling. A retry takes one
token. A retry that succeeds adds two tokens, so that all waiting requests are released within a few round trips once
the server answers again. A request that succeeds at the first attempt adds a tenth of a token, and every second adds
`PER_S` tokens. So once a server is down and the tokens are used up, a process sends `PER_S` retries a second, no matter
how many of its threads wait.
"""

import asyncio
import functools
import time
from collections.abc import Callable
from contextlib import suppress

# Decision 22 explains the four numbers.
SHARE = 0.1  # Tokens that a request earns if it succeeds at its first attempt.
PER_S = 0.5
BURST = 10.0  # Tokens at the beginning, and their maximum.
RETURNED = 2.0


class Budget:
    """Limits the retries that one process sends to one server. An instance can be used on one event loop only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens, self._at = BURST, clock()
        self._line, self._earned = asyncio.Lock(), asyncio.Event()

    async def turn(self) -> None:
        """Waits until one more retry may be sent. Callers are released in the order of their calls."""
        # Only the first in the line waits for a token; the others wait for the lock, which is given in the order of
        # arrival. A retry that succeeds wakes the first one early.
        async with self._line:
            while wait_s := self.take():
                self._earned.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._earned.wait()

    def take(self) -> float:
        """Takes a token and returns 0, or returns the seconds until there is a token."""
        now = self._clock()
        self._tokens, self._at = min(BURST, self._tokens + PER_S * (now - self._at)), now
        if self._tokens < 1:
            return (1 - self._tokens) / PER_S
        self._tokens -= 1
        return 0.0

    def succeeded(self, *, again: bool) -> None:
        """Records that a request has succeeded; `again` is true if the request was a retry."""
        self._tokens = min(BURST, self._tokens + (RETURNED if again else SHARE))
        if again:
            self._earned.set()


@functools.lru_cache(maxsize=64)
def budget_of(server: str, pid: int) -> Budget:  # noqa: ARG001 - a forked process has its own event loop
    """Returns the budget of the retries that the process `pid` may send to a server."""
    return Budget()


def server_of(url: str) -> str:
    """Returns the part of a URL that is the same for all URLs of one server.

    For a web server it is the scheme and host. All buckets of S3 count as one server.
    """
    protocol, _, rest = url.partition("://")
    return f"{protocol}://{rest.split('/', 1)[0]}" if protocol in {"http", "https"} else protocol
