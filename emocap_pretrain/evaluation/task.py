"""Defines the protocol of an evaluation task.

A task computes scores from vectors. It reads no image and calls no collective: `run_tasks.py` computes the vectors that
the tasks need on all ranks, once for all tasks, and then calls `result` on rank 0 (decision 25). `tasks.py` lists the
tasks. docs/extend/task.md shows a whole task.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Protocol, runtime_checkable

from emocap_pretrain.benchmarks.card import TargetKind
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.parts import Part
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.results import TaskResult

SplitName = Literal["test", "train", "valid"]
"""The split whose examples are scored, the one on which a probe is trained, and the one on which choices are made."""


@runtime_checkable
class Task(Protocol):
    """Evaluates a trained model.

    Every rank constructs the task with the same settings. A task has no other state, because `prepare` and `result` may
    be called on different objects in different processes.
    """

    name: ClassVar[str]
    """The task's name in the settings, the report and the tracker: lower-case letters, digits and underscores."""

    about: ClassVar[str]
    """A description of the task in one line, for `emocap evaluate --list`."""

    charts: ClassVar[tuple[tuple[str, ...], ...]]
    """The charts in the tracker, each as the names of the scores in it. The most important chart comes first."""

    splits: ClassVar[tuple[SplitName, ...]]
    """The splits whose vectors the task needs. `test` is always among them."""

    targets: ClassVar[tuple[TargetKind, ...]]
    """The kinds of targets of a benchmark that the task can score; empty if it cannot score benchmarks."""

    reads_texts: ClassVar[bool]
    """Says whether the task needs vectors of texts, which an image tower alone does not have."""

    parts: ClassVar[tuple[Part, ...]]
    """The caption parts of the split `test` whose texts are encoded; empty if the task needs no captions."""

    def __init__(self, settings: EvaluationConfig) -> None: ...

    def prompts(self) -> Sequence[str]:
        """Returns the prompts that the settings define, so that the caller can report those that are too long.

        Captions of the dataset are not among them.
        """
        ...

    def prepare(self, sources: Mapping[SplitName, ExampleSource], *, seconds: float | None = None) -> Sequence[str]:
        """Checks that the settings fit the data, before training and on one rank.

        Args:
            sources: The examples of the task's splits.
            seconds: Reading may stop after this time; None reads everything.

        Returns:
            Notes for the user, one line each.

        Raises:
            ConfigError: If the settings do not fit the data.
            ShardsError: If the data cannot be read.
        """
        ...

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:
        """Computes the scores from the vectors of the task's splits. Only rank 0 calls it.

        Args:
            embedder: The model, for the vectors of prompts.
            features: The vectors of the task's splits.

        Raises:
            ConfigError: If the data do not fit the settings.
        """
        ...


@runtime_checkable
class LearningTask(Task, Protocol):
    """A task that also reads labels of other splits than `test`, from which it learns or chooses something.

    Examples of these splits that lack the label are counted in its result.
    """

    def count_labelled(self, features: Features) -> int:
        """Returns the number of examples of a split that have the labels which the task reads."""
        ...


@runtime_checkable
class MapTask(Task, Protocol):
    """A task that also needs the attention maps of the split `test` (`Features.maps`).

    The model must have been trained with local sentences (`Embedder.has_maps`), and the central square of each image
    must be read.
    """

    needs_maps: ClassVar[Literal[True]]


@runtime_checkable
class LocalLossTask(Task, Protocol):
    """A task that also needs the local loss of the split `test` (`Features.local_loss`).

    It is computed only for a model that was trained with local sentences. The split must not have gaps.
    """

    needs_local_loss: ClassVar[Literal[True]]
    settings: EvaluationConfig
    """`loss_batch` is the number of faces of a batch."""
