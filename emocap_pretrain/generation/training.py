"""Trains a projector between a frozen image tower and a frozen language model, and resumes after an interruption.

The images of a step, their captions and the learning rate follow from the settings and the number of the step alone. So
the state is small (the projector's weights, the moments of AdamW, the number of finished steps), and a training that
was resumed computes the same bits as one without an interruption, if both use the same number of threads. The state is
one file, which each save replaces as a whole.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from emocap_shards.errors import NotFound, TooLarge
from emocap_shards.store import Store
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from emocap_pretrain.errors import CheckpointError, ConfigError, TrainingError
from emocap_pretrain.generation.captioner import Captioner
from emocap_pretrain.generation.patches import PatchFiles
from emocap_pretrain.generation.projector import Projector

_MOST_BYTES = 8 << 30
_LARGEST_NORM = 1.0  # Longer gradients are scaled to this length, as in LLaVA-1.5.
_STEP = "step"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class ProjectorTrainingConfig:
    """Holds how a projector is trained.

    Attributes:
        steps: Number of updates.
        batch: Number of images in an update.
        lr: Largest learning rate, at the end of the warm-up. It then decreases along a cosine, which reaches 0 after
            the last update.
        warmup_steps: Number of updates over which the learning rate grows linearly to `lr`.
        weight_decay: Weight decay of AdamW.
        seed: Determines the initial weights and the order of the images.
        save_every_steps: Number of updates between two saves of the state. The last update is always saved.

    Raises:
        ConfigError: If a value is outside its range.
    """

    steps: int = 1000
    batch: int = 16
    lr: float = 1e-3
    warmup_steps: int = 30
    weight_decay: float = 0.0
    seed: int = 0
    save_every_steps: int = 50

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("warmup_steps", 0), ("seed", 0), ("save_every_steps", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: it must be at least {least}.")
        if not (math.isfinite(self.lr) and self.lr > 0 and math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError("--lr must be a number above 0, and --weight-decay a number of at least 0.")

    def rate(self, step: int) -> float:
        """Returns the learning rate of the update that follows `step` updates."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * (1 + math.cos(math.pi * share)) / 2

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


def train(
    captioner: Captioner,
    data: PatchFiles,
    config: ProjectorTrainingConfig,
    store: Store,
    name: str,
    *,
    blank: Float[Tensor, "tokens width"] | None = None,
    report: Callable[[int, float], object] | None = None,
) -> None:
    """Trains the projector of the captioner from its newest stored state, or from the start, to the last step.

    Args:
        captioner: The captioner. Its projector has the trained weights afterwards.
        data: The images and captions.
        config: How the projector is trained.
        store: The store that holds the state.
        name: The path of the state in the store.
        blank: The patch vectors that replace the patch vectors of every image, for a training without images; None
            trains with the images.
        report: Called after each update with the number of updates so far, and the loss before this update.

    Raises:
        CheckpointError: If the state cannot be read, or belongs to a projector of another size.
        TrainingError: If the loss is not finite.
        StoreError: If the state cannot be written.
    """
    projector = captioner.projector
    optimizer = torch.optim.AdamW(projector.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    begin = read_state(store, name, projector, optimizer)
    for step in range(begin, config.steps):
        rows = config.rows(step, len(data))
        patches = data.patches([row for row, _ in rows]) if blank is None else blank.expand(len(rows), -1, -1)
        captions = [_caption(data.images[row].captions, epoch) for row, epoch in rows]
        loss = captioner.loss(patches, captions)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"the loss is {value} at step {step + 1}: start anew with a smaller --lr.")
        optimizer.param_groups[0]["lr"] = config.rate(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(projector.parameters(), _LARGEST_NORM)
        optimizer.step()
        if (step + 1) % config.save_every_steps == 0 or step + 1 == config.steps:
            store.put(name, state_bytes(projector, optimizer, step + 1))
        if report:
            report(step + 1, value)


def state_bytes(projector: Projector, optimizer: torch.optim.AdamW, step: int) -> bytes:
    """Returns the content of a safetensors file with the weights, the moments of AdamW and the number of updates.

    The optimizer must have made at least one update, because it has no moments before.
    """
    tensors = {f"weights.{name}": each.detach() for name, each in projector.named_parameters()}
    for name, each in projector.named_parameters():
        tensors |= {f"{moment}.{name}": optimizer.state[each][moment] for moment in _MOMENTS}
    tensors[_STEP] = torch.tensor(step)
    return save_tensors({name: each.cpu().contiguous() for name, each in tensors.items()})


def read_state(store: Store, name: str, projector: Projector, optimizer: torch.optim.AdamW | None = None) -> int:
    """Loads the stored state into a projector and an optimizer, and returns the number of updates that it contains.

    If there is no state, nothing is changed, and the result is 0.

    Args:
        store: The store that holds the state.
        name: The path of the state in the store.
        projector: The projector, which gets the weights.
        optimizer: The optimizer of the projector, which gets the moments; None loads the weights alone.

    Raises:
        CheckpointError: If the file cannot be read, or belongs to a projector of another size.
    """
    try:
        tensors = load_tensors(store.read(name, limit_bytes=_MOST_BYTES))
        step = int(tensors[_STEP])
        weights = {each: tensors[f"weights.{each}"] for each, _ in projector.named_parameters()}
        projector.load_state_dict(weights)
        if optimizer:
            _load_moments(optimizer, projector, tensors, step)
    except NotFound:
        return 0
    except (SafetensorError, KeyError, ValueError, RuntimeError, TooLarge) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{store.url}/{name} cannot be read ({reason}): delete it to train anew, or take another --out."
        ) from error
    return step


def _load_moments(optimizer: torch.optim.AdamW, projector: Projector, tensors: Mapping[str, Tensor], step: int) -> None:
    for name, parameter in projector.named_parameters():
        moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in _MOMENTS}
        if any(moment.shape != parameter.shape for moment in moments.values()):
            raise ValueError(f"the moments of {name} have another shape")
        optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}


def _caption(captions: Sequence[str], epoch: int) -> str:
    """Returns the caption of an image that pass `epoch` uses. The passes use the captions of an image in turn."""
    return captions[epoch % len(captions)]
