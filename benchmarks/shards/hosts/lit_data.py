"""Reads chunks, the shards of litdata, with litdata's own loader."""
# pyright: reportMissingImports=false, reportMissingTypeStubs=false
# pyright: reportUntypedBaseClass=false

import os
from collections.abc import Iterable
from typing import Any

import emocap_torchvision

emocap_torchvision.install()
from litdata import StreamingDataLoader, StreamingDataset  # noqa: E402 - after emocap_torchvision
from litdata.streaming import downloader  # noqa: E402 - after emocap_torchvision

from .serving import collating, main, opening  # noqa: E402 - after emocap_torchvision
from .task import BATCH, Task  # noqa: E402 - after emocap_torchvision

# litdata's client in Rust refuses a server without TLS, such as the one on this machine, and has no option for it.
downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True


class _Faces(StreamingDataset):
    """Reads the samples of a task, and decodes them if the task demands it; otherwise they are bytes."""

    def __init__(self, task: Task) -> None:
        remote: dict[str, Any] = {}
        if task.cache:
            options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
            remote = {"cache_dir": task.cache, "storage_options": options, "max_cache_size": "25GB"}
        super().__init__(task.place, shuffle=task.shuffle, **remote)
        self.open_sample = opening(task)

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return self.open_sample((sample["jpg"], sample["json"]))


def opened(task: Task) -> Iterable[Any]:
    """Returns a loader that yields the batches of the task."""
    loader = StreamingDataLoader(_Faces(task), batch_size=BATCH, num_workers=task.workers, collate_fn=collating(task))
    if task.position:
        # The loader's `state_dict` returns these values after `position` samples.
        state = {
            "dataset": loader.dataset.state_dict(task.position, task.workers, BATCH),
            "current_epoch": 1,
            "latest_worker_idx": 0,
            "num_samples_yielded": task.position,
        }
        loader.load_state_dict(state)
    return loader


if __name__ == "__main__":
    main(opened)
