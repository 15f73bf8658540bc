"""Reads our tars with webdataset: shuffled shards, then a shuffle buffer of samples."""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from collections.abc import Iterable, Mapping
from typing import Any

import webdataset as wds
from torch.utils.data import DataLoader

from .serving import Raw, collating, main, opening
from .task import BATCH, Task

BUFFER = 1000


def opened(task: Task) -> Iterable[Any]:
    """Skips to `position` by reading and dropping all samples before it, undecoded; there is no faster way."""
    samples = wds.WebDataset(
        list(task.urls), shardshuffle=len(task.urls) if task.shuffle else False, seed=0, empty_check=False
    )
    if task.shuffle:
        samples = samples.shuffle(BUFFER, seed=0)
    if task.position:
        samples = samples.slice(task.position, task.samples)
    samples = samples.map(_pair).map(opening(task)).batched(BATCH, collation_fn=collating(task))
    return DataLoader(samples, batch_size=None, num_workers=task.workers)


def _pair(sample: Mapping[str, Any]) -> Raw:
    return sample["jpg"], sample["json"]


if __name__ == "__main__":
    main(opened)
