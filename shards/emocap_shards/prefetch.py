"""Reads that are begun before their result is asked for."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from functools import partial
from typing import TypeVar

from emocap_shards.background import Background

# Results that wait to be asked for.
FETCHED_AHEAD = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    items: Iterable[Item], fetch: Callable[[Item, bool], Result], warm: Callable[[Item], None], *, warmed_ahead: int
) -> Generator[Result]:
    """What `fetch(item, direct)` makes of every item, in order, a few of them made in advance by a thread.

    A second thread calls `warm` for up to `warmed_ahead` items before they are fetched. The very first item is
    fetched directly and before all warming: somebody is waiting for it.
    """
    fetcher, warmer = Background("fetch"), Background("warm")
    upcoming: deque[tuple[Item, Future[None] | None]] = deque()
    begun: deque[Future[Result]] = deque()

    def fetch_next() -> None:
        item, warming = upcoming.popleft()
        if warming:
            warming.cancel()  # Unless it is under way: to warm what is being fetched comes too late.
        begun.append(fetcher.submit(partial(fetch, item, False)))

    try:
        for number, item in enumerate(items):
            if number == 0:
                begun.append(fetcher.submit(partial(fetch, item, True)))
                warmer.submit(partial(wait, [begun[0]]))
            else:
                # An error in it is not lost: `fetch` meets it too.
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
