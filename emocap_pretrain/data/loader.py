"""Makes batches from the samples of a stream, in loader processes or in the training process.

Training calls `batches`. In each loader process, `_Steps` asks the stream for its steps, `Collate.prepare` augments
each sample as soon as it is decoded, and `Collate` makes tensors of the samples of a step. The batch comes to the
training process through shared memory, together with the cursor after its samples, which a checkpoint stores. So it
does not matter for resuming how far the loader processes have read ahead (decision 1).

Much of this file is about how loader processes end. `_share`, `shrink_to_fit`, `_signals_blocked`, `_init_worker` and
`_raise_errors` each prevent a case in which a rank would wait for a batch that never comes, or in which a loader
process would continue after its rank has ended.
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
from emocap_shards.inspecting.wording import counted, size
from emocap_shards.mask import remember, secrets
from emocap_shards.sample import Caption, Sample
from emocap_shards.stream import SampleStream
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from emocap_pretrain.config.augmentation import AugmentConfig
from emocap_pretrain.config.captions import CaptionsConfig
from emocap_pretrain.config.data import DataConfig
from emocap_pretrain.config.objective import LabelConfig
from emocap_pretrain.data.augmentation import changed, random_numbers, rotation_degrees
from emocap_pretrain.data.batch import Batch, Texts
from emocap_pretrain.data.caption_choice import chosen_caption
from emocap_pretrain.data.labels import label_targets
from emocap_pretrain.data.mirror import mirrored
from emocap_pretrain.data.parts import Part
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.data.transform import augment
from emocap_pretrain.errors import ConfigError, DataError, EmocapError, TrainingError
from emocap_pretrain.logs import guard_tracebacks, show_logs

SHM = "/dev/shm"  # noqa: S108 - a mount of the kernel; this module creates no file in it
SHM_ADVICE = "give the container more (docker run --shm-size=8g), lower data.prefetch, or set data.workers=0"
SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A token takes an id of 8 bytes and a mask of 1 byte. PAGES_BYTES allows for tensors that end within a page.
TOKEN_BYTES, LABEL_BYTES, PAGES_BYTES = 9, 8, 64 << 10

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Collate:
    """Makes a batch from the prepared samples of one step. A `Collate` can be pickled for loader processes.

    `prepare` is called for each sample alone. Then the `Collate` object is called with all prepared samples of a step,
    and returns the batch. Both calls are deterministic: their results depend on the samples, the settings and `seed`,
    and not on the rank, the process or the order of calls (decision 2).

    Attributes:
        tokenizer: Encodes the captions.
        parts: The caption parts that the objective uses; the batch has no other parts.
        lengths: Largest number of tokens of a text, by the name of its part.
        pixels: Side of the images in the batch, in pixels.
        seed: Seed of the augmentation.
        crop: Smallest share of the shorter image side that a random crop keeps, in [0, 1].
        flip: Probability that an image is mirrored, if its caption can be mirrored too.
        labels: The labels that the objective uses; the batch has no other labels.
        augmentation: Further random changes of an image.
        captions: Which caption of an image is used, and which parts of it.
    """

    tokenizer: Tokenizer
    parts: tuple[Part, ...]
    lengths: Mapping[str, int]
    pixels: int
    seed: int
    crop: float
    flip: float
    labels: tuple[LabelConfig, ...] = ()
    augmentation: AugmentConfig = AugmentConfig()  # noqa: RUF009 - a frozen value
    captions: CaptionsConfig = CaptionsConfig()  # noqa: RUF009 - a frozen value

    def prepare(self, sample: Sample) -> Sample:
        """Returns the sample with the augmented image and the caption of its epoch.

        The caption is chosen first, and parts of it may be left out (`captions`). If the image is mirrored, so is the
        caption.

        An image whose caption cannot be mirrored is never mirrored; one without a caption can be. The image of the
        result has the size that the image tower needs. The stream calls this method as soon as it has decoded a sample,
        while the decoded image is still in the CPU's cache. Keeping the decoded images of a whole step in memory would
        cost a third of the time of decoding.
        """
        key = (self.seed, sample.epoch, sample.index)
        shown = chosen_caption(sample, self.captions, seed=self.seed)
        mirrored_caption = mirrored(shown) if self.flip and shown else None
        flip = self.flip if mirrored_caption or shown is None else 0.0
        numbers = random_numbers(key)
        degrees = rotation_degrees(self.augmentation, numbers, shown)
        image, flipped = augment(sample.image, self.pixels, crop=self.crop, flip=flip, key=key, degrees=degrees)
        detail_px = min(self.pixels, *sample.image.shape[:2])
        image = changed(image, self.augmentation, numbers, shown, detail_px=detail_px)
        caption = mirrored_caption if mirrored_caption and flipped else shown
        return replace(sample, image=image, caption=caption)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        texts = {part.name: self._texts(part, samples) for part in self.parts}
        labels = {label.name: label_targets(label, samples) for label in self.labels}
        return Batch(self._images(samples), texts, labels)

    def batch_bytes(self, rows: int) -> int:
        """Estimates the size of a batch of `rows` samples in shared memory, in bytes, if all texts have full length.

        It assumes `Part.texts_per_image` texts for each image, so a batch with more local sentences may be larger.
        """
        tokens = sum(part.texts_per_image * self.lengths[part.name] for part in self.parts)
        each = 3 * self.pixels**2 + TOKEN_BYTES * tokens + LABEL_BYTES * len(self.labels)
        return rows * each + PAGES_BYTES

    def _texts(self, part: Part, samples: Sequence[Sample]) -> Texts:
        by_image = [part.texts_to_encode(_caption(sample)) for sample in samples]
        encoded = self.tokenizer.encode([text for texts in by_image for text in texts], self.lengths[part.name])
        # Such a part has exactly one text for each image, so text i belongs to image i.
        if part.aligned_with == "image":
            return replace(encoded, identity=identities(encoded))
        # For counts of 2, 0 and 3 the owners are 0, 0, 2, 2, 2: ascending, as `Texts.starts` requires.
        counts = torch.tensor([len(texts) for texts in by_image], dtype=torch.int64)
        return replace(encoded, owner=torch.repeat_interleave(counts))

    def _images(self, samples: Sequence[Sample]) -> torch.Tensor:
        # Rows are written through a numpy view of the tensor, so each image is copied once.
        images = torch.empty((len(samples), 3, self.pixels, self.pixels), dtype=torch.uint8)
        for row, sample in zip(images.numpy(), samples, strict=True):
            row[:] = sample.image.transpose(2, 0, 1)
        return images


def _caption(sample: Sample) -> Caption:
    """Returns the caption of a sample for a caption part that the objective uses.

    Raises:
        DataError: If the sample has none. The manifest counts such samples, and a start refuses them, so the manifest
            is wrong.
    """
    if sample.caption is None:
        raise DataError(
            f"sample {sample.key!r} has no caption, although its manifest says that it has; run `emocap verify`."
        )
    return sample.caption


def identities(texts: Texts) -> torch.Tensor:
    """Returns a hash of the tokens of each text, without padding. Equal tokens have equal hashes on every rank.

    The tokens are those that the tower reads, after truncation: for the loss, two texts are the same text if they
    differ only in the tokens that are cut off. Python's own `hash` of bytes cannot be used, because it differs between
    processes.
    """
    rows = (ids[mask].tobytes() for ids, mask in zip(texts.ids.numpy(), texts.mask.numpy(), strict=True))
    digests = (hashlib.blake2b(row, digest_size=8).digest() for row in rows)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=torch.int64)


class LoadedBatch(NamedTuple):
    """Holds a batch, the cursor after its last sample, and the damaged samples that were left out of the batch.

    It is a named tuple because DataLoader pins the memory of a batch that it finds in a tuple, but not in a dataclass.
    """

    batch: Batch
    cursor: Cursor
    damaged: tuple[DamagedSample, ...]


class _Steps(IterableDataset[LoadedBatch | EmocapError | ShardsError]):
    """Yields the batches of this rank. Loader process w of n makes the batches of the steps w, w + n, w + 2 * n, ...

    DataLoader asks its processes in turn, so the training process receives the steps in order. Neither the order nor
    the content of batches depends on the number of processes (decision 1).

    An error of this project is yielded as a value. If it were raised, DataLoader would add the traceback of the loader
    process to its message.
    """

    def __init__(self, stream: SampleStream, collate: Collate) -> None:
        self.stream, self.collate = stream, collate

    def __iter__(self) -> Iterator[LoadedBatch | EmocapError | ShardsError]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        try:
            for portion in self.stream.steps(part, parts, each=self.collate.prepare):
                batch = self.collate(portion.samples)
                if worker:
                    _share(batch)
                yield LoadedBatch(batch, portion.cursor, portion.damaged)
        except (EmocapError, ShardsError) as error:
            yield error


def _share(batch: Batch) -> None:
    """Moves the batch to shared memory, in the main thread of the loader process.

    Without this call, DataLoader would move the batch in another thread. If /dev/shm is full, that thread prints a
    traceback and drops the batch, and training waits for the batch without end.

    Raises:
        DataError: If /dev/shm is full.
    """
    try:
        batch.share_memory_()
    except RuntimeError as error:  # torch gives the system's error only as a part of its message.
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise _no_room("a loader process cannot pass on its batch") from error


def _no_room(what: str) -> DataError:
    return DataError(f"{SHM} of {socket.gethostname()} is full, {what}: {SHM_ADVICE}.")


def shrink_to_fit(data: DataConfig, *, each_bytes: int, ranks: int, free_bytes: int) -> DataConfig:
    """Reduces the numbers of loader processes and of prefetched batches, so that all batches fit into /dev/shm.

    A container has only 64 MB of /dev/shm by default. The number of prefetched batches is reduced first, down to 1, and
    the number of loader processes only after that. The order and the content of batches do not depend on either number.

    Args:
        data: The settings of the run.
        each_bytes: Size of one batch.
        ranks: Number of ranks on this host, which share its /dev/shm.
        free_bytes: Free space of /dev/shm.

    Returns:
        The settings, with fewer prefetched batches if necessary, and with fewer loader processes if that is not enough.

    Raises:
        ConfigError: If there is no room for one loader process with one prefetched batch and one batch in use.
    """
    candidates = [(data.workers, prefetch) for prefetch in range(data.prefetch, 0, -1)]
    candidates += [(workers, 1) for workers in range(data.workers - 1, 0, -1)]
    for workers, prefetch in candidates:
        # Each rank holds the prefetched batches of its loader processes, and the batch of the present step.
        if workers == 0 or ranks * (workers * prefetch + 1) * each_bytes <= free_bytes:
            return data.model_copy(update={"workers": workers, "prefetch": prefetch})
    raise ConfigError(
        f"{SHM} of {socket.gethostname()} has {size(free_bytes)} free, but {counted(ranks, 'rank')} would need "
        f"{size(2 * ranks * each_bytes)} for the smallest loader (2 batches of {size(each_bytes)} each): {SHM_ADVICE}."
    )


def shared_memory_free() -> int | None:
    """Returns the free bytes of /dev/shm on this host; None if the host has no /dev/shm."""
    try:
        found = os.statvfs(SHM)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def shrink_to_fit_and_warn(data: DataConfig, *, each_bytes: int, ranks: int, free_bytes: int | None) -> DataConfig:
    """Calls `shrink_to_fit`, and logs a warning if the result differs from the settings of the run.

    Args:
        data: The settings of the run.
        each_bytes: Size of a batch.
        ranks: Number of ranks on this host, which share its /dev/shm.
        free_bytes: Free space of /dev/shm (`shared_memory_free`); None leaves the settings unchanged.

    Raises:
        ConfigError: If /dev/shm has no room for the smallest loader (see `shrink_to_fit`).
    """
    if not data.workers or free_bytes is None:
        return data
    found = shrink_to_fit(data, each_bytes=each_bytes, ranks=ranks, free_bytes=free_bytes)
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
    stream: SampleStream, collate: Collate, *, workers: int = 0, prefetch: int = 4, pin: bool = False
) -> Generator[LoadedBatch]:
    """Yields the batches of this rank without end, from the cursor at which the stream starts.

    Loader processes are spawned and not forked, because clients of object stores have threads, which a fork does not
    copy. They are started by this call, before the first batch is requested, and they end when the generator ends or is
    closed. The caller owns the generator and must close it.

    The batches are in host memory. In the last step of an epoch a batch may have fewer rows than the others, or none,
    because the samples that are left are divided over the ranks.

    Args:
        stream: The samples of this rank.
        collate: Makes a batch from the samples of a step.
        workers: Number of loader processes; 0 loads in this process.
        prefetch: Number of batches that each loader process prepares in advance.
        pin: Whether batches are copied to pinned memory, from which copies to a GPU do not block the host.

    Raises:
        DataError: If /dev/shm has no room for loader processes.
        TrainingError: While iterating, if a loader process has ended.
    """
    loader = DataLoader(
        _Steps(stream, collate),
        batch_size=None,  # Each item of `_Steps` is a whole batch already.
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,  # torch raises an error for a number without processes.
        multiprocessing_context="spawn" if workers else None,
        # A spawned process does not know the secrets that this process has taken from the config.
        worker_init_fn=partial(_init_worker, known=secrets()),
        pin_memory=pin,
    )
    try:
        # `iter` starts the processes. `_raise_errors` is a generator, so its body runs only when a batch is requested.
        with _signals_blocked(), _sigchld_handler_kept():
            return _raise_errors(iter(loader), processes=workers)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _no_room("loader processes cannot be started") from error


@contextmanager
def _signals_blocked() -> Generator[None]:
    """Blocks SIGTERM and SIGINT in the `with` block. Processes that are started in it begin with blocked signals.

    Without this, a signal to the process group would end a loader process that has not run `_init_worker` yet. A signal
    that arrives during the block is delivered to the calling process when the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _sigchld_handler_kept() -> Generator[None]:
    """Puts back the handler of SIGCHLD when the `with` block ends.

    `iter` of a DataLoader sets a handler that raises an error when a loader process ends, in whatever line the main
    thread executes at that moment, which may be the writing of a checkpoint. Without the handler, DataLoader notices an
    ended process when it waits for a batch, within 5 seconds.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGCHLD) is not before:
            signal.signal(signal.SIGCHLD, before)


def _raise_errors(
    results: Iterator[LoadedBatch | EmocapError | ShardsError], *, processes: int
) -> Generator[LoadedBatch]:
    """Yields the batches and raises the errors among the results, which `processes` loader processes make.

    The loader processes end when this generator ends or is closed.
    """
    try:
        for result in results:
            if isinstance(result, Exception):
                raise result
            yield result
    except (RuntimeError, ConnectionError, EOFError) as error:
        if not processes or not _is_of_ended_process(error):
            raise
        raise TrainingError(
            f"a loader process of {socket.gethostname()} has ended ({str(error).strip()}): if the system killed it "
            "for lack of memory (see dmesg), lower data.workers or data.prefetch."
        ) from error
    finally:
        # DataLoader ends its processes when its iterator is deleted; the traceback of an error keeps this frame alive.
        # Loader processes ignore SIGTERM, so nothing else would end them, and this process would wait for them.
        del results


def _is_of_ended_process(error: Exception) -> bool:
    """Returns whether the error that a DataLoader raised says that one of its processes, or its thread, has ended.

    torch has no error class of its own for this. An ended process closes its connections before its parent can see that
    it has ended, so reading a batch from it may fail first. An error that was raised in a loader process begins with
    "Caught".
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith(("DataLoader worker", "Pin memory thread"))
    return not str(error).startswith("Caught")


def _init_worker(_: int, *, known: tuple[str, ...] = ()) -> None:
    """Prepares a loader process: gives torch one thread, shows warnings in the log, and ignores signals.

    Signals are ignored because a signal goes to the whole process group, and the parent decides when the loader process
    ends. `known` are secrets that messages must not show.
    """
    remember(*known)
    show_logs(logging.WARNING)
    guard_tracebacks()
    torch.set_num_threads(1)  # The loader processes of a rank are its parallelism.
    # The process began with both signals blocked (`_signals_blocked`). One that arrived meanwhile is now ignored too.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # This runs after all other finalizers and skips the interpreter's shutdown, which may abort while threads run C++.
    multiprocessing.util.Finalize(None, os._exit, args=(0,), exitpriority=-100)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this loader process when its parent, the training process, ends.

    torch does not notice if the parent ends while this process is starting. So this function, which runs in a thread,
    waits for a pipe that the kernel closes when the parent ends, even if the parent ends by a SIGKILL.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
