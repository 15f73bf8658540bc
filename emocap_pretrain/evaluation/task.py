"""The protocol of an evaluation task, and how a task runs on all ranks.

    prepare   before training, on one rank: settings and data are compared
    run       on every rank: its share of the data becomes parts
    result    on rank 0: the parts of all ranks, in the order of the data, become scores

A task calls no collective: `run_task` gathers the parts. So a task that fails on one rank ends all of them with its
message, and no rank waits for another.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

from emocap_shards.sample import Sample
from emocap_shards.stream import Stream

from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.evaluation.embedder import Embedder
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.results import TaskResult

Part = TypeVar("Part")

_NONE = object()


@dataclass(frozen=True, slots=True)
class Share:
    """The part of the evaluation data that one rank reads: every `world_size`-th batch, beginning with number `rank`.

    A batch holds the same samples on any number of ranks. The vectors of a batch depend on its size in their last bits
    (a matrix product is tiled by it), so this is why the results do not depend on the number of ranks. Where there are
    more ranks than batches, some ranks have none.
    """

    rank: int = 0
    world_size: int = 1

    def batches(self, url: str, size: int, each: Callable[[Sample], Sample]) -> Iterator[list[Sample]]:
        """This rank's batches of `size` samples of the dataset at `url`, in the dataset's order.

        `each` is applied to a sample as soon as it is decoded: `Embedder.cropped` makes it small.
        """
        stream = Stream(url=url, global_batch=size, shuffle=False, epochs=1)
        for portion in stream.steps(self.rank, self.world_size, each=each):
            yield portion.samples


@runtime_checkable
class Task(Protocol[Part]):
    """One evaluation of a trained model; `Part` is what it makes of one batch, a value that can be pickled."""

    name: ClassVar[str]
    """The name in the settings, the report and the tracker: lower-case letters, digits and underscores."""

    about: ClassVar[str]
    """One line for `emocap evaluate --list`."""

    def __init__(self, settings: EvaluationConfig) -> None: ...

    def prompts(self) -> Sequence[str]:
        """The texts of its own that the task embeds, as far as the settings name them; captions are not among them."""
        ...

    def prepare(self, *, seconds: float | None = None) -> Sequence[str]:
        """Compares the settings with the data, before training and on one rank.

        Args:
            seconds: Reading may stop after this time; None reads what there is to read.

        Returns:
            Notes for the user, one line each.

        Raises:
            ConfigError: If the settings do not fit the data.
            ShardsError: If the data cannot be read.
        """
        ...

    def run(self, embedder: Embedder, share: Share) -> Iterable[Part]:
        """Gives one part for each batch of this rank's share, also for a batch of which the task uses no sample."""
        ...

    def result(self, embedder: Embedder, parts: Sequence[Part]) -> TaskResult:
        """Computes the scores from the parts of all batches, in the order of the data; rank 0 alone.

        Raises:
            ConfigError: If the data turn out not to fit the settings.
        """
        ...


def run_task(task: Task[Part], embedder: Embedder, world: RankGroup) -> TaskResult:
    """Runs a task on all ranks and gives its result on every rank; a collective.

    Raises:
        LostContact: On the other ranks, if one rank has failed.
    """
    share = Share(world.rank, world.world_size)
    parts = world.run_on_all(lambda: list(task.run(embedder, share)))
    return world.run_on_main(lambda: task.result(embedder, _in_order(parts)))


def _in_order(parts: Sequence[Sequence[Part]]) -> list[Part]:
    """The parts of all ranks in the order of the batches, which were dealt out in turn."""
    rounds = zip_longest(*parts, fillvalue=_NONE)
    return [part for each in rounds for part in each if part is not _NONE]  # pyright: ignore[reportReturnType]
