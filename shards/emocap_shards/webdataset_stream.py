"""Streams the tars of other programs to the ranks of a run, in steps.

`WebDatasetStream` yields the same steps as `stream.Stream`, but fewer things are known about its samples: nobody has
counted them, no index says where they are, and no checksum says whether they are intact. So the number of samples of an
epoch is stated by the user, a run does not resume at the exact sample, and what cannot be used is left out and counted
(decision 43).
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from emocap_shards.cursor import Cursor
from emocap_shards.errors import PlanError, RecordError
from emocap_shards.plan import EpochPlan, rank_slice
from emocap_shards.sample import Sample
from emocap_shards.stream import RankStep
from emocap_shards.tar_samples import SkippedSamples, TarReader, TarSamples

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebDatasetStream:
    """The samples that one rank reads from tars, as a picklable value.

    In each epoch, the tars are shuffled by the seed and the number of the epoch, and divided among the ranks and their
    loader processes. Each process reads its tars one after another, and shuffles samples in a buffer. An epoch ends
    after `samples` samples of all ranks. A process whose tars have fewer samples than its share reads them again in
    another order; what is left of larger ones is not read in this epoch.

    A stream that starts within an epoch reads this epoch from its beginning, in another order. So some of its samples
    are read twice and others not at all. A stream that starts at the beginning of an epoch continues exactly, if the
    numbers of ranks and of loader processes are the same.

    Args:
        source: The tars, and how their samples are read.
        samples: Number of samples of an epoch, which the user states.
        global_batch: Number of samples in a step, over all ranks.
        seed: Seed of the order, 0 or more.
        rank: This rank, less than `world_size`.
        world_size: Number of ranks.
        buffer_samples: Number of samples in the shuffle buffer of each process.
        drop_last: Whether to drop the samples of an epoch that do not fill a step.
        start: The cursor at which the stream begins.
    """

    source: TarSamples
    samples: int
    global_batch: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    buffer_samples: int = 2000
    drop_last: bool = False
    start: Cursor = Cursor()  # noqa: RUF009 - a frozen value

    def steps(self, part: int = 0, parts: int = 1, *, each: Callable[[Sample], T]) -> Iterator[RankStep[T]]:
        """Yields this rank's samples of every step without end; `Stream.steps` describes the arguments.

        `RankStep.damaged` has the samples that this process has skipped since its last step.

        Raises:
            PlanError: If there are fewer tars than processes, or the plan has no step at all.
            RecordError: If nearly all samples cannot be used.
            StoreError: If a store cannot be reached.
        """
        require_tars(len(self.source.tars), self.world_size, parts)
        reader = TarReader(self.source, SkippedSamples())
        plan = EpochPlan(self.samples, self.global_batch, drop_last=self.drop_last)
        epoch, samples = -1, iter(())
        for step in itertools.islice(plan.steps(self.start), part, None, parts):
            (wanted,) = step.ranges
            if wanted.epoch != epoch:
                # All steps of this process in an epoch have the same remainder. It does not depend on where the stream
                # starts, so a run that resumes at the beginning of an epoch divides the tars as it would have done.
                share = wanted.start // self.global_batch % parts
                epoch, samples = wanted.epoch, self._epoch(reader, wanted.epoch, share, parts)
            rows = len(range(step.rows)[rank_slice(step.rows, self.rank, self.world_size)])
            taken = [each(sample) for sample in itertools.islice(samples, rows)]
            yield RankStep(taken, step.after, reader.skipped.taken())

    def first(self, count: int) -> list[Sample]:
        """Returns up to `count` samples from the beginning of an epoch of one rank, for a preview."""
        alone = replace(self, rank=0, world_size=1, buffer_samples=count, start=Cursor())
        samples = alone._epoch(TarReader(self.source, SkippedSamples(quiet=True)), 0, 0, 1)
        return list(itertools.islice(samples, min(count, self.samples)))

    def _epoch(self, reader: TarReader, epoch: int, part: int, parts: int) -> Iterator[Sample]:
        """Yields the samples of this process in an epoch, without end: it reads its tars again and again."""
        # An epoch that is continued is read in another order, so that what was seen first is not always seen twice.
        entry = self.start.position if epoch == self.start.epoch else 0
        tars = _seed(self.seed, epoch, entry)
        for number in itertools.count():
            used = reader.skipped.used
            order = _seed(self.seed, epoch, entry, number, self.rank, part)
            yield from reader.decoded(
                partial(_every, place=self.rank, of=self.world_size),
                partial(_every, place=part, of=parts),
                tars=tars,
                order=order,
                buffer_samples=self.buffer_samples,
                key=(self.seed, epoch + number),
            )
            if reader.skipped.used == used:
                raise RecordError(
                    f"no sample can be used in the tars of loader process {part} of rank {self.rank}, which skipped "
                    f"{reader.skipped.total:,}; say which members are image and caption, or look at the tars."
                )


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def require_tars(tars: int, ranks: int, loaders: int) -> None:
    """Checks that each loader process of each rank gets a tar.

    Raises:
        PlanError: If there are too few tars.
    """
    if tars < ranks * loaders:
        raise PlanError(
            f"{tars} tars are too few for {ranks} ranks with {loaders} loader processes each, because each of these "
            "processes reads tars of its own: use fewer loader processes or ranks, or write more and smaller tars."
        )


def _every(items: Iterable[Any], *, place: int, of: int) -> Iterator[Any]:
    """Yields the items that belong to one of `of` processes. It is webdataset's splitter of nodes, and of workers.

    The library's own splitters ask the environment and torch for the rank. A loader process knows neither under SLURM
    or Ray, and would read all tars.
    """
    return itertools.islice(items, place, None, of)
