"""Work on many things at once, in order, with a bounded number under way."""

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
    """`map(work, items)`, at most `ahead` of them begun before they are asked for; calls `waiting` while it waits."""
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
            if future.done():  # the work itself raised it
                raise
            waiting()
