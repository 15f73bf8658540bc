"""Streams the samples that one rank reads, in steps. Each step comes with the cursor from which a run resumes after
this step.

`Stream` is a value that describes what is read. Its generators combine these parts: a plan (`plan`, `mixture`) yields
the steps. `_Reading` finds this rank's samples of a step (`order`) and fetches them (`library`). Background threads
call `_Reading` for steps that the consumer has not requested yet (`background.ahead`). `SampleQuarantine` leaves out
damaged samples. The order of the samples depends only on the seed and on the position in the stream. So ranks and
processes exchange no message, and a resumed stream continues with the same samples (decisions 1 and 13).
"""

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar, overload, runtime_checkable

import numpy as np

from emocap_shards.background import ahead
from emocap_shards.cache import Cache
from emocap_shards.cursor import Cursor
from emocap_shards.errors import BudgetSpent, DamagedSample, PlanError
from emocap_shards.library import Library, MixtureDataset
from emocap_shards.mixture import MixturePlan
from emocap_shards.order import Ids, Order
from emocap_shards.plan import EpochPlan, PositionRange, Step, StepPlan, rank_slice
from emocap_shards.reader import decoded
from emocap_shards.sample import Encoded, Sample
from emocap_shards.strata import ClassBalance, Stratum, strata_of

_log = logging.getLogger(__name__)

# A process brings segments into the cache at most this many steps before they are needed.
WARMED_AHEAD = 256
_NONE: Ids = np.empty(0, dtype=np.int64)

T = TypeVar("T")
Decode = Callable[[Encoded | DamagedSample, int], T | DamagedSample]


@dataclass(frozen=True, slots=True)
class RankStep(Generic[T]):
    """A rank's samples of one step, the damaged samples that were left out, and the cursor after the step.

    `samples` are in the order of the manifest. A step of a mixture consists of one or more ranges, each from one pass
    over one dataset. The ranges follow one another, and the samples of each range are in the order of its dataset's
    manifest. If classes are balanced, the samples of a dataset are one such range, also those of several passes.
    `samples` may be empty, for example on some ranks in the last step of an epoch. `cursor` is the same on
    all ranks. `damaged` contains the damaged samples of this step, without those that this process has found before.
    """

    samples: list[T]
    cursor: Cursor
    damaged: tuple[DamagedSample, ...] = ()


@runtime_checkable
class SampleStream(Protocol):
    """Describes what training needs of a stream: `Stream` reads packed datasets, and `WebDatasetStream` foreign tars.

    A stream is a picklable value, because each loader process opens the data for itself.
    """

    def steps(self, part: int = 0, parts: int = 1, *, each: Callable[[Sample], T]) -> Iterator[RankStep[T]]:
        """Yields this rank's samples of every step without end, as `Stream.steps` does."""
        ...

    def first(self, count: int) -> list[Sample]:
        """Returns up to `count` samples of the first step of a run, for a preview."""
        ...


@dataclass
class SampleQuarantine:
    """Collects the distinct damaged samples of a stream, at most `budget` of them.

    With a budget of 0 the error of the first damaged sample is raised.
    """

    budget: int = 0
    held: dict[tuple[str, str], DamagedSample] = field(default_factory=dict[tuple[str, str], DamagedSample])

    def admit(self, damage: DamagedSample) -> bool:
        """Records a sample as left out, and returns whether it was not recorded before.

        Raises:
            DamagedSample: If the budget is 0.
            BudgetSpent: If the budget is used up. The error lists the samples that were left out, and this one.
        """
        if self.budget == 0:
            raise damage
        if (damage.shard, damage.key) in self.held:
            return False
        if len(self.held) == self.budget:
            raise BudgetSpent(
                f"error_budget={self.budget} is used up by {_named(self.held)}; then: {damage}",
                damaged=(*self.held.values(), damage),
            ) from damage
        self.held[damage.shard, damage.key] = damage
        _log.warning("quarantined: %s", damage)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """The samples that one rank reads, as a picklable value; the datasets are opened when the steps are requested.

    Args:
        url: URL or path of the dataset, or several datasets that are mixed. A sample that the filter of its dataset
            leaves out is never drawn, so an epoch has the samples that are used.
        global_batch: Number of samples in a step, over all ranks.
        seed: Seed of the order, 0 or more.
        rank: This rank, less than `world_size`. If the last step has fewer samples than there are ranks, some ranks get
            an empty list.
        world_size: Number of ranks.
        local_world_size: Number of ranks on this rank's node, which share the cache.
        window_samples: Approximate number of samples that are shuffled together. They come from shards that follow one
            another in the shuffled sequence of shards. The number should be several times `global_batch`; otherwise
            most samples of a shard are in the same step, in every epoch.
        drop_last: Whether to drop the samples of an epoch that do not fill a step. A mixture has no such remainder.
        shuffle: Whether to shuffle; otherwise samples are read in the manifest's order.
        start: The cursor from which to resume. Resuming is exact even if `global_batch` was different before.
        epochs: Number of epochs, counted from the beginning of epoch 0 and not from `start`; with None the stream never
            ends.
        error_budget: Number of damaged samples that each process of a rank may leave out. With 0 the first damaged
            sample raises an error.
        cache: A cache for datasets that are not on a local disk; the processes of a node share it.
        balance: The classes of the samples, if each class is to have a certain share of every step. Each class then has
            epochs of its own, and `drop_last` does nothing, as in a mixture.

    Example:
        ```python
        stream = Stream(url="s3://bucket/faces", global_batch=4096, rank=rank, world_size=world_size, start=cursor)
        for step in stream.steps():
            train(step.samples)  # this rank's rows of the step
            cursor = step.cursor  # where any number of ranks can resume
        ```
    """

    url: str | tuple[MixtureDataset, ...] = field(repr=False)  # it may hold a password
    global_batch: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    window_samples: int = 1 << 14
    drop_last: bool = False
    shuffle: bool = True
    start: Cursor = Cursor()  # noqa: RUF009 - a frozen value
    epochs: int | None = None
    error_budget: int = 0
    cache: Cache | None = None
    balance: ClassBalance | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        rank_slice(self.global_batch, self.rank, self.world_size)
        if not 1 <= self.local_world_size <= self.world_size:
            raise PlanError(f"local_world_size={self.local_world_size} must be 1 to world_size={self.world_size}.")
        if self.window_samples < 1 or self.seed < 0:
            rule = "a window holds at least 1 sample, and a seed is 0 or more"
            raise PlanError(f"window_samples={self.window_samples}, seed={self.seed}: {rule}.")
        if self.global_batch < 1 or self.error_budget < 0:
            rule = f"error_budget={self.error_budget} must be 0 or more"
            raise PlanError(f"global_batch={self.global_batch} must be 1 or more, and {rule}.")
        if not self.url or (self.epochs is not None and self.epochs < 0):
            raise PlanError(f"there must be a dataset, and epochs={self.epochs} must be None, or 0 or more.")

    @overload
    def steps(self, part: int = 0, parts: int = 1) -> Iterator[RankStep[Sample]]: ...
    @overload
    def steps(self, part: int = 0, parts: int = 1, *, each: Callable[[Sample], T]) -> Iterator[RankStep[T]]: ...
    def steps(self, part: int = 0, parts: int = 1, *, each: Callable[[Sample], Any] = lambda sample: sample) -> Any:
        """Yields this rank's samples of every step, decoded and passed through `each`.

        Large images should be made small by `each`, and not after the step was yielded. Decoding then takes a third
        less time, because the large images of a step are never in memory at the same time.

        The steps after the cursor `Stream.start` are numbered from 0, and only the steps with `number % parts == part`
        are yielded. So a DataLoader that takes from `parts` workers in turn gets all steps in order.

        Before a step is divided among the ranks, its samples are sorted into the order of the manifest. In a mixture,
        the samples of each pass over a dataset are sorted separately. So a rank's samples lie close together in the
        shards. A quarantined sample is left out, so a step may have fewer rows.

        Nothing is opened before the first step is requested. Two daemon threads read ahead in this process until the
        generator is exhausted or closed.

        Args:
            part: Index of this process among the `parts` processes, from 0.
            parts: Number of processes of this rank that share the steps.
            each: Converts a sample; it runs in the process that reads.

        Raises:
            PlanError: If `part` is not below `parts`, or the plan has no step at all.
            ManifestError: If there is no dataset.
            DamagedShard: If a shard is missing, or its index differs from what the manifest says.
            DamagedSample: If a sample is damaged and the error budget is 0.
            BudgetSpent: If more samples are damaged than the budget allows.
        """

        def decode(sample: Encoded | DamagedSample, epoch: int) -> Any:
            found = decoded(sample, seed=self.seed, epoch=epoch)
            return found if isinstance(found, DamagedSample) else each(found)

        return self._rank_steps(part, parts, decode)

    def encoded_steps(self, part: int = 0, parts: int = 1) -> Iterator[RankStep[Encoded]]:
        """Yields the same steps as `steps`, but without decoding the samples. Their checksums are verified.

        A sample whose image or annotation cannot be decoded is not found to be damaged here.
        """
        return self._rank_steps(part, parts, lambda sample, _: sample)

    def first(self, count: int) -> list[Sample]:
        """Returns the first `count` samples of the first step, wherever this stream begins, for a preview."""
        first = replace(
            self, rank=0, world_size=1, local_world_size=1, global_batch=count, start=Cursor(), drop_last=False
        )
        return next(first.steps()).samples

    def read(self, indexes: Iterable[int]) -> list[Sample]:
        """Returns the samples with these indices (`Sample.index`), in the given order, for evaluation and previews.

        Raises:
            DamagedSample: If a sample is damaged.
            IndexError: If the datasets have no sample with one of the indices.
        """
        library = Library.open(self.url, self.cache)
        found = (decoded(sample) for sample in library.fetch(np.fromiter(indexes, np.int64), direct=True))
        return _sound(found, SampleQuarantine(0))[0]

    def _rank_steps(self, part: int, parts: int, decode: "Decode[T]") -> Iterator[RankStep[T]]:
        if not 0 <= part < parts:
            raise PlanError(f"part={part} of parts={parts}: parts count from 0 to parts - 1.")
        library = self._library()
        strata = strata_of(library.layouts, self.balance, library.filters)
        reading = _Reading(self, library, strata)
        steps = islice(self._plan(library, strata).steps(self.start), part, None, parts)
        quarantine = SampleQuarantine(self.error_budget)
        for step, found in ahead(steps, reading.fetch, reading.warm, warmed_ahead=self._warmed_ahead(library, parts)):
            samples, damaged = _sound((decode(sample, epoch) for sample, epoch in found), quarantine)
            yield RankStep(samples, step.after, damaged)

    def _library(self) -> Library:
        """Opens the datasets.

        The cache stores segments, which are groups of neighbouring samples of a shard (about 4 MiB). If the cache is
        smaller than the node's part of two shuffle windows, it is not used, and a warning is logged. Such a cache would
        evict segments before all of their samples are read.
        """
        library = Library.open(self.url, self.cache)
        if self.cache is None or not library.uses_cache:
            return library
        # The current window and the next one. Each rank of the node reads another part of them (decision 13).
        windows = 2 * min(1.0, self._window_share(library))
        needed_bytes = windows * library.total_bytes * self.local_world_size / self.world_size
        if needed_bytes <= self.cache.max_bytes:
            return library
        _log.warning(
            "the cache %s is not used: it holds %.3g GB, but the node's part of two shuffle windows has %.3g GB; "
            "make the cache larger, or shuffle_window smaller.",
            self.cache.folder,
            self.cache.max_bytes / 1e9,
            needed_bytes / 1e9,
        )
        return Library.open(self.url)

    def _window_share(self, library: Library) -> float:
        """Returns about which share of all data a shuffle window covers; the windows of all classes count together."""
        if self.balance is None:
            return self.window_samples / sum(library.used)
        covered = (
            min(1.0, each.window_samples(self.window_samples) / each.samples) * library.samples[each.dataset]
            for each in strata_of(library.layouts, self.balance, library.filters)
        )
        return sum(covered) / sum(library.samples)

    def _plan(self, library: Library, strata: Sequence[Stratum]) -> StepPlan:
        if len(library.samples) == 1 and self.balance is None:
            return EpochPlan(library.used[0], self.global_batch, drop_last=self.drop_last, epochs=self.epochs)
        samples = tuple(each.samples for each in strata)
        weights = tuple(library.weights[each.dataset] * each.share for each in strata)
        return MixturePlan(samples, weights, self.global_batch, self.epochs)

    def _warmed_ahead(self, library: Library, parts: int) -> int:
        """Returns for how many steps in advance the data are fetched into the cache; 0 if no cache is used.

        `parts` processes of this rank share its steps. The result is about the number of steps in a shuffle window that
        one of these processes reads, and at most `WARMED_AHEAD`. So the data of the next window are usually in the
        cache before they are needed.
        """
        steps = -(-self.window_samples // (self.global_batch * parts)) + 1
        return min(steps, WARMED_AHEAD) if library.uses_cache else 0


class _Reading:
    """Fetches this rank's samples for the steps of a stream. The `dataset` of a range of a step is a stratum here."""

    def __init__(self, stream: Stream, library: Library, strata: Sequence[Stratum]) -> None:
        self._stream = stream
        self._library = library
        self._strata = strata
        # Each stratum keeps the order of two epochs. With one shared cache, a small one that passes through many epochs
        # in a step would evict the order of a large one.
        kept = functools.lru_cache(maxsize=2)
        self._orders = [kept(partial(self._order, each)) for each in strata]

    def fetch(self, step: Step, direct: bool) -> tuple[Step, list[tuple[Encoded | DamagedSample, int]]]:
        """Returns the step, and (sample, epoch) for each of this rank's samples in it. `epoch` is the number of the
        pass over the sample's stratum.

        `direct` matters only for samples that the cache does not contain. If it is true, only their bytes are
        requested. Otherwise their whole segments, of about 4 MiB each, are fetched into the cache (`Reader.fetch`).
        """
        epochs, ids = self._share(step)
        return step, list(zip(self._library.fetch(ids, direct=direct), epochs.tolist(), strict=True))

    def warm(self, step: Step) -> None:
        self._library.warm(self._share(step)[1])

    def _share(self, step: Step) -> tuple[Ids, Ids]:
        """Returns the epochs and the ids of this rank's samples of a step; the ids count the samples of all datasets.

        An epoch is the number of the pass over the sample's stratum.
        """
        share = rank_slice(step.rows, self._stream.rank, self._stream.world_size)
        before = 0
        epochs, ids = [_NONE], [_NONE]
        for _, group in itertools.groupby(step.ranges, self._sorted_with):
            ranges = tuple(group)
            rows = sum(map(len, ranges))
            first, last = max(share.start - before, 0), min(share.stop - before, rows)
            before += rows
            if first < last:
                # The whole group is sorted before the rank takes its part, so the parts of all ranks lie one after
                # another in the shards.
                found = np.concatenate([self._ids(each) for each in ranges])
                place = np.argsort(found, kind="stable")[first:last]
                epochs.append(np.repeat([each.epoch for each in ranges], [len(each) for each in ranges])[place])
                ids.append(found[place])
        return np.concatenate(epochs), np.concatenate(ids)

    def _sorted_with(self, range_: PositionRange) -> tuple[int, int]:
        """Returns a key that is equal for the ranges whose samples are sorted together.

        These are all classes of a dataset. A pass over a whole dataset is sorted alone.
        """
        stratum = self._strata[range_.dataset]
        return stratum.dataset, range_.epoch if stratum.number == 0 else -1

    def _ids(self, range_: PositionRange) -> Ids:
        stratum = self._strata[range_.dataset]
        found = stratum.ids(self._orders[range_.dataset](range_.epoch), range_.start, range_.stop)
        return self._library.first(stratum.dataset) + found

    def _order(self, stratum: Stratum, epoch: int) -> Order:
        stream = self._stream
        return stratum.order(stream.seed, epoch, stream.window_samples, shuffle=stream.shuffle)


def _sound(
    rows: "Iterable[T | DamagedSample]", quarantine: SampleQuarantine
) -> "tuple[list[T], tuple[DamagedSample, ...]]":
    """Returns the undamaged samples among `rows`, and the damaged samples that `quarantine` had not recorded before."""
    samples: list[T] = []
    damaged: list[DamagedSample] = []
    for row in rows:
        if not isinstance(row, DamagedSample):
            samples.append(row)
        elif quarantine.admit(row):
            damaged.append(row)
    return samples, tuple(damaged)


def _named(places: Iterable[tuple[str, str]], *, at_most: int = 20) -> str:
    names = [f"{shard}/{key}" for shard, key in places]
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
