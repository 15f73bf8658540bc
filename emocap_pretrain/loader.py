"""From the stream's samples to batches: the one place where numpy becomes tensors and loader processes live."""

import hashlib
import logging
import multiprocessing.util
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from emocap_shards.cursor import Cursor
from emocap_shards.errors import DamagedSample, ShardsError
from emocap_shards.sample import Sample
from emocap_shards.stream import Stream
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from emocap_pretrain.batch import Batch, Tokens
from emocap_pretrain.config.schema import Config, PartLengths
from emocap_pretrain.errors import EmocapError
from emocap_pretrain.sides import mirrored
from emocap_pretrain.tokenizer import Tokenizer
from emocap_pretrain.transform import augment


@dataclass(frozen=True, slots=True)
class Collate:
    """Samples of one step, each prepared -> Batch. Parts whose weight in the objective is 0 are left empty."""

    tokenizer: Tokenizer
    lengths: PartLengths
    pixels: int
    seed: int
    crop: float
    flip: float
    with_summary: bool
    with_local: bool

    @classmethod
    def of(cls, config: Config, tokenizer: Tokenizer) -> "Collate":
        return cls(
            tokenizer=tokenizer,
            lengths=config.model.text.lengths,
            pixels=config.model.image.pixels,
            seed=config.seed,
            crop=config.data.crop,
            flip=config.data.flip,
            with_summary=config.objective.summary > 0,
            with_local=config.objective.local > 0,
        )

    def prepare(self, sample: Sample) -> Sample:
        """The sample with the pixels that the tower sees in its epoch, and the caption that is true of them.

        Where the words of a caption cannot follow the mirror, its image is never mirrored.
        """
        key = (self.seed, sample.epoch, sample.index)
        in_mirror = mirrored(sample.caption) if self.flip else None
        flip = self.flip if in_mirror else 0.0
        image, flipped = augment(sample.image, self.pixels, crop=self.crop, flip=flip, key=key)
        return replace(sample, image=image, caption=in_mirror if in_mirror and flipped else sample.caption)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        wholes = [sample.caption.whole for sample in samples]
        summaries = [sample.caption.summary or sample.caption.whole for sample in samples] if self.with_summary else []
        sentences = [sample.caption.local if self.with_local else () for sample in samples]
        whole = self.tokenizer.encode(wholes, self.lengths.whole)
        summary = self.tokenizer.encode(summaries, self.lengths.summary)
        return Batch(
            images=self._images(samples),
            whole=whole,
            summary=summary,
            sentences=self.tokenizer.encode([text for texts in sentences for text in texts], self.lengths.local),
            owner=torch.repeat_interleave(torch.tensor([len(texts) for texts in sentences], dtype=torch.int64)),
            whole_ids=_identities(whole),
            summary_ids=_identities(summary),
        )

    def _images(self, samples: Sequence[Sample]) -> torch.Tensor:
        images = torch.empty((len(samples), 3, self.pixels, self.pixels), dtype=torch.uint8)
        for row, sample in zip(images.numpy(), samples, strict=True):
            row[:] = sample.image.transpose(2, 0, 1)
        return images


def _identities(tokens: Tokens) -> torch.Tensor:
    """A hash of each row without its padding: equal where the tower sees the same, as after a cut."""
    rows = (ids[mask].tobytes() for ids, mask in zip(tokens.ids.numpy(), tokens.mask.numpy(), strict=True))
    digests = (hashlib.blake2b(row, digest_size=8).digest() for row in rows)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=torch.int64)


class Delivery(NamedTuple):
    """A batch, the cursor that stands behind it, and the samples that were left out of it."""

    batch: Batch
    cursor: Cursor
    damaged: tuple[DamagedSample, ...]


class _Steps(IterableDataset[Delivery | EmocapError | ShardsError]):
    """This rank's steps; loader process `w` of `n` makes every n-th, and DataLoader takes them in turn.

    An error of ours comes as a value: DataLoader would wrap it into a page of another process's traceback.
    """

    def __init__(self, stream: Stream, collate: Collate) -> None:
        self.stream, self.collate = stream, collate

    def __iter__(self) -> Iterator[Delivery | EmocapError | ShardsError]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        try:
            for portion in self.stream.steps(part, parts, each=self.collate.prepare):
                yield Delivery(self.collate(portion.samples), portion.cursor, portion.damaged)
        except (EmocapError, ShardsError) as error:
            yield error


def batches(config: Config, stream: Stream, tokenizer: Tokenizer, *, pin: bool) -> Iterator[Delivery]:
    """Endless batches of this rank from the stream's start cursor.

    Loader processes are started fresh (no fork): object-store clients hold threads that a fork would freeze.
    """
    workers = config.data.workers
    loader = DataLoader(
        _Steps(stream, Collate.of(config, tokenizer)),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=config.data.prefetch if workers else None,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_quiet_worker,
        pin_memory=pin,
    )
    return map(_delivered, cast(Any, iter(loader)))


def _delivered(result: Delivery | EmocapError | ShardsError) -> Delivery:
    if isinstance(result, Exception):
        raise result
    return result


def _quiet_worker(_: int) -> None:
    """One thread for torch, and the parent decides when to end: SIGTERM goes to the whole process group.

    Warnings are shown: a store that is gone, a sample that is left out.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Behind every other finalizer: an interpreter that winds down below threads inside of C++ may abort.
    multiprocessing.util.Finalize(None, os._exit, args=(0,), exitpriority=-100)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Torch's own watch misses a parent that was killed while this process started."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
