"""What a checkpoint's manifest keeps for the training loop, as a value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emocap_pretrain.checkpoint.manifest import Checkpoint
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.run_folder.documents import Count, Number
from emocap_pretrain.run_folder.storage import Kind


@dataclass(frozen=True, slots=True)
class Progress:
    """Seconds of training so far, over all attempts, and the row that was read last."""

    seconds: Number = 0.0
    row: Mapping[str, Number] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class GuardState:
    """What `health.Guard` has seen: the last losses, and the steps that were left out, each with the reason."""

    losses: tuple[Number, ...] = ()
    skipped: tuple[tuple[Count, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingState:
    """All that training needs beside the files to continue from a checkpoint.

    Args:
        config: The settings, as `config.stored.dump` writes them.
        cursor: Where the data stream continues; `Cursor.to_json`.
        data_digest: Of the datasets' manifests.
        engine: How the optimizer state lies in the files; `Layout.to_json`.
        run_id: MLflow's name for the run.
        text_architecture: Of a pretrained text tower, so that an evaluation needs no hub.
    """

    config: dict[str, Any]
    cursor: dict[str, Any]
    data_digest: str
    engine: dict[str, Any]
    guard: GuardState = GuardState()
    progress: Progress = Progress()
    run_id: str = ""
    text_architecture: dict[str, Any] | None = None


STATE = Kind(TrainingState)


def state_of(checkpoint: Checkpoint) -> TrainingState:
    """What the manifest keeps for training.

    Raises:
        CheckpointError: If it is not what this version can continue from.
    """
    try:
        return STATE.of(checkpoint.state)
    except ValueError as error:
        raise CheckpointError(
            f"training cannot continue from the checkpoint of step {checkpoint.step}: {error}; use the version that "
            "wrote it."
        ) from error
