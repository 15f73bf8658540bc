"""Threads that do not keep a process from its end.

`concurrent.futures` waits for its threads when the interpreter ends; one that waits for a store which is gone would
hold the process for as long as the store's patience lasts.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = tuple[Future[Any], Callable[[], Any]]


class Background:
    """One thread that does what it is given, in order."""

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._closed = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, act: Callable[[], Result]) -> Future[Result]:
        """What has not begun may be cancelled."""
        future: Future[Result] = Future()
        self._work.put((future, act))
        return future

    def close(self) -> None:
        """Nothing more is begun, and who waits for it gets `CancelledError`; what is under way ends when it ends."""
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
            del work  # A result must not live on here until there is something else to do.


def _do(future: Future[Any], act: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(act())
    except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
        future.set_exception(error)


def _call_off(future: Future[Any]) -> None:
    """`cancel` alone does not wake `concurrent.futures.wait`."""
    future.cancel()
    future.set_running_or_notify_cancel()


def concurrently(act: Callable[[Item], Result], items: Sequence[Item], *, at_once: int) -> list[Result]:
    """What `act` gives for every item, in order; the first error in that order is raised."""
    threads = [Background(f"concurrently-{number}") for number in range(min(at_once, len(items)))]
    try:
        futures = [threads[place % at_once].submit(partial(act, item)) for place, item in enumerate(items)]
        return [future.result() for future in futures]
    finally:
        for thread in threads:
            thread.close()
