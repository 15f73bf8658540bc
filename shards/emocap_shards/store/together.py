"""Runs requests concurrently on the event loop of this process, with a limit on their number."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fsspec.asyn import get_loop

T = TypeVar("T")
R = TypeVar("R")


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Runs the work on fsspec's event loop in another thread, and returns its result.

    After a fork, the child process uses a new event loop. If Ctrl-C interrupts the caller, the work is cancelled. The
    caller must not run on the event loop itself, because the loop would then wait for its own work without end.
    """
    future = asyncio.run_coroutine_threadsafe(work, get_loop())
    try:
        return future.result()
    finally:
        future.cancel()


async def in_parallel(jobs: Sequence[T], act: Callable[[T], Awaitable[R]], *, width: int) -> list[R]:
    """Awaits `act(job)` for every job, at most `width` at the same time. Returns the results in the order of the jobs.

    The first error cancels the other jobs and is raised.
    """
    if len(jobs) == 1:
        return [await act(jobs[0])]
    results: dict[int, R] = {}
    queue = iter(enumerate(jobs))

    # All tasks take from one iterator. They run in one thread and change only where they await, so no job is taken
    # twice.
    async def work() -> None:
        for number, job in queue:
            results[number] = await act(job)

    tasks = [asyncio.create_task(work()) for _ in range(min(width, len(jobs)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [results[number] for number in range(len(jobs))]
