"""Runs work in threads that do not delay the end of the process.

The thread pool of `concurrent.futures` waits for its threads when the interpreter ends. If a store has become
unreachable, such a thread would keep the process alive until the failed request is no longer retried. The interpreter
does not wait for the daemon threads of this module.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

# Results that `ahead` fetches before they are requested.
FETCHED_AHEAD = 2

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = tuple[Future[Any], Callable[[], Any]]
_WAIT_S = 0.2


class Background:
    """Does the submitted work in one daemon thread, in the order of submission.

    The owner calls `close` when it no longer needs the thread. Work that is submitted after `close` is cancelled at
    once.
    """

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._closed = False
        # Without it, `close` could empty the queue after `submit` has read `_closed` and before it puts the work there.
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, act: Callable[[], Result]) -> Future[Result]:
        """Queues a call of `act` and returns its future. The future can be cancelled until the call begins."""
        future: Future[Result] = Future()
        with self._lock:
            if self._closed:
                _call_off(future)
            else:
                self._work.put((future, act))
        return future

    def close(self) -> None:
        """Cancels all work that has not begun; a thread that waits for such work gets `CancelledError`.

        Running work is not interrupted.
        """
        # First of all, because the thread may take the next work while the loop below empties the queue.
        with self._lock:
            self._closed = True
        with suppress(Empty):
            while work := self._work.get_nowait():
                _call_off(work[0])
        self._work.put(None)

    def _run(self) -> None:
        while work := self._work.get():
            if self._closed:
                _call_off(work[0])
            else:
                _do(*work)
            del work  # Otherwise this frame would keep a result in memory until the next work arrives.


def _do(future: Future[Any], act: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(act())
    except BaseException as error:  # noqa: BLE001 - the future raises it where the result is requested
        future.set_exception(error)


def _call_off(future: Future[Any]) -> None:
    """Cancels a future and wakes the threads that wait for it.

    `Future.cancel` alone does not wake a thread that waits in `concurrent.futures.wait`.
    """
    future.cancel()
    future.set_running_or_notify_cancel()


def concurrently(act: Callable[[Item], Result], items: Sequence[Item], *, at_once: int) -> list[Result]:
    """Returns `act(item)` for every item, in order, with at most `at_once` calls at the same time.

    If a call fails, its error is raised; if several calls fail, it is the error of the item that comes first in
    `items`. When an error is raised, calls that have not begun are cancelled, and the function does not wait for calls
    that are still running.
    """
    threads = [Background(f"concurrently-{number}") for number in range(min(at_once, len(items)))]
    try:
        futures = [threads[place % at_once].submit(partial(act, item)) for place, item in enumerate(items)]
        return [future.result() for future in futures]
    finally:
        for thread in threads:
            thread.close()


def in_order(
    pool: Executor,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    ahead: int,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[Result]:
    """Yields `work(item)` for each item in order, while the threads or processes of `pool` work ahead of the consumer.

    At most `ahead` items are submitted before their results are requested. When the consumer stops, work that has not
    begun is cancelled. `waiting` is called about every 0.2 s while the consumer waits for a result.
    """
    source = iter(items)
    begun: deque[Future[Result]] = deque()
    try:
        # `begun` holds the futures in the order of the items: at most `ahead` of them, whether done or not. An item is
        # submitted only when the consumer has asked for a further result, so a slow consumer bounds the memory.
        begun.extend(pool.submit(work, item) for item in islice(source, ahead))
        while begun:
            yield _result(begun.popleft(), waiting)
            begun.extend(pool.submit(work, item) for item in islice(source, 1))
    finally:
        for future in begun:
            future.cancel()


def _result(future: Future[Result], waiting: Callable[[], None]) -> Result:
    while True:
        try:
            return future.result(timeout=_WAIT_S)
        except TimeoutError:
            if future.done():  # The work itself raised the TimeoutError.
                raise
            waiting()


def ahead(
    items: Iterable[Item], fetch: Callable[[Item, bool], Result], warm: Callable[[Item], None], *, warmed_ahead: int
) -> Generator[Result]:
    """Yields `fetch(item, direct)` for every item, in order. A thread fetches a few items in advance.

    A second thread calls `warm` for up to `warmed_ahead` items before they are fetched, for example to fill a cache.
    Warming begins after the first item has been fetched. The consumer is already waiting for this item, so `fetch`
    should get it as fast as possible. Therefore `direct` is True for the first item, and False for all others. `items`
    is consumed in the calling thread. The threads end when the generator is exhausted or closed.
    """
    fetcher, warmer = Background("fetch"), Background("warm")
    # An item passes through two queues: `upcoming` while it may be warmed, and `begun` once its fetch is submitted.
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
                # This work occupies the warmer until the first item is fetched.
                warmer.submit(partial(wait, [begun[0]]))
            else:
                # An error of `warm` may be ignored, because `fetch` raises it too.
                upcoming.append((item, warmer.submit(partial(warm, item)) if warmed_ahead else None))
            if len(upcoming) > warmed_ahead:
                fetch_next()
            if len(begun) > FETCHED_AHEAD:
                yield begun.popleft().result()
        # No item is left: the rest of both queues is delivered.
        while begun or upcoming:
            if upcoming:
                fetch_next()
            yield begun.popleft().result()
    finally:
        fetcher.close()
        warmer.close()
