"""Plans which samples form each step, and which samples of a step belong to each rank, without any I/O.

A plan yields steps as ranges of positions. The module `order` turns positions into samples, and `rank_slice` returns
the rows of a step that belong to a rank. So all ranks and all loader processes compute the same steps, without sending
messages to each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from emocap_shards.cursor import Cursor
from emocap_shards.errors import PlanError


@dataclass(frozen=True, slots=True)
class PositionRange:
    """Positions [start, stop) of one pass over one dataset.

    `dataset` is the index of the dataset in a mixture, or 0 without a mixture. `epoch` is the number of the pass,
    counted from 0.
    """

    dataset: int
    epoch: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Step:
    """One global batch: the ranges of its samples, and the cursor of the stream after this step."""

    ranges: tuple[PositionRange, ...]
    after: Cursor

    @property
    def rows(self) -> int:
        return sum(map(len, self.ranges))


@runtime_checkable
class StepPlan(Protocol):
    """Divides all samples of a run into steps. A plan is a value without state."""

    def steps(self, start: Cursor) -> Iterator[Step]:
        """Yields the steps that follow a cursor. Its position need not be a multiple of the global batch.

        Raises:
            PlanError: If the plan has no step at all, or the cursor lies after the end of its epoch.
        """
        ...


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """Plans the steps of passes (epochs) over one dataset. No step contains samples of two epochs.

    If the last step of an epoch is not full, it is left out if `drop_last` is set. Otherwise it is a smaller step.

    Args:
        samples: Number of samples in an epoch.
        global_batch: Number of samples in a step, over all ranks.
        drop_last: Whether to leave out the last step of an epoch if it is not full.
        epochs: The plan ends after this number of epochs, counted from epoch 0. With None, it never ends.

    Example:
        ```python
        plan = EpochPlan(samples=10, global_batch=4, epochs=1)
        [step.rows for step in plan.steps(Cursor())]  # [4, 4, 2]
        ```
    """

    samples: int
    global_batch: int
    drop_last: bool = False
    epochs: int | None = None

    def steps(self, start: Cursor) -> Iterator[Step]:
        check_cursor(start, self.samples)
        if steps_per_epoch(self.samples, self.global_batch, drop_last=self.drop_last) == 0:
            cure = f"set global_batch to at most {self.samples}, or drop_last to false"
            raise PlanError(
                f"{self.samples} samples do not fill a step of global_batch={self.global_batch} with drop_last; {cure}."
            )
        epoch, position = start.epoch, start.position
        while self.epochs is None or epoch < self.epochs:
            while (stop := self._stop(position)) is not None:
                # After the last step of an epoch the cursor is at the start of the next one, so that the same position
                # has one cursor.
                ends = self._stop(stop) is None
                after = Cursor(epoch + 1, 0) if ends else Cursor(epoch, stop)
                yield Step((PositionRange(0, epoch, position, stop),), after)
                position = stop
            epoch, position = epoch + 1, 0

    def _stop(self, position: int) -> int | None:
        """Returns the end of the step that begins at `position`, or None if no step is left in the epoch."""
        stop = min(position + self.global_batch, self.samples)
        short = stop - position < self.global_batch
        return None if stop == position or (short and self.drop_last) else stop


def steps_per_epoch(samples: int, global_batch: int, *, drop_last: bool) -> int:
    """Returns the number of steps in a complete epoch.

    Raises:
        PlanError: If `global_batch` is not positive.
    """
    if global_batch < 1:
        raise PlanError(f"global_batch={global_batch}, but a step takes at least one sample.")
    return samples // global_batch if drop_last else -(-samples // global_batch)


def rank_slice(rows: int, rank: int, world_size: int) -> slice:
    """Returns the contiguous part of a step's rows that belongs to a rank. `rows` is the number of rows in the step.

    The numbers of rows of two ranks differ by at most one. If `rows` is less than `world_size`, some ranks have no
    rows. The training code divides its batch in the same way (decision 18).

    Raises:
        PlanError: If `rank` is not below `world_size`.
    """
    if not 0 <= rank < world_size:
        raise PlanError(f"rank={rank} of world_size={world_size}: ranks count from 0 to world_size - 1.")
    return slice(rows * rank // world_size, rows * (rank + 1) // world_size)


def passes(dataset: int, start: int, stop: int, samples: int) -> Iterator[PositionRange]:
    """Divides positions [start, stop) into ranges, one for each pass over a dataset, and yields these ranges.

    `start` and `stop` count the samples of all passes, from the beginning of the first pass. For example, if a pass has
    10 samples, 12 is position 2 of the second pass. `samples` is the number of samples in a pass, and `dataset` is the
    index of the dataset.
    """
    while start < stop:
        epoch, position = divmod(start, samples)
        end = min(stop, (epoch + 1) * samples)
        yield PositionRange(dataset, epoch, position, position + end - start)
        start = end


def check_cursor(start: Cursor, samples: int) -> None:
    """Checks that a cursor lies within an epoch of `samples` samples.

    Raises:
        PlanError: If the cursor lies after the end of the epoch.
    """
    if start.position > samples:
        raise PlanError(f"{start} lies after the {samples} samples of an epoch; is this another dataset?")
