"""Decodes images with libjpeg-turbo alone. The images are in memory before the measurement begins.

The measured rate is an upper bound of the rate of all libraries that read and decode a dataset.
"""

import functools
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import simplejpeg
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .serving import main
from .task import BATCH, Task


@dataclass(frozen=True)
class _Images(IterableDataset[Any]):
    """Decodes batches of images, and yields the number of images in each batch.

    With n loader processes, each process decodes every n-th image.
    """

    images: Sequence[bytes]

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        mine = self.images[part::parts]
        for start in range(0, len(mine), BATCH):
            # No array is kept. Otherwise the kernel would have to provide fresh pages, and that time is not libjpeg's.
            yield sum(simplejpeg.decode_jpeg(image).shape[2] == 3 for image in mine[start : start + BATCH])


def opened(task: Task) -> Iterable[Any]:
    """Returns a loader that decodes all images of the task, and yields the number of images in each batch."""
    return DataLoader(_Images(images(task.place)), batch_size=None, num_workers=task.workers)


@functools.cache
def images(folder: str) -> list[bytes]:
    """Returns the JPEG files in all tars of a folder."""
    found: list[bytes] = []
    for path in sorted(Path(folder).glob("*.tar")):
        with tarfile.open(path) as tar:
            files = [tar.extractfile(member) for member in tar if member.name.endswith(".jpg")]
            found += [file.read() for file in files if file]
    return found


if __name__ == "__main__":
    main(opened, before=lambda task: images(task.place))
