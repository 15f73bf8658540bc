"""Reads in background threads what a stream will request next."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from functools import partial
from typing import TypeVar

from emocap_shards.background import Background

# Results that are fetched before they are requested.
FETCHED_AHEAD = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    items: Iterable[Item], fetch: Callable[[Item, bool], Result], warm: Callable[[Item], None], *, warmed_ahead: int
) -> Generator[Result]:
    """Yields `fetch(item, direct)` for every item, in order; a thread fetches a few of them in advance.

    A second thread calls `warm` for up to `warmed_ahead` items before they are fetched. The first item is fetched with
    `direct` and before all warming, because the consumer is waiting for it.
    """
    fetcher, warmer = Background("fetch"), Background("warm")
    upcoming: deque[tuple[Item, Future[None] | None]] = deque()
    begun: deque[Future[Result]] = deque()

    def fetch_next() -> None:
        item, warming = upcoming.popleft()
        if warming:
            warming.cancel()  # Warming an item that is being fetched would come too late.
        begun.append(fetcher.submit(partial(fetch, item, False)))

    try:
        for number, item in enumerate(items):
            if number == 0:
                begun.append(fetcher.submit(partial(fetch, item, True)))
                warmer.submit(partial(wait, [begun[0]]))
            else:
                # An error of `warm` may be ignored, because `fetch` raises it too.
                upcoming.append((item, warmer.submit(partial(warm, item)) if warmed_ahead else None))
            if len(upcoming) > warmed_ahead:
                fetch_next()
            if len(begun) > FETCHED_AHEAD:
                yield begun.popleft().result()
        while begun or upcoming:
            if upcoming:
                fetch_next()
            yield begun.popleft().result()
    finally:
        fetcher.close()
        warmer.close()
