"""A host: a process that has one system imported and runs passes with it, each in a fresh fork of itself."""

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, TextIO

import numpy as np
import orjson
import psutil
import simplejpeg
import torch
from PIL import Image

from .task import Pass, Task

Batch = Any
Open = Callable[[Task], Iterable[Batch]]
Raw = tuple[bytes, bytes]
Opened = tuple[np.ndarray, Any]


def main(opened: Open, before: Callable[[Task], object] = bool) -> None:
    """Runs the tasks on standard input, one on each line; with "once" on the command line, one task in this process.

    Whatever libraries print goes to standard error. What `before` makes of a task is in memory when its time begins.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if sys.argv[1:] == ["once"]:
        imported = time.monotonic()
        _answer(answers, asdict(run(opened, Task(**json.loads(sys.stdin.readline())), imported=imported)))
        return
    for text in sys.stdin:
        task = Task(**json.loads(text))
        before(task)
        child = os.fork()
        if child == 0:
            _child(opened, task, answers)
        _, status = os.waitpid(child, 0)
        if status:
            _answer(answers, {"error": f"a pass ended with status {status}; its reason is in the log"})


def run(opened: Open, task: Task, *, imported: float = 0.0) -> Pass:
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
    # Without its iterator a DataLoader ends its processes and waits for them: only then their CPU time is known.
    del batches, loader
    return Pass(
        samples=samples,
        seconds=end - begin,
        first_s=first - begin,
        cpu_s=_cpu_s() - cpu_before,
        rss_bytes=used.rss,
        uss_bytes=used.uss,
        bare_rss_bytes=bare.rss,
        bare_uss_bytes=bare.uss,
        moments={"imported": imported, "first": first},
    )


def opening(task: Task) -> Callable[[Raw], Any]:
    """Turns the bytes of an image and of its annotation into what the task needs."""
    if not task.decode:
        return _as_bytes
    decode = _open_quickly if task.decoder == "simplejpeg" else _open_with_pillow
    return decode if task.delivered else lambda sample: seen(*decode(sample))


def seen(pixels: np.ndarray, annotation: Any) -> tuple[tuple[int, ...], Any]:
    """Holds what is kept of a counted sample: its pixels are dropped at once, as a resize would do."""
    return pixels.shape, annotation


def collating(task: Task) -> Callable[[Sequence[Any]], Batch]:
    """Turns samples into a batch as it reaches the main process."""
    if not task.delivered:
        return len
    return _stacked if task.decode else _listed


def rgb(data: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(data)


def _as_bytes(sample: Raw) -> Raw:
    """Copies a view into a mapped file, which a peer returns, since its bytes have not been read until then."""
    return bytes(sample[0]), bytes(sample[1])


def _open_quickly(sample: Raw) -> Opened:
    return rgb(sample[0]), orjson.loads(sample[1])


def _open_with_pillow(sample: Raw) -> Opened:
    import io

    with Image.open(io.BytesIO(sample[0])) as image:
        return np.array(image.convert("RGB")), orjson.loads(sample[1])


def _stacked(samples: Sequence[Opened]) -> tuple[torch.Tensor, list[Any]]:
    return torch.from_numpy(np.stack([pixels for pixels, _ in samples])), [annotation for _, annotation in samples]


def _listed(samples: Sequence[Raw]) -> tuple[list[bytes], list[bytes]]:
    return [image for image, _ in samples], [annotation for _, annotation in samples]


def _child(opened: Open, task: Task, answers: TextIO) -> None:
    status = 1
    try:
        _answer(answers, asdict(run(opened, task)))
        status = 0
    except BaseException:  # noqa: BLE001 - a peer may raise anything; the host says that there was an error, the log which
        traceback.print_exc()
    finally:
        # Not sys.exit: what the parent registered to happen at its end is not for a fork of it.
        os._exit(status)


def _answer(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def _cpu_s() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
