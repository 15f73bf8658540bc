"""Defines the canonical order of one pass over a dataset: a pure function of (seed, epoch, position).

First the shards are shuffled and laid end to end, which gives a sequence of samples. This sequence is divided into
intervals of `window_samples` samples. The shards that begin in the same interval form a window, with all their samples.
Then the samples are shuffled within each window. The order does not depend on world size, rank or workers.

The samples at some positions are computed only from the windows of these positions, so resuming late in an epoch costs
as much as resuming early. Only the ids of samples are shuffled; no file is read here. A test pins the order,
because a run that resumes after an update of this package must continue with the same samples.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from emocap_shards.errors import PlanError

Ids = Int64[np.ndarray, " samples"]


class ShardLayout:
    """The first position and the number of samples of each shard when all shards are laid end to end."""

    def __init__(self, counts: Sequence[int] | Ids) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.firsts = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    @property
    def samples(self) -> int:
        return int(self.firsts[-1])

    def shard_of(self, ids: Ids) -> Ids:
        """Returns, for each sample, the number of the shard that holds it."""
        return np.searchsorted(self.firsts, ids, side="right").astype(np.int64) - 1


@dataclass(frozen=True)
class Order:
    """The order of the samples of a layout in one epoch. Without `shuffle`, it is the order of the layout.

    The shuffled windows are computed when they are needed, and the last two are kept.

    Example:
        ```python
        order = Order(ShardLayout([1000] * 64), seed=0, epoch=3, window_samples=1 << 14)
        order.ids(4096, 8192)  # the sample ids of the second step of 4,096
        ```
    """

    layout: ShardLayout
    seed: int
    epoch: int
    window_samples: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.window_samples < 1 or self.seed < 0:
            rule = "a window holds at least 1 sample, and a seed is 0 or more"
            raise PlanError(f"window_samples={self.window_samples}, seed={self.seed}: {rule}.")

    def ids(self, start: int, stop: int) -> Ids:
        """Returns the sample ids at positions [start, stop) of the epoch.

        Only the windows of these positions are computed.

        Raises:
            PlanError: If the positions do not lie within the epoch.
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
        """A function that returns the shuffled sample ids of the window with a given number.

        The function caches its last two results. Each `Order` has its own cache.
        """
        return functools.lru_cache(maxsize=2)(self._window)

    def _window(self, number: int) -> Ids:
        shards, firsts = self._windows[0][number], self.layout.firsts
        ids = np.concatenate([np.arange(*firsts[shard : shard + 2].tolist()) for shard in shards])
        return ids[permutation(self.seed, self.epoch, number + 1, len(ids))]

    @functools.cached_property
    def _windows(self) -> tuple[list[Ids], Ids]:
        """The shards of every window, and the positions at which the windows begin.

        The last entry of the positions is the end of the epoch.
        """
        # Block 0 is the order of the shards; window n shuffles its samples with block n + 1.
        order = permutation(self.seed, self.epoch, 0, len(self.layout.counts))
        begins = np.cumsum(self.layout.counts[order]) - self.layout.counts[order]
        # A window holds the shards that begin between two cuts, and all of their samples. A shard that is longer than a
        # window leaves cuts in which no shard begins; those give no window.
        _, heads = np.unique(begins // self.window_samples, return_index=True)
        return np.split(order, heads[1:]), np.append(begins[heads], self.layout.samples)


def permutation(seed: int, epoch: int, block: int, size: int) -> Ids:
    """Returns a permutation of range(size) that depends on the arguments alone.

    `block` distinguishes the permutations of an epoch: 0 is the permutation of the shards, and n + 1 is that of the
    samples in window n. A bit generator draws one raw random integer for each place, and the permutation is the order
    that sorts these integers. NumPy guarantees that later versions of a bit generator return the same integers, but
    gives no such guarantee for the methods of `Generator`.
    """
    # The sort is stable, so equal integers keep their order, and the result is the same on every machine.
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch, block]))
    return np.argsort(bits.random_raw(size), kind="stable")
