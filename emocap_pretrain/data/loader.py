"""Makes batches of the samples of a stream, in loader processes or in this one.

This is the only module in which numpy arrays become tensors.
"""

import errno
import hashlib
import logging
import multiprocessing.util
import os
import signal
import socket
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from emocap_shards.cursor import Cursor
from emocap_shards.errors import DamagedSample, ShardsError
from emocap_shards.inspecting.wording import size
from emocap_shards.mask import remember, secrets
from emocap_shards.sample import Sample
from emocap_shards.stream import Stream
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from emocap_pretrain.config.schema import DataConfig
from emocap_pretrain.data.batch import Batch, Texts
from emocap_pretrain.data.mirror import mirrored
from emocap_pretrain.data.parts import Part
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.data.transform import augment
from emocap_pretrain.errors import ConfigError, DataError, EmocapError, TrainingError
from emocap_pretrain.logs import guard_tracebacks, show_logs

SHM = "/dev/shm"  # noqa: S108 - the kernel's own, and nothing is created there by name
SHM_CURE = "give the container more (docker run --shm-size=8g), lower data.prefetch, or set data.workers=0"
SIGNALS = (signal.SIGTERM, signal.SIGINT)
TOKEN_BYTES, PAGES_BYTES = 9, 64 << 10  # A token is an id of 8 bytes and a flag of the mask.

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Collate:
    """Makes a batch of the prepared samples of one step.

    Attributes:
        parts: The caption parts that the objective uses; the batch has no others.
        lengths: Most tokens of a text, by the name of its part.
    """

    tokenizer: Tokenizer
    parts: tuple[Part, ...]
    lengths: Mapping[str, int]
    pixels: int
    seed: int
    crop: float
    flip: float

    def prepare(self, sample: Sample) -> Sample:
        """Returns the sample with the pixels that the tower sees in its epoch, and the caption that describes them.

        Where the words of a caption cannot follow the mirror, its image is never mirrored.
        """
        key = (self.seed, sample.epoch, sample.index)
        in_mirror = mirrored(sample.caption) if self.flip else None
        flip = self.flip if in_mirror else 0.0
        image, flipped = augment(sample.image, self.pixels, crop=self.crop, flip=flip, key=key)
        return replace(sample, image=image, caption=in_mirror if in_mirror and flipped else sample.caption)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        return Batch(self._images(samples), {part.name: self._texts(part, samples) for part in self.parts})

    def batch_bytes(self, rows: int) -> int:
        """Returns about how much shared memory a batch of so many rows takes, with texts of the greatest length."""
        tokens = sum(part.texts_per_image * self.lengths[part.name] for part in self.parts)
        return rows * (3 * self.pixels**2 + TOKEN_BYTES * tokens) + PAGES_BYTES

    def _texts(self, part: Part, samples: Sequence[Sample]) -> Texts:
        by_image = [part.fed(sample.caption) for sample in samples]
        encoded = self.tokenizer.encode([text for texts in by_image for text in texts], self.lengths[part.name])
        if part.aligned_with == "image":
            return replace(encoded, identity=_identities(encoded))
        counts = torch.tensor([len(texts) for texts in by_image], dtype=torch.int64)
        return replace(encoded, owner=torch.repeat_interleave(counts))

    def _images(self, samples: Sequence[Sample]) -> torch.Tensor:
        images = torch.empty((len(samples), 3, self.pixels, self.pixels), dtype=torch.uint8)
        for row, sample in zip(images.numpy(), samples, strict=True):
            row[:] = sample.image.transpose(2, 0, 1)
        return images


def _identities(texts: Texts) -> torch.Tensor:
    """Returns a hash of each row without its padding; it is equal where the tower sees equal tokens."""
    rows = (ids[mask].tobytes() for ids, mask in zip(texts.ids.numpy(), texts.mask.numpy(), strict=True))
    digests = (hashlib.blake2b(row, digest_size=8).digest() for row in rows)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=torch.int64)


class Delivery(NamedTuple):
    """A batch, the cursor of the sample after it, and the samples that were left out of it."""

    batch: Batch
    cursor: Cursor
    damaged: tuple[DamagedSample, ...]


class _Steps(IterableDataset[Delivery | EmocapError | ShardsError]):
    """The steps of this rank; loader process `w` of `n` makes every n-th of them, and DataLoader takes them in turn.

    An error of this project is yielded as a value, because DataLoader would wrap a raised one into a page of another
    process's traceback.
    """

    def __init__(self, stream: Stream, collate: Collate) -> None:
        self.stream, self.collate = stream, collate

    def __iter__(self) -> Iterator[Delivery | EmocapError | ShardsError]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        try:
            for portion in self.stream.steps(part, parts, each=self.collate.prepare):
                batch = self.collate(portion.samples)
                if worker:
                    _share(batch)
                yield Delivery(batch, portion.cursor, portion.damaged)
        except (EmocapError, ShardsError) as error:
            yield error


def _share(batch: Batch) -> None:
    """Moves the batch to shared memory, in the main thread of the loader process.

    DataLoader would do it in a thread of its own. If /dev/shm is full, that thread prints a traceback and drops the
    batch, and training waits for it without end.
    """
    try:
        batch.share_memory_()
    except RuntimeError as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise _no_room("a loader process cannot hand over its batch") from error


def _no_room(what: str) -> DataError:
    return DataError(f"{SHM} of {socket.gethostname()} is full, {what}: {SHM_CURE}.")


def fitting(data: DataConfig, *, each_bytes: int, ranks: int, free_bytes: int) -> DataConfig:
    """Returns the settings with as many loader processes and prefetched batches as /dev/shm has room for.

    Args:
        data: The settings that were asked for.
        each_bytes: Size of a batch.
        ranks: Number of ranks on this host, which share its /dev/shm.
        free_bytes: Free space of /dev/shm.

    Returns:
        The settings as they are, or with fewer prefetched batches, or else with fewer loader processes too.

    Raises:
        ConfigError: If there is no room for one loader process with one batch on its way and one in use.
    """
    wishes = [(data.workers, prefetch) for prefetch in range(data.prefetch, 0, -1)]
    wishes += [(workers, 1) for workers in range(data.workers - 1, 0, -1)]
    for workers, prefetch in wishes:
        if workers == 0 or ranks * (workers * prefetch + 1) * each_bytes <= free_bytes:
            return data.model_copy(update={"workers": workers, "prefetch": prefetch})
    raise ConfigError(
        f"{SHM} of {socket.gethostname()} has {size(free_bytes)} free, and {ranks} ranks need "
        f"{size(2 * ranks * each_bytes)} for the smallest loader (2 batches of {size(each_bytes)} each): {SHM_CURE}."
    )


def shared_memory_free() -> int | None:
    """Returns the free bytes of /dev/shm on this host; None if the host has no /dev/shm."""
    try:
        found = os.statvfs(SHM)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def fitted(data: DataConfig, *, each_bytes: int, ranks: int, free_bytes: int | None) -> DataConfig:
    """Returns the settings of the loader for this host, and logs where they are less than what was asked for.

    Args:
        data: The settings that were asked for.
        each_bytes: Size of a batch.
        ranks: Number of ranks on this host, which share its memory.
        free_bytes: What `shared_memory_free` has returned.

    Raises:
        ConfigError: As `fitting` does.
    """
    if not data.workers or free_bytes is None:
        return data
    found = fitting(data, each_bytes=each_bytes, ranks=ranks, free_bytes=free_bytes)
    if found != data:
        log.warning(
            "%s of %s has %s free: each rank loads with data.workers=%d and data.prefetch=%d instead of %d and %d, a "
            "batch takes %s; start the container with a larger --shm-size for more",
            SHM,
            socket.gethostname(),
            size(free_bytes),
            found.workers,
            found.prefetch,
            data.workers,
            data.prefetch,
            size(each_bytes),
        )
    return found


def batches(
    stream: Stream, collate: Collate, *, workers: int = 0, prefetch: int = 4, pin: bool = False
) -> Generator[Delivery]:
    """Yields the batches of this rank without end, from the cursor at which the stream starts.

    Loader processes are spawned, not forked: clients of object stores hold threads, which a fork would leave frozen.

    Args:
        stream: The samples of this rank.
        collate: Makes a batch of the samples of a step.
        workers: Number of loader processes; 0 loads in this process.
        prefetch: Batches that each loader process holds ready.
        pin: Whether batches are copied into pinned memory, which a GPU reads while the host continues.

    Raises:
        DataError: If there is no room for loader processes in /dev/shm.
        TrainingError: While iterating, if a loader process has ended.
    """
    loader = DataLoader(
        _Steps(stream, collate),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=partial(_quiet_worker, known=secrets()),
        pin_memory=pin,
    )
    try:
        with _held_back():
            return _delivered(iter(loader))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _no_room("loader processes cannot be started") from error


@contextmanager
def _held_back() -> Generator[None]:
    """Blocks signals, so that processes that are started inside inherit the block; this one receives them afterwards.

    Until `_quiet_worker` runs in a loader process, a signal to the whole process group would end it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _delivered(results: Iterator[Delivery | EmocapError | ShardsError]) -> Generator[Delivery]:
    """Yields the batches; the loader processes end with the last one, with an error, or when this is closed."""
    try:
        for result in results:
            if isinstance(result, Exception):
                raise result
            yield result
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise TrainingError(
            f"a loader process of {socket.gethostname()} has ended ({str(error).strip()}): if the system killed it "
            "for lack of memory (see dmesg), lower data.workers or data.prefetch."
        ) from error
    finally:
        # DataLoader ends its processes when its iterator is deleted, and the traceback of an error holds this frame.
        del results


def _quiet_worker(_: int, *, known: tuple[str, ...] = ()) -> None:
    """Prepares a loader process: one thread for torch, warnings in the log, and signals ignored.

    A signal goes to the whole process group; the parent decides when the loader process ends. Warnings tell of a store
    that is unreachable or of a sample that is left out.
    """
    remember(*known)
    show_logs(logging.WARNING)
    guard_tracebacks()
    torch.set_num_threads(1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # This runs after every other finalizer: an interpreter that ends while threads run C++ code may abort.
    multiprocessing.util.Finalize(None, os._exit, args=(0,), exitpriority=-100)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process with its parent; torch misses a parent that was killed while this process started."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
