"""Mixes several datasets in fixed shares: decides for each position which dataset provides the sample.

The method is the chairman assignment (Tijdeman 1980). A dataset with the share s is entitled to s * p of the first p
samples, and the number of samples that it provides differs from this by at most one. Each dataset has a deadline: the
position by which it must provide its next sample. One dataset is chosen for each position, as follows. The number of
samples that a dataset has provided before the position is compared with the number to which it is entitled after the
position. With n datasets, a dataset is a candidate if it lacks at least 1 / (2 * n - 2) of a sample. The candidate with
the earliest deadline is chosen.

The sequence of datasets repeats after `ROUND` positions, which form a round. So the dataset at position p is computed
from p alone, and a run resumes without any other state.

In this module, `dataset` is the index of a dataset in the mixture.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from jaxtyping import Int64

from emocap_shards.cursor import Cursor
from emocap_shards.errors import PlanError
from emocap_shards.plan import PositionRange, Step, check_cursor, passes

ROUND = 1 << 12


@dataclass(frozen=True)
class MixturePlan:
    """Plans steps of `global_batch` samples from several datasets.

    There are two kinds of epochs. Each dataset has its own epochs: all of its samples are used once before one is used
    again. The position in the mixture (`Cursor`) counts other epochs: an epoch of the cursor has as many samples as all
    datasets together. A step may contain samples of two epochs of the cursor. So only the last step of the plan can be
    smaller than `global_batch`.

    Args:
        samples: Number of samples of each dataset.
        weights: Share of each dataset, positive; their sum does not matter. The plan uses shares that are multiples of
            1 / `ROUND`, and at least 1 / `ROUND`.
        global_batch: Number of samples in a step, over all ranks.
        epochs: The plan ends after this number of epochs of the cursor, counted from epoch 0, with a smaller last step
            if needed. With None, the plan never ends.

    Example:
        ```python
        plan = MixturePlan(samples=(1000, 200), weights=(3.0, 1.0), global_batch=4)
        plan.given(4)  # [3, 1]: three of the first four samples come from the first dataset
        ```
    """

    samples: tuple[int, ...]
    weights: tuple[float, ...]
    global_batch: int
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.global_batch < 1 or len(self.samples) != len(self.weights) or min(self.samples) < 1:
            raise PlanError(f"{self}: a mixture needs a weight for each dataset, and steps of one sample or more.")
        if not all(weight > 0 and np.isfinite(weight) for weight in self.weights):
            raise PlanError(f"weights={self.weights}: every weight is a number above 0; leave out a dataset instead.")

    def steps(self, start: Cursor) -> Iterator[Step]:
        epoch = sum(self.samples)
        check_cursor(start, epoch)
        end = None if self.epochs is None else self.epochs * epoch
        for position in count(start.epoch * epoch + start.position, self.global_batch):
            if end is not None and position >= end:
                return
            stop = position + self.global_batch if end is None else min(position + self.global_batch, end)
            yield Step(tuple(self.ranges(position, stop)), Cursor(*divmod(stop, epoch)))

    def ranges(self, start: int, stop: int) -> Iterator[PositionRange]:
        """Yields ranges of positions in each dataset, one dataset after the other.

        Together they hold the samples at positions [start, stop) of the mixture.
        """
        for dataset, (first, last) in enumerate(zip(self.given(start), self.given(stop), strict=True)):
            yield from passes(dataset, first, last, self.samples[dataset])

    def given(self, position: int) -> list[int]:
        """Returns the number of samples that each dataset has provided before a position of the mixture."""
        # The last row of `_turns` counts a full round, so all earlier rounds are a multiple of it.
        rounds, rest = divmod(position, ROUND)
        return (rounds * self._turns[-1] + self._turns[rest]).tolist()

    @functools.cached_property
    def _turns(self) -> Int64[np.ndarray, "turns datasets"]:
        """The number of samples that each dataset has provided before each position of a round.

        A round has `ROUND` positions, after which the sequence of datasets repeats. The last row counts the samples of
        a full round.
        """
        parts = np.array(apportioned(self.weights, ROUND))
        given = np.zeros((ROUND + 1, len(parts)), dtype=np.int64)
        slack = max(2 * len(parts) - 2, 1)
        for turn in range(1, ROUND + 1):
            # How many samples a dataset still owes, in units of 1 / (slack ROUND). Integers, so equal on every machine.
            owed = slack * (parts * turn - ROUND * given[turn - 1])
            # Tijdeman's rule: a dataset may have the turn if it is owed 1 / (2 n - 2) of a sample or more. Its deadline
            # is the turn by which it would be owed 1 - 1 / (2 n - 2); the earliest one wins, the first dataset among
            # equals.
            deadline = np.where(owed >= ROUND, (slack * ROUND - ROUND - owed) / parts, np.inf)
            given[turn] = given[turn - 1]
            given[turn, int(np.argmin(deadline))] += 1
        return given


def apportioned(weights: Sequence[float], seats: int) -> list[int]:
    """Returns one integer for each weight, about in proportion to the weights. The sum of the integers is `seats`.

    The method is that of the largest remainders, by which parliaments distribute their seats among parties. Each
    integer is at least 1.

    Raises:
        PlanError: If there are more weights than seats.
    """
    if len(weights) > seats:
        raise PlanError(f"{len(weights)} datasets are too many; a mixture takes at most {seats}.")
    # Every weight gets one seat. The other seats are shared in proportion to the exact shares, less that first seat.
    free = seats - len(weights)
    exact = np.asarray(weights, dtype=np.float64) / np.sum(weights) * seats
    above = np.maximum(exact - 1, 0)
    quotas = above / above.sum() * free if above.sum() else np.full(len(weights), free / len(weights))
    parts = np.floor(quotas).astype(np.int64)
    # The seats that rounding down has left go to the largest remainders.
    leftover = np.argsort(parts - quotas, kind="stable")[: free - int(parts.sum())]
    parts[leftover] += 1
    return (parts + 1).tolist()
