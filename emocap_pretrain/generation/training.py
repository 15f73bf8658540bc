"""Trains the projector of a captioner on all ranks with the engine of `training/`, and resumes after an interruption.

The engine trains the projector alone (`ImageTokens`); the frozen language model is a part of the objective. So the
optimizer, the learning rate, the loss scale of fp16 and the checkpoints are those of a run (decision 39).

The images of a step, their captions and the learning rate follow from the settings and the number of the step alone. So
a training that was resumed computes the same bits as one without an interruption, if both use the same numbers of ranks
and threads.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from emocap_kernels.distributed.ranks import ranks_of
from emocap_kernels.distributed.reductions import sum_of_parts
from emocap_shards.plan import rank_slice
from emocap_shards.store import Store
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from emocap_pretrain.checkpoint.commit import commit
from emocap_pretrain.checkpoint.layout import WEIGHTS
from emocap_pretrain.checkpoint.loader import downloaded, resumable
from emocap_pretrain.checkpoint.manifest import newest
from emocap_pretrain.checkpoint.retention import Retention, retain
from emocap_pretrain.config.batch_split import batch_split
from emocap_pretrain.config.optimizer import OptimizerConfig
from emocap_pretrain.errors import CheckpointError, ConfigError, TrainingError
from emocap_pretrain.generation.captioner import Captioner
from emocap_pretrain.generation.patches import PatchFiles
from emocap_pretrain.interop.average import with_schedule_free
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.training.engine import Engine
from emocap_pretrain.training.objective import ObjectiveResult
from emocap_pretrain.training.snapshot import Snapshot, fill
from emocap_pretrain.training.state_layout import Layout

_RETENTION = Retention(keep_last=2)  # The older one is for the case that the newest one is damaged.
_LAYOUT = "engine"
PROJECTOR_OPTIMIZER = OptimizerConfig(lr=1e-3, warmup_steps=30, weight_decay=0.0)

Report = Callable[[int, Mapping[str, float]], object]


@dataclass(frozen=True, slots=True)
class ProjectorTrainingConfig:
    """Holds how a projector is trained.

    Attributes:
        steps: Number of updates.
        batch: Number of images in an update, over all ranks.
        optimizer: The optimizer, the schedule of the learning rate, and the norm above which gradients are clipped.
        seed: Determines the initial weights and the order of the images.
        save_every_steps: Number of updates between two saves of the state. The last update is always saved.

    Raises:
        ConfigError: If a value is outside its range.
    """

    steps: int = 1000
    batch: int = 16
    optimizer: OptimizerConfig = PROJECTOR_OPTIMIZER
    seed: int = 0
    save_every_steps: int = 50

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("seed", 0), ("save_every_steps", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: it must be at least {least}.")

    def require_rows(self, ranks: int) -> None:
        """Checks that each rank has an image in every update.

        Raises:
            ConfigError: If there are more ranks than images in an update.
        """
        if ranks > self.batch:
            raise ConfigError(f"--batch {self.batch} leaves some of {ranks} ranks without an image: give {ranks}.")

    def rows(self, step: int, images: int) -> list[tuple[int, int]]:
        """Returns the images of the update that follows `step` updates: pairs (row, index of the pass over all images).

        Each pass over the images has every image once, in a random order that depends on the seed and the pass. An
        update may contain the end of one pass and the beginning of the next.

        Args:
            step: Number of updates before this one.
            images: Number of all images.
        """
        found: list[tuple[int, int]] = []
        orders: dict[int, np.ndarray] = {}
        for position in range(step * self.batch, (step + 1) * self.batch):
            epoch, place = divmod(position, images)
            if epoch not in orders:
                orders[epoch] = np.random.default_rng((self.seed, epoch)).permutation(images)
            found.append((int(orders[epoch][place]), epoch))
        return found


@dataclass(frozen=True, slots=True, eq=False)
class CaptionBatch:
    """Holds a rank's share of the images of an update, each with the caption that this update uses."""

    patches: Float[Tensor, "batch tokens width"]
    captions: Sequence[str]


class ImageTokens(nn.Module):
    """Is the part of a captioner that is trained: it maps the patches of a batch to tokens of the language model.

    Its only parameters are those of the projector.
    """

    def __init__(self, captioner: Captioner) -> None:
        super().__init__()
        self.projector = captioner.projector
        self._captioner = captioner

    def forward(self, batch: CaptionBatch) -> Float[Tensor, "batch tokens width"]:
        return self._captioner.image_tokens(batch.patches)


@dataclass(frozen=True, slots=True)
class CaptionObjective:
    """Computes the cross-entropy of the captions of the global batch, as a mean over all of their tokens.

    A longer caption has a larger share. The number of ranks changes only the rounding.

    Attributes:
        captioner: The captioner that is trained.
        group: The ranks whose rows form the global batch; None if this process is alone.
    """

    captioner: Captioner
    group: ProcessGroup | None = None

    def __call__(self, image_tokens: Tensor, batch: CaptionBatch, step: int) -> ObjectiveResult:
        """Returns the loss of the global batch. This is a collective; it does not depend on `step`."""
        del step
        total, tokens = self.captioner.summed_loss(image_tokens, batch.captions)
        # float64, so that the order of the ranks' addends does not matter beside the rounding of the language model.
        parts = torch.stack([total.double(), total.new_tensor(tokens, dtype=torch.float64)])
        all_losses, all_tokens = sum_of_parts(parts, ranks_of(self.group, parts.device)).unbind()
        loss = (all_losses / all_tokens).to(total.dtype)
        return ObjectiveResult(loss, {"loss": loss.detach()})


def train(
    captioner: Captioner,
    data: PatchFiles,
    config: ProjectorTrainingConfig,
    store: Store,
    world: RankGroup,
    attempt: Attempt,
    *,
    blank: Float[Tensor, "tokens width"] | None = None,
    report: Report | None = None,
) -> None:
    """Trains the projector of the captioner from its newest checkpoint, or from the start, to the last step.

    This is a collective: all ranks must call it, within a process group also if there is one rank.

    Args:
        captioner: The captioner. Its projector has the trained weights afterwards.
        data: The images and captions.
        config: How the projector is trained. The batch must have an image for each rank.
        store: The store that holds the checkpoints.
        world: All ranks.
        attempt: The present attempt to train a captioner in this folder.
        blank: The patch vectors that replace the patch vectors of every image, for a training without images; None
            trains with the images.
        report: Called after each update with the number of updates so far, and the metrics of this update. Its loss is
            that before the update.

    Raises:
        CheckpointError: If no checkpoint can be read, they belong to a projector of another size, or a checkpoint
            cannot be saved.
        TrainingError: If the loss or a gradient is not finite.
        Superseded: If a newer attempt trains in this folder.
    """
    everyone, module = world.patient("captioner"), ImageTokens(captioner)
    with resumable(store, everyone, lambda _checkpoint, _path: True) as found:
        if found:
            _fill(module, found.folder)
            if found.checkpoint.step >= config.steps:
                return
        engine = _engine(module, captioner, config, world)
        if found:
            engine.load(found.folder, Layout.from_json(found.checkpoint.state.get(_LAYOUT, {})), found.checkpoint.step)
    while engine.step < config.steps:
        metrics = _update(engine, _batch(data, config, engine.step, world, blank))
        if engine.step % config.save_every_steps == 0 or engine.step == config.steps:
            _save(engine, store, everyone, attempt)
        if report:
            report(engine.step, metrics)


def read_weights(captioner: Captioner, store: Store, config: ProjectorTrainingConfig) -> int:
    """Loads the weights of the newest checkpoint into the projector, and returns the number of updates that made them.

    These are the weights for use: with schedule-free AdamW the average that this optimizer means for that. If there is
    no checkpoint, nothing is changed, and the result is 0. This is not a collective.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or belongs to a projector of another size.
    """
    checkpoint = newest(store)
    if checkpoint is None:
        return 0
    module = ImageTokens(captioner)
    with downloaded(store, checkpoint, lambda _: True) as folder:
        _fill(module, folder)
        if config.optimizer.name == "schedule_free":
            used = with_schedule_free(module.state_dict(), folder, beta=config.optimizer.betas[0])
            module.load_state_dict(used)
    return checkpoint.step


def _fill(module: ImageTokens, folder: Path) -> None:
    try:
        fill(module, folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"the weights of the projector cannot be read ({error}).") from error


def _engine(
    module: ImageTokens, captioner: Captioner, config: ProjectorTrainingConfig, world: RankGroup
) -> Engine[CaptionBatch, Tensor]:
    return Engine(
        module,
        CaptionObjective(captioner, world.process_group),
        world,
        settings=config.optimizer,
        split=batch_split(config.batch, None, ranks=world.world_size),
        steps=config.steps,
        zero_stage=0,  # A few million weights and their state are small beside the language model.
        seed=config.seed,
        precision=captioner.precision,
    )


def _batch(
    data: PatchFiles, config: ProjectorTrainingConfig, step: int, world: RankGroup, blank: Tensor | None
) -> CaptionBatch:
    rows = config.rows(step, len(data))[rank_slice(config.batch, world.rank, world.world_size)]
    patches = data.patches([row for row, _ in rows]) if blank is None else blank.expand(len(rows), -1, -1)
    # The passes use the captions of an image in turn.
    found = ((data.images[row].captions, epoch) for row, epoch in rows)
    captions = [captions[epoch % len(captions)] for captions, epoch in found]
    return CaptionBatch(patches, captions)


def _update(engine: Engine[CaptionBatch, Tensor], batch: CaptionBatch) -> dict[str, float]:
    forward = engine.forward(batch)
    loss = float(forward.loss)
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} at step {engine.step + 1}: start anew with a smaller --lr.")
    metrics = {name: float(value) for name, value in engine.update(forward).items()}
    # With fp16 a gradient may overflow until the loss scale is small enough.
    if metrics["skipped"] and not metrics.get("overflowed"):
        raise TrainingError(f"a gradient is not finite at step {engine.step}: start anew with a smaller --lr.")
    return metrics


def _save(engine: Engine[CaptionBatch, Tensor], store: Store, everyone: RankGroup, attempt: Attempt) -> None:
    snapshot = engine.snapshot()
    try:
        state = {_LAYOUT: engine.layout.to_json()}
        commit(store, engine.step, state, partial(_write, snapshot), everyone, attempt)
    finally:
        snapshot.release()
    everyone.run_on_main(lambda: retain(store, _RETENTION, before=attempt.number, check=attempt.check))


def _write(snapshot: Snapshot, folder: Path) -> None:
    snapshot.require_finite()
    snapshot.write(folder)
