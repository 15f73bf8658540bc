"""Checks shards in this process, or in several processes if there is much to read. A quick check uses threads."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from emocap_shards.background import in_order
from emocap_shards.errors import ShardsError
from emocap_shards.inspecting.shard_check import Checked, check_shard
from emocap_shards.manifest import Shard
from emocap_shards.store import Store

_WORTH_PROCESSES_BYTES = 32 << 20
_READERS = 16
_Report = Callable[[int, int], None]  # It takes the numbers of checked shards and of read bytes.


@dataclass(frozen=True, slots=True)
class VerifyProgress:
    """Counts the shards and bytes that were checked so far.

    `shards_all` and `bytes_all` are the numbers for the whole verification. In a quick verification no shard is read,
    so `bytes_all` is 0.
    """

    shards: int
    shards_all: int
    bytes: int
    bytes_all: int


def check_shards(
    store: Store,
    shards: Sequence[Shard],
    *,
    quick: bool,
    processes: int | None,
    on_progress: Callable[[VerifyProgress], None],
) -> Iterator[Checked]:
    """Yields the result of each shard, in the order of the shards.

    A quick check reads only the indexes, with several threads. A full check runs in `processes` processes, at most one
    for each shard. If `processes` is None, there is one process for each core, or only this process if the shards
    together have less than 32 MiB.

    Raises:
        ShardsError: If a worker process died.
    """
    total = 0 if quick else sum(shard.bytes for shard in shards)

    def report(checked: int, read: int) -> None:
        on_progress(VerifyProgress(checked, len(shards), read, total))

    if quick:
        yield from _in_threads(store, shards, report)
    elif (number := _processes(processes, total, len(shards))) > 1:
        yield from _in_processes(store, shards, number, report)
    else:
        yield from _here(store, shards, report)


def _processes(asked: int | None, total_bytes: int, shards: int) -> int:
    """Returns the number of processes that check shards, at most one for each shard.

    `asked` is the number that the user requested. If it is None, the number of cores is used, or 1 if `total_bytes` is
    less than 32 MiB.
    """
    cores = len(os.sched_getaffinity(0)) if total_bytes >= _WORTH_PROCESSES_BYTES else 1
    return min(asked or cores, shards)


def _here(store: Store, shards: Sequence[Shard], report: _Report) -> Iterator[Checked]:
    """Checks the shards one by one in this process."""
    done = 0

    def read(length: int) -> None:
        nonlocal done
        done += length
        report(number, done)

    for number, shard in enumerate(shards):
        yield check_shard(store, shard, quick=False, on_bytes=read)
        report(number + 1, done)


def _in_threads(store: Store, shards: Sequence[Shard], report: _Report) -> Iterator[Checked]:
    """Checks only the indexes. They are small, so many requests at the same time hide the latency of the store."""
    work = partial(check_shard, store, quick=True, on_bytes=lambda _: None)
    with ThreadPoolExecutor(_READERS) as pool:
        for number, checked in enumerate(in_order(pool, work, shards, ahead=4 * _READERS), 1):
            report(number, 0)
            yield checked


def _in_processes(store: Store, shards: Sequence[Shard], processes: int, report: _Report) -> Iterator[Checked]:
    # The processes are spawned and not forked, because they must not share connections with this one.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    work = partial(check_shard, store, quick=False, on_bytes=_Worker.read)
    done = 0
    with ProcessPoolExecutor(processes, context, _Worker.begin, (counter,)) as pool:
        try:
            waiting = lambda: report(done, counter.value)  # noqa: E731 - a name for one line
            # Results come in the order of the shards. So that no process is idle while a slow shard is awaited, more
            # shards are submitted than there are processes.
            for checked in in_order(pool, work, shards, ahead=4 * processes, waiting=waiting):
                done += 1
                report(done, counter.value)
                yield checked
        except BrokenProcessPool as error:
            cure = "give it more memory, or run it again with one process"
            raise ShardsError(f"a process that checks {store.url} died ({error}); {cure}.") from error


class _Worker:
    """Holds, in each worker process, the counter of read bytes that all worker processes share.

    A process gets the counter when it starts (`begin`), because the counter cannot be pickled together with a task.
    """

    counter: ClassVar[Any] = None

    @classmethod
    def begin(cls, counter: Any) -> None:
        cls.counter = counter

    @classmethod
    def read(cls, length: int) -> None:
        with cls.counter.get_lock():
            cls.counter.value += length
