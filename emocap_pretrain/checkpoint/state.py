"""Defines the values that a checkpoint's manifest stores for the training loop.

These values are the part of the state that is small and equal on all ranks. They contain no state of a random number
generator, because all random numbers are functions of the seed, the step and the sample (decision 2).
`training/session.py` writes these values, and an evaluation reads the config in them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emocap_pretrain.checkpoint.manifest import Checkpoint
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.run_folder.results import Count, Finite
from emocap_pretrain.run_folder.storage import DocumentKind


@dataclass(frozen=True, slots=True)
class Progress:
    """Holds the seconds of training so far, over all attempts, and the metrics that were logged last (`row`)."""

    seconds: Finite = 0.0
    row: Mapping[str, Finite] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class GuardState:
    """Holds the state of the loss guard, which leaves out updates with a bad loss.

    Args:
        losses: The last losses, oldest first.
        skipped: The steps whose update was left out, each with the reason. They count towards `health.max_skips`.
        overflowed: Those last steps in a row whose update was left out because a gradient overflowed in fp16. They do
            not count towards `health.max_skips`.
    """

    losses: tuple[Finite, ...] = ()
    skipped: tuple[tuple[Count, str], ...] = ()
    overflowed: tuple[Count, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Holds all values that training needs to continue from a checkpoint, besides the checkpoint's files.

    Args:
        config: The settings, as `config.stored.dump` writes them.
        cursor: Position at which the data stream continues, as `Cursor.to_json` writes it.
        data_digest: Digest of the datasets' manifests. A run resumes only with data of the same digest, because the
            cursor counts samples of these data.
        engine: How the optimizer state is laid out in the files, as `Layout.to_json` writes it.
        guard: State of the loss guard.
        progress: Time and metrics so far.
        run_id: MLflow's id of the run.
        text_architecture: Configuration of a pretrained text tower, so that an evaluation needs no download from a
            hub; None for any other text tower.
        class_counts: Number of training samples of each class, in the order of the classes, by the name of the label;
            only labels whose classes are balanced are counted.
    """

    config: dict[str, Any]
    cursor: dict[str, Any]
    data_digest: str
    engine: dict[str, Any]
    guard: GuardState = GuardState()
    progress: Progress = Progress()
    run_id: str = ""
    text_architecture: dict[str, Any] | None = None
    class_counts: Mapping[str, tuple[Finite, ...]] = field(default_factory=dict[str, tuple[float, ...]])


STATE = DocumentKind(TrainingState)


def state_of(checkpoint: Checkpoint) -> TrainingState:
    """Returns the training state that the checkpoint's manifest stores.

    Raises:
        CheckpointError: If this version of the package cannot read the state.
    """
    try:
        return STATE.of(checkpoint.state)
    except ValueError as error:
        raise CheckpointError(
            f"training cannot continue from the checkpoint of step {checkpoint.step}: {error}; use the version that "
            "wrote it."
        ) from error
