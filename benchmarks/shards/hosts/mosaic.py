"""Reads MDS shards with mosaicml-streaming and torch's DataLoader."""
# pyright: reportMissingImports=false, reportMissingTypeStubs=false
# pyright: reportUntypedBaseClass=false

from collections.abc import Iterable
from typing import Any

from torch.utils.data import DataLoader

import emocap_torchvision

emocap_torchvision.install()
from streaming import StreamingDataset  # noqa: E402 - after emocap_torchvision
from streaming.base.util import clean_stale_shared_memory  # noqa: E402 - after emocap_torchvision

from .serving import collating, main, opening  # noqa: E402 - after emocap_torchvision
from .task import BATCH, Task  # noqa: E402 - after emocap_torchvision


class _Faces(StreamingDataset):
    """Reads the samples of a task, and decodes them if the task demands it; otherwise they are bytes."""

    def __init__(self, task: Task) -> None:
        remote = {"remote": task.place, "local": task.cache} if task.cache else {"local": task.place}
        super().__init__(**remote, shuffle=task.shuffle, batch_size=BATCH)
        self.open_sample = opening(task)

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return self.open_sample((sample["jpg"], sample["json"]))


def opened(task: Task) -> Iterable[Any]:
    """Returns a loader that yields the batches of the task."""
    # Shared memory that a killed process has left would make this one wait.
    clean_stale_shared_memory()
    faces = _Faces(task)
    if task.position:
        iter(faces)  # A state can be loaded only after an epoch has begun.
        faces.load_state_dict({**faces.state_dict(task.position, from_beginning=True), "epoch": 0})
    return DataLoader(faces, batch_size=BATCH, num_workers=task.workers, collate_fn=collating(task))


if __name__ == "__main__":
    main(opened)
