"""Reads the chunks of litdata with its own loader."""
# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportUnusedImport=false
# pyright: reportUntypedBaseClass=false

import os
from collections.abc import Iterable
from typing import Any

from . import quiet, torch_vision  # noqa: F401 - before the peers

# isort: split

from litdata import StreamingDataLoader, StreamingDataset
from litdata.streaming import downloader

from .serving import collating, main, opening
from .task import BATCH, Task

# Its client in Rust refuses a server without TLS, such as the one on this machine, and has no option to say otherwise.
downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True


class _Faces(StreamingDataset):
    def __init__(self, task: Task) -> None:
        far: dict[str, Any] = {}
        if task.cache:
            options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
            far = {"cache_dir": task.cache, "storage_options": options, "max_cache_size": "25GB"}
        super().__init__(task.place, shuffle=task.shuffle, **far)
        self.open_sample = opening(task)

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return self.open_sample((sample["jpg"], sample["json"]))


def opened(task: Task) -> Iterable[Any]:
    loader = StreamingDataLoader(_Faces(task), batch_size=BATCH, num_workers=task.workers, collate_fn=collating(task))
    if task.position:
        loader.load_state_dict(_state(loader, task))
    return loader


def _state(loader: Any, task: Task) -> dict[str, Any]:
    """Returns what `state_dict` returns after this number of samples."""
    return {
        "dataset": loader.dataset.state_dict(task.position, task.workers, BATCH),
        "current_epoch": 1,
        "latest_worker_idx": 0,
        "num_samples_yielded": task.position,
    }


if __name__ == "__main__":
    main(opened)
