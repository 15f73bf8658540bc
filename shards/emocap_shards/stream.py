"""The stream of a rank: steps of samples, each with the cursor to resume behind it."""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from emocap_shards.cursor import Cursor
from emocap_shards.errors import DamagedSample, PlanError
from emocap_shards.manifest import read_manifest
from emocap_shards.plan import Ids, Order, Step, rank_slice, steps_from
from emocap_shards.quarantine import Quarantine
from emocap_shards.reader import Reader
from emocap_shards.sample import Sample
from emocap_shards.store import open_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What one rank reads, as a value that pickles; the dataset is opened where the steps are asked for.

    Args:
        url: The dataset.
        global_batch: Samples in a step, over all ranks.
        seed: Of the order; zero or more.
        rank: Of `world`. With rows < world in the last step, some ranks get an empty list.
        world: Number of ranks.
        window_shards: Samples are shuffled among this many shards at a time.
        drop_last: Drops the samples of an epoch that fill no step.
        shuffle: False reads in the manifest's order.
        start: Where to go on; with another `global_batch` than before it is still exact.
        epochs: Ends before this epoch; None goes on for ever.
        error_budget: Damaged samples that may be left out, for each process of a rank; 0 raises at the first.
        on_damaged: Hears of each sample that is left out; a function that pickles.
    """

    url: str
    global_batch: int
    seed: int = 0
    rank: int = 0
    world: int = 1
    window_shards: int = 16
    drop_last: bool = False
    shuffle: bool = True
    start: Cursor = Cursor()  # noqa: RUF009 - a frozen value
    epochs: int | None = None
    error_budget: int = 0
    on_damaged: Callable[[DamagedSample], None] | None = None

    def __post_init__(self) -> None:
        rank_slice(self.global_batch, self.rank, self.world)
        self._order((), 0)
        if self.global_batch < 1 or self.error_budget < 0:
            raise PlanError(f"global_batch={self.global_batch} must be 1 or more, error_budget={self.error_budget} 0.")

    def steps(self, part: int = 0, parts: int = 1) -> Iterator[tuple[list[Sample], Cursor]]:
        """This rank's rows of every step, and the cursor behind the step: what a checkpoint made then stores.

        Of the steps counted from `start`, those with number % parts == part: a DataLoader that takes from `parts`
        workers in turn gets them in order. A quarantined sample leaves a hole, so that a step may have fewer rows.

        Raises:
            PlanError: If there is no such part, or no step would ever come.
            ManifestError: If there is no dataset.
            DamagedShard: If a shard is missing, or its index is not what the manifest says.
            DamagedSample: If a sample is damaged and there is no error budget.
            BudgetSpent: If there are more of them than the budget.
        """
        rank_slice(parts, part, parts)
        manifest = read_manifest(self.url)
        reader = Reader(open_store(self.url), manifest)
        quarantine = Quarantine(self.error_budget, self.on_damaged)
        order_of = functools.lru_cache(maxsize=2)(functools.partial(self._order, manifest.counts))
        for step in islice(self._plan(manifest.samples), part, None, parts):
            ids = self._share(step, order_of(step.epoch))
            yield list(_sound(reader.read(ids), quarantine)), step.after

    def read(self, indexes: Iterable[int]) -> list[Sample]:
        """These samples in this order, for evaluation and previews.

        Raises:
            DamagedSample: If one is damaged.
            IndexError: If one is not in the dataset.
        """
        reader = Reader(open_store(self.url), read_manifest(self.url))
        return list(_sound(reader.read(np.fromiter(indexes, np.int64)), Quarantine(self.error_budget, self.on_damaged)))

    def _plan(self, samples: int) -> Iterator[Step]:
        return steps_from(
            self.start,
            samples=samples,
            global_batch=self.global_batch,
            drop_last=self.drop_last,
            epochs=self.epochs,
        )

    def _order(self, counts: tuple[int, ...], epoch: int) -> Order:
        return Order(counts, self.seed, epoch, self.window_shards, self.shuffle)

    def _share(self, step: Step, order: Order) -> Ids:
        """Sample ids of this rank in a step."""
        share = rank_slice(step.stop - step.start, self.rank, self.world)
        return order.ids(step.start + share.start, step.start + share.stop)


def _sound(results: Iterable[Sample | DamagedSample], quarantine: Quarantine) -> Iterator[Sample]:
    for result in results:
        if isinstance(result, DamagedSample):
            quarantine.admit(result)
        else:
            yield result
