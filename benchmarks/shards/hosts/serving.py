"""Reads a dataset, or its first batches, with one library in this process, and measures time and memory.

The imports are done before the measurement begins.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np
import orjson
import psutil
import simplejpeg
import torch

from .task import Pass, Task

Batch = Any
Open = Callable[[Task], Iterable[Batch]]
# An image and its annotation: as bytes, and decoded.
Raw = tuple[bytes, bytes]
Decoded = tuple[np.ndarray, Any]


def main(opened: Open, before: Callable[[Task], object] = bool) -> None:
    """Runs the task that is given as JSON on standard input, and prints its measurements as JSON.

    `opened` returns the loader for the task. `before` is called with the task before the measurement begins; the
    default has no effect. The output that libraries print is redirected to standard error, so that standard output
    contains only the measurements.
    """
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    task = Task(**json.load(sys.stdin))
    before(task)
    json.dump(asdict(run(opened, task)), answer)
    answer.flush()


def run(opened: Open, task: Task) -> Pass:
    """Reads the dataset, or the part that the task demands, and returns the measurements.

    `opened` returns the loader for the task.
    """
    process, cpu_before = psutil.Process(), _cpu_s()
    bare = process.memory_full_info()
    begin, first, samples = time.monotonic(), 0.0, 0
    loader = opened(task)
    batches = iter(loader)
    for batch in islice(batches, task.batches or None):
        samples += batch if isinstance(batch, int) else len(batch[0])
        first = first or time.monotonic()
    end = time.monotonic()
    used = process.memory_full_info()
    # A DataLoader waits for the end of its processes when its iterator is deleted. Only then their CPU time is known.
    del batches, loader
    return Pass(
        samples=samples,
        seconds=end - begin,
        first_s=first - begin,
        first_at_s=first,
        cpu_s=_cpu_s() - cpu_before,
        rss_bytes=used.rss,
        uss_bytes=used.uss,
        bare_uss_bytes=bare.uss,
    )


def opening(task: Task) -> Callable[[Raw], Any]:
    """Returns the function that decodes a sample, or copies its bytes, as the task demands."""
    if not task.decode:
        return _as_bytes
    return _decoded if task.delivered else lambda sample: seen(*_decoded(sample))


def seen(pixels: np.ndarray, annotation: Any) -> tuple[tuple[int, ...], Any]:
    """Returns the shape of an image instead of its pixels, with the annotation.

    So the pixels are freed at once, as training frees them after a resize.
    """
    return pixels.shape, annotation


def collating(task: Task) -> Callable[[Sequence[Any]], Batch]:
    """Returns the function that converts a list of samples to the object that a loader process sends.

    The object is a batch with all samples if `task.delivered` is true, and otherwise the number of samples.
    """
    if not task.delivered:
        return len
    return _stacked if task.decode else _listed


def _as_bytes(sample: Raw) -> Raw:
    """Returns a copy of the bytes of a sample.

    litdata returns views into a memory-mapped file, and only the copy reads the bytes from the file.
    """
    return bytes(sample[0]), bytes(sample[1])


def _decoded(sample: Raw) -> Decoded:
    """Decodes an image to RGB and parses its annotation."""
    return simplejpeg.decode_jpeg(sample[0]), orjson.loads(sample[1])


def _stacked(samples: Sequence[Decoded]) -> tuple[torch.Tensor, list[Any]]:
    """Returns a batch of decoded samples: one tensor uint8 [samples, height, width, 3], and the annotations."""
    return torch.from_numpy(np.stack([pixels for pixels, _ in samples])), [annotation for _, annotation in samples]


def _listed(samples: Sequence[Raw]) -> tuple[list[bytes], list[bytes]]:
    """Returns a batch of raw samples: the images and the annotations."""
    return [image for image, _ in samples], [annotation for _, annotation in samples]


def _cpu_s() -> float:
    """Returns the CPU seconds of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
