"""Runs work on many items in an executor, and returns the results in order while only a few items are in progress."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_LOOK_S = 0.2


def in_order(
    pool: Executor,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    ahead: int,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[Result]:
    """Yields `work(item)` for each item in order. At most `ahead` items are submitted before their results are
    requested.

    `waiting` is called about every 0.2 s while a result is not ready.
    """
    source = iter(items)
    begun = deque(pool.submit(work, item) for item in islice(source, ahead))
    try:
        while begun:
            yield _result(begun.popleft(), waiting)
            begun.extend(pool.submit(work, item) for item in islice(source, 1))
    finally:
        for future in begun:
            future.cancel()


def _result(future: Future[Result], waiting: Callable[[], None]) -> Result:
    while True:
        try:
            return future.result(timeout=_LOOK_S)
        except TimeoutError:
            if future.done():  # The work itself raised the TimeoutError.
                raise
            waiting()
