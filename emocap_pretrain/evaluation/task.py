"""Defines the protocol of an evaluation task, and runs a task on all ranks.

    prepare   before training, on one rank: checks that settings and data fit
    run       on every rank: computes a partial result for each batch of its share of the data
    result    on rank 0: computes the scores from the partial results of all ranks, in the order of the data

A task calls no collective itself; `run_task` gathers the partial results. Therefore, if a task fails on one rank, all
ranks raise an error with the message of the failure, and no rank waits for another (decision 25).

`tasks.py` lists the tasks and runs those of a config. docs/extend/task.md shows a whole task.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

from emocap_shards.sample import Sample
from emocap_shards.stream import Stream

from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.results import TaskResult

Part = TypeVar("Part")

_NONE = object()  # Marks a place without a partial result. A partial result itself may be None.


@dataclass(frozen=True, slots=True)
class Share:
    """Defines the evaluation data that one rank reads: every `world_size`-th batch, beginning with batch `rank`.

    The samples of a batch do not depend on the number of ranks. This is necessary because the last bits of a vector may
    depend on the size of its batch. So the results do not depend on the number of ranks. If there are more ranks than
    batches, some ranks read none.
    """

    rank: int = 0
    world_size: int = 1

    def batches(self, url: str, size: int, each: Callable[[Sample], Sample]) -> Iterator[list[Sample]]:
        """Yields this rank's batches, in the order of the dataset.

        Args:
            url: URL of the dataset.
            size: Number of samples of a batch.
            each: Function that is applied to each sample as soon as it is decoded. Tasks pass `Embedder.cropped`, which
                saves memory because it reduces the image to the size that the tower reads.
        """
        stream = Stream(url=url, global_batch=size, shuffle=False, epochs=1)
        for step in stream.steps(self.rank, self.world_size, each=each):
            yield step.samples


@runtime_checkable
class Task(Protocol[Part]):
    """Evaluates a trained model. `Part` is the type of a partial result: the task's result for one batch.

    Every rank constructs the task with the same settings. A task has no other state, because `prepare`, `run` and
    `result` may be called on different objects in different processes. Partial results must be picklable, and those of
    all ranks together must fit into the memory of each rank.
    """

    name: ClassVar[str]
    """The task's name in the settings, the report and the tracker: lower-case letters, digits and underscores."""

    about: ClassVar[str]
    """A description of the task in one line, for `emocap evaluate --list`."""

    charts: ClassVar[tuple[tuple[str, ...], ...]]
    """The charts in the tracker, each as the names of the scores in it. The most important chart comes first."""

    def __init__(self, settings: EvaluationConfig) -> None: ...

    def prompts(self) -> Sequence[str]:
        """Returns the prompts that the settings define, so that the caller can report those that are too long.

        Captions of the dataset are not among them.
        """
        ...

    def prepare(self, *, seconds: float | None = None) -> Sequence[str]:
        """Checks that the settings fit the data, before training and on one rank.

        Args:
            seconds: Reading may stop after this time; None reads everything.

        Returns:
            Notes for the user, one line each.

        Raises:
            ConfigError: If the settings do not fit the data.
            ShardsError: If the data cannot be read.
        """
        ...

    def run(self, embedder: Embedder, share: Share) -> Iterable[Part]:
        """Yields one partial result for each batch of this rank's share, also for a batch of which it uses no sample.

        No partial result may be left out: `run_task` assumes that the n-th partial result of a rank belongs to its n-th
        batch, and restores the order of the data from this. A partial result must not contain sums over several
        batches, because the batches of a rank, and so the rounding of such sums, depend on the number of ranks.
        `result` computes these sums.
        """
        ...

    def result(self, embedder: Embedder, parts: Sequence[Part]) -> TaskResult:
        """Computes the scores from the partial results of all batches, in the order of the data. Only rank 0 calls it.

        Raises:
            ConfigError: If the dataset does not fit the settings.
        """
        ...


def run_task(task: Task[Part], embedder: Embedder, world: RankGroup) -> TaskResult:
    """Runs a task on all ranks and returns its result on every rank. All ranks must call this function.

    The function consists of two collectives: the first gathers the partial results and the errors of all ranks, and the
    second sends the result of rank 0 to all ranks. A rank without batches waits in the first one, so `world` should be
    a group with a long timeout (`RankGroup.patient`).

    If the task fails on a rank, that rank raises its own error. Each rank that has not failed raises one of the errors
    below.

    Raises:
        ConfigError: If the error of the failed rank is a `ConfigError`. The message is the same.
        LostContact: If the failed rank has raised any other error.
    """
    share = Share(world.rank, world.world_size)
    parts = world.run_on_all(lambda: list(task.run(embedder, share)))
    return world.run_on_main(lambda: task.result(embedder, _in_order(parts)))


def _in_order(parts: Sequence[Sequence[Part]]) -> list[Part]:
    """Returns the partial results in the order of the batches: `parts[r]` are those of batches r, r + world_size, ...

    >>> _in_order([["batch 0", "batch 2"], ["batch 1"]])
    ['batch 0', 'batch 1', 'batch 2']
    """
    rounds = zip_longest(*parts, fillvalue=_NONE)
    return [part for each in rounds for part in each if part is not _NONE]  # pyright: ignore[reportReturnType]
