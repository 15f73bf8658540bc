"""Reads our tars with emocap_shards, as training does. With n loader processes, each makes every n-th batch."""
# pyright: reportUnusedImport=false

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from emocap_shards.cache import Cache
from emocap_shards.cursor import Cursor
from emocap_shards.sample import Sample
from emocap_shards.store import s3  # noqa: F401 - a dataset on S3 would import it while the time is measured
from emocap_shards.stream import Stream
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .serving import collating, main, seen
from .task import BATCH, Task

CACHE_BYTES = 64 << 30


@dataclass(frozen=True)
class _Steps(IterableDataset[Any]):
    """Yields the batches of one loader process for a task."""

    task: Task

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        collate, task = collating(self.task), self.task
        stream = Stream(
            url=task.place,
            global_batch=BATCH,
            shuffle=task.shuffle,
            start=Cursor(0, task.position),
            epochs=1,
            cache=Cache(task.cache, CACHE_BYTES) if task.cache else None,
        )
        if task.decode:
            portions = stream.steps(part, parts, each=_pair if task.delivered else _seen)
            yield from (collate(portion.samples) for portion in portions)
        else:
            portions = stream.encoded_steps(part, parts)
            yield from (collate([(each.image, each.annotation) for each in portion.samples]) for portion in portions)


def opened(task: Task) -> Iterable[Any]:
    """Returns a loader that yields the batches of the task."""
    return DataLoader(_Steps(task), batch_size=None, num_workers=task.workers)


def _pair(sample: Sample) -> tuple[Any, Any]:
    """Returns the pixels and the annotation of a sample."""
    return sample.image, (sample.caption, sample.labels)


def _seen(sample: Sample) -> tuple[Any, Any]:
    """Returns the shape of the image of a sample in place of its pixels, and the annotation of the sample."""
    return seen(*_pair(sample))


if __name__ == "__main__":
    main(opened)
