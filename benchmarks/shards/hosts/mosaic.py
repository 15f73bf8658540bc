"""Reads MDS shards of mosaicml-streaming with torch's DataLoader."""
# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportUnusedImport=false
# pyright: reportUntypedBaseClass=false

from collections.abc import Iterable
from typing import Any

from . import torch_vision  # noqa: F401 - before the peers

# isort: split

from streaming import StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader

from .serving import collating, main, opening
from .task import BATCH, Task


class _Faces(StreamingDataset):
    def __init__(self, task: Task) -> None:
        remote = {"remote": task.place, "local": task.cache} if task.cache else {"local": task.place}
        super().__init__(**remote, shuffle=task.shuffle, batch_size=BATCH)
        self.open_sample = opening(task)

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return self.open_sample((sample["jpg"], sample["json"]))


def opened(task: Task) -> Iterable[Any]:
    # What a process that was killed has left would make the next one wait.
    clean_stale_shared_memory()
    faces = _Faces(task)
    if task.position:
        iter(faces)  # an epoch has to have begun
        faces.load_state_dict({**faces.state_dict(task.position, from_beginning=True), "epoch": 0})
    return DataLoader(faces, batch_size=BATCH, num_workers=task.workers, collate_fn=collating(task))


if __name__ == "__main__":
    main(opened)
