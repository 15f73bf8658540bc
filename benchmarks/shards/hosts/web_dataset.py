"""Reads our tars with webdataset, which shuffles the shards, and then the samples in a buffer."""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportUnknownLambdaType=false

from collections.abc import Iterable
from typing import Any

import webdataset as wds
from torch.utils.data import DataLoader

from .serving import collating, main, opening
from .task import BATCH, Task

BUFFER = 1000


def opened(task: Task) -> Iterable[Any]:
    """Returns a loader that yields the batches of the task.

    webdataset reaches `task.position` only by reading all samples before it. They are dropped without decoding.
    """
    samples = wds.WebDataset(
        list(task.urls), shardshuffle=len(task.urls) if task.shuffle else False, seed=0, empty_check=False
    )
    if task.shuffle:
        samples = samples.shuffle(BUFFER, seed=0)
    if task.position:
        samples = samples.slice(task.position, task.samples)
    samples = samples.map(lambda sample: (sample["jpg"], sample["json"])).map(opening(task))
    samples = samples.batched(BATCH, collation_fn=collating(task))
    return DataLoader(samples, batch_size=None, num_workers=task.workers)


if __name__ == "__main__":
    main(opened)
