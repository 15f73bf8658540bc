"""emocap_shards, as a training reads it: loader process `w` of `n` makes every n-th step."""
# pyright: reportUnusedImport=false

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from emocap_shards.cache import Cache
from emocap_shards.cursor import Cursor
from emocap_shards.sample import Encoded, Sample
from emocap_shards.store import s3  # noqa: F401 - a dataset on S3 would import it within the time that is measured
from emocap_shards.stream import Portion, Stream
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .serving import collating, main
from .task import BATCH, Task

CACHE_BYTES = 64 << 30


@dataclass(frozen=True)
class _Steps(IterableDataset[Any]):
    task: Task

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        collate, task = collating(self.task), self.task
        read = stream(task).steps if task.decode else stream(task).encoded_steps
        for portion in read(part, parts):
            yield collate(_pairs(portion))


def stream(task: Task) -> Stream:
    return Stream(
        url=task.place,
        global_batch=BATCH,
        shuffle=task.shuffle,
        start=Cursor(0, task.position),
        epochs=1,
        cache=Cache(task.cache, CACHE_BYTES) if task.cache else None,
    )


def opened(task: Task) -> Iterable[Any]:
    return DataLoader(_Steps(task), batch_size=None, num_workers=task.workers)


def _pairs(portion: Portion[Sample] | Portion[Encoded]) -> list[tuple[Any, Any]]:
    return [
        (each.image, (each.caption, each.labels) if isinstance(each, Sample) else each.annotation)
        for each in portion.samples
    ]


if __name__ == "__main__":
    main(opened)
