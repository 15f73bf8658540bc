"""Prepares rows in several processes, and returns the samples in the order of the rows."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice

from emocap_shards.background import in_order
from emocap_shards.errors import RecordError
from emocap_shards.writing.prepare import PrepareConfig, Prepared, prepare_all
from emocap_shards.writing.row import BadRow, SourceRow

_TOGETHER_BYTES = 1 << 22
_TOGETHER_ROWS = 64
_FIRST_ROWS = 4  # The rows of a group while no size of an image is known.


def prepared(rows: Iterable[SourceRow | BadRow], recipe: PrepareConfig, processes: int) -> Generator[Prepared | BadRow]:
    """Yields the sample of each row, or a bad row, in the order of the rows, whatever the number of processes.

    With one process, the calling process prepares the rows one by one. Otherwise rows are sent to worker processes in
    groups of about 4 MiB (1 to 64 rows), and two groups for each process are in memory.

    Raises:
        RecordError: If a worker process was killed.
    """
    if processes <= 1:
        for row in rows:
            yield from prepare_all([row], recipe)
        return
    context = multiprocessing.get_context("spawn")
    groups = _Groups(rows)
    work = partial(prepare_all, recipe=recipe)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin) as pool:
        try:
            # `iter` ends at the first empty group, after the last row.
            for results in in_order(pool, work, iter(groups.take, []), ahead=2 * processes):
                yield from groups.weigh(results)
        except BrokenProcessPool as error:
            cure = "usually the memory is used up: try fewer --processes; the same command resumes where it stopped"
            raise RecordError(f"a worker process was killed; {cure}.") from error
        finally:
            # This also waits for worker processes that are still starting. They would print a traceback if this
            # process ended first.
            pool.shutdown(cancel_futures=True)


class _Groups:
    """Cuts rows into groups of about 4 MiB. The mean size of the images so far determines the number of rows in a
    group.
    """

    def __init__(self, rows: Iterable[SourceRow | BadRow]) -> None:
        self._rows = iter(rows)
        self._samples = self._bytes = 0

    def take(self) -> list[SourceRow | BadRow]:
        """Returns the next group of rows; it is empty after the last row."""
        return list(islice(self._rows, self._size()))

    def weigh(self, results: list[Prepared | BadRow]) -> list[Prepared | BadRow]:
        """Includes the images in `results` in the mean size of the images, and returns `results` unchanged."""
        sizes = [len(result.image) for result in results if isinstance(result, Prepared)]
        self._samples += len(sizes)
        self._bytes += sum(sizes)
        return results

    def _size(self) -> int:
        if not self._bytes:
            return _FIRST_ROWS
        return max(1, min(_TOGETHER_ROWS, _TOGETHER_BYTES * self._samples // self._bytes))


def _begin() -> None:
    """Prepares a worker process: it ignores Ctrl-C, which the parent handles, and ends when the parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A parent that was killed cannot end its workers, which would otherwise wait for work without end.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
