"""How many retries a process may send to a server, so that those who wait for it do not keep it down.

A token bucket, as in the retry quota of AWS's clients and in gRPC's retry throttling. A retry takes a token; one that
succeeds gives it back with another one, so that all who wait are let through within a few round trips once the server
answers again. A request that succeeds at once earns a tenth of a token, and time earns a few: while a server is down,
a process sends `PER_S` requests a second, however many of its threads wait.
"""

import asyncio
import functools
import time
from collections.abc import Callable
from contextlib import suppress

SHARE = 0.1  # of the requests that succeed at once, there may be so many retries that fail
PER_S = 0.5
BURST = 10.0  # tokens at the beginning, and at most
RETURNED = 2.0


class Budget:
    """Of one process for one server; it belongs to the loop that first waits for it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens, self._at = BURST, clock()
        self._line, self._earned = asyncio.Lock(), asyncio.Event()

    async def turn(self) -> None:
        """Waits until one more retry may be sent; who came first is first."""
        async with self._line:
            while wait_s := self.take():
                self._earned.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._earned.wait()

    def take(self) -> float:
        """Takes a token and returns 0, or returns the seconds after which there is one."""
        now = self._clock()
        self._tokens, self._at = min(BURST, self._tokens + PER_S * (now - self._at)), now
        if self._tokens < 1:
            return (1 - self._tokens) / PER_S
        self._tokens -= 1
        return 0.0

    def succeeded(self, *, again: bool) -> None:
        """A request got its answer; `again` where it was a retry."""
        self._tokens = min(BURST, self._tokens + (RETURNED if again else SHARE))
        if again:
            self._earned.set()


@functools.lru_cache(maxsize=64)
def budget_of(server: str, pid: int) -> Budget:  # noqa: ARG001 - a fork has a loop of its own
    """The budget of a process for a server."""
    return Budget()


def server_of(url: str) -> str:
    """What the URLs of one server have in common: the host of a web server; all buckets of S3 are one server."""
    protocol, _, rest = url.partition("://")
    return f"{protocol}://{rest.split('/', 1)[0]}" if protocol in {"http", "https"} else protocol
