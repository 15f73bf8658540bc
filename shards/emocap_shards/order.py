"""The canonical order of one pass over a dataset: a pure function of (seed, epoch, position).

The shards are shuffled, and then the samples within each window: consecutive shards that begin within the same
`window_samples` of the shuffled sequence. World size, ranks and workers do not occur in it.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from emocap_shards.errors import PlanError

Ids = Int64[np.ndarray, " samples"]


class ShardLayout:
    """Where the samples of each shard stand when all shards are laid end to end."""

    def __init__(self, counts: Sequence[int] | Ids) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.firsts = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    @property
    def samples(self) -> int:
        return int(self.firsts[-1])

    def shard_of(self, ids: Ids) -> Ids:
        """The number of the shard that holds each sample."""
        return np.searchsorted(self.firsts, ids, side="right").astype(np.int64) - 1


@dataclass(frozen=True)
class Order:
    """One epoch over a layout. Nothing is evaluated before it is asked for, and the last two windows are kept."""

    layout: ShardLayout
    seed: int
    epoch: int
    window_samples: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.window_samples < 1 or self.seed < 0:
            raise PlanError(f"window_samples={self.window_samples}, seed={self.seed}: at least 1, and no seed < 0.")

    def ids(self, start: int, stop: int) -> Ids:
        """Sample ids at positions [start, stop); only the windows that these touch are evaluated.

        Raises:
            PlanError: If the positions are not within the epoch.
        """
        if not 0 <= start <= stop <= self.layout.samples:
            raise PlanError(f"positions [{start}, {stop}) do not lie within an epoch of {self.layout.samples} samples.")
        if not self.shuffle or start == stop:
            return np.arange(start, stop, dtype=np.int64)
        _, bounds = self._windows
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        last = int(np.searchsorted(bounds, stop, side="left"))
        ids = np.concatenate([self.window(number) for number in range(first, last)])
        return ids[start - bounds[first] : stop - bounds[first]]

    @functools.cached_property
    def window(self) -> Callable[[int], Ids]:
        """Number of a window -> all its sample ids, shuffled."""
        return functools.lru_cache(maxsize=2)(self._window)

    def _window(self, number: int) -> Ids:
        shards, firsts = self._windows[0][number], self.layout.firsts
        ids = np.concatenate([np.arange(*firsts[shard : shard + 2].tolist()) for shard in shards])
        return ids[permutation(self.seed, self.epoch, number + 1, len(ids))]

    @functools.cached_property
    def _windows(self) -> tuple[list[Ids], Ids]:
        """The shards of every window; the first position of every window, and the end of the epoch."""
        order = permutation(self.seed, self.epoch, 0, len(self.layout.counts))
        begins = np.cumsum(self.layout.counts[order]) - self.layout.counts[order]
        _, heads = np.unique(begins // self.window_samples, return_index=True)
        return np.split(order, heads[1:]), np.append(begins[heads], self.layout.samples)


def permutation(seed: int, epoch: int, block: int, size: int) -> Ids:
    """A permutation of range(size) that depends on nothing but its arguments.

    It sorts raw bits, because numpy keeps those stable over its versions, and not what `Generator` makes of them.
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch, block]))
    return np.argsort(bits.random_raw(size), kind="stable")
