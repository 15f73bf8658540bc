"""Which sample comes when, and on which rank: pure functions of seed, epoch and position.

An epoch is one order of all sample ids, block-shuffled: the shards are shuffled, and then the samples within each
window of `window_shards` consecutive shards. World size, ranks and workers do not occur in it.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from emocap_shards.cursor import Cursor
from emocap_shards.errors import PlanError

Ids = Int64[np.ndarray, " samples"]


@dataclass(frozen=True)
class Order:
    """The canonical order of one epoch over shards of `counts` samples. Nothing is evaluated before it is asked for."""

    counts: tuple[int, ...]
    seed: int
    epoch: int
    window_shards: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.window_shards < 1 or self.seed < 0:
            raise PlanError(f"window_shards={self.window_shards}, seed={self.seed}: at least 1 shard, and no seed < 0.")

    def ids(self, start: int, stop: int) -> Ids:
        """Sample ids at positions [start, stop) of the epoch; only the windows that these touch are evaluated.

        Raises:
            PlanError: If the positions are not within the epoch.
        """
        samples = int(self._firsts[-1])
        if not 0 <= start <= stop <= samples:
            raise PlanError(f"positions [{start}, {stop}) do not lie within an epoch of {samples} samples.")
        if not self.shuffle or start == stop:
            return np.arange(start, stop, dtype=np.int64)
        bounds = self._window_bounds
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        last = int(np.searchsorted(bounds, stop, side="left"))
        ids = np.concatenate([self.window(number) for number in range(first, last)])
        return ids[start - bounds[first] : stop - bounds[first]]

    def window(self, number: int) -> Ids:
        """All sample ids of one window, shuffled."""
        shards = self._windows[number]
        ids = np.concatenate([np.arange(*self._firsts[shard : shard + 2].tolist()) for shard in shards])
        return ids[permutation(self.seed, self.epoch, number + 1, len(ids))]

    @functools.cached_property
    def _firsts(self) -> Ids:
        """First sample id of every shard, and the number of samples behind them."""
        return np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    @functools.cached_property
    def _windows(self) -> list[Ids]:
        order = permutation(self.seed, self.epoch, 0, len(self.counts))
        return [order[start : start + self.window_shards] for start in range(0, len(order), self.window_shards)]

    @functools.cached_property
    def _window_bounds(self) -> Ids:
        """First position of every window, and the end of the epoch."""
        counts = np.asarray(self.counts)
        return np.concatenate([[0], np.cumsum([counts[shards].sum() for shards in self._windows])]).astype(np.int64)


@functools.lru_cache(maxsize=8)
def permutation(seed: int, epoch: int, block: int, size: int) -> Ids:
    """A permutation of range(size) that depends on nothing but its arguments.

    It sorts raw bits, because numpy keeps those stable over its versions, and not what `Generator` makes of them.
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch, block]))
    order = np.argsort(bits.random_raw(size), kind="stable")
    order.flags.writeable = False
    return order


@dataclass(frozen=True, slots=True)
class Step:
    """Positions [start, stop) of an epoch are one global batch; `after` is where the stream stands behind it."""

    epoch: int
    start: int
    stop: int
    after: Cursor


def steps_from(
    start: Cursor, *, samples: int, global_batch: int, drop_last: bool, epochs: int | None = None
) -> Iterator[Step]:
    """The steps behind a cursor; the last of an epoch takes the remainder, or is dropped.

    Args:
        start: May stand at any position, also one that is no multiple of `global_batch`.
        samples: In an epoch.
        global_batch: Samples in a step, over all ranks.
        drop_last: Drops exactly the remainder.
        epochs: Ends before this epoch; None goes on for ever.

    Raises:
        PlanError: If no step would ever come, or the cursor stands behind the end of its epoch.
    """
    if start.position > samples:
        raise PlanError(f"{start} stands behind the {samples} samples of an epoch; is this another dataset?")
    if steps_per_epoch(samples, global_batch, drop_last=drop_last) == 0:
        cure = f"set global_batch to at most {samples}, or drop_last to false"
        raise PlanError(f"{samples} samples make no step of global_batch={global_batch} with drop_last; {cure}.")
    usable = functools.partial(_usable_stop, samples=samples, global_batch=global_batch, drop_last=drop_last)
    epoch, position = start.epoch, start.position
    while epochs is None or epoch < epochs:
        while (stop := usable(position)) is not None:
            ends = usable(stop) is None
            yield Step(epoch, position, stop, Cursor(epoch + 1, 0) if ends else Cursor(epoch, stop))
            position = stop
        epoch, position = epoch + 1, 0


def _usable_stop(position: int, *, samples: int, global_batch: int, drop_last: bool) -> int | None:
    """Where the step at `position` ends, or None if there is none left in the epoch."""
    stop = min(position + global_batch, samples)
    short = stop - position < global_batch
    return None if stop == position or (short and drop_last) else stop


def steps_per_epoch(samples: int, global_batch: int, *, drop_last: bool) -> int:
    """Steps of a whole epoch.

    Raises:
        PlanError: If `global_batch` is not positive.
    """
    if global_batch < 1:
        raise PlanError(f"global_batch={global_batch}, but a step takes at least one sample.")
    return samples // global_batch if drop_last else -(-samples // global_batch)


def rank_slice(rows: int, rank: int, world: int) -> slice:
    """The rank's contiguous share of `rows`; shares differ by at most one row, and some are empty if rows < world.

    Raises:
        PlanError: If there is no such rank.
    """
    if not 0 <= rank < world:
        raise PlanError(f"rank={rank} of world={world}: ranks count from 0 to world - 1.")
    return slice(rows * rank // world, rows * (rank + 1) // world)
