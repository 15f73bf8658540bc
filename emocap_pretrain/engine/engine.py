"""The one door to DeepSpeed: a step, its state in a folder, its weights as plain tensors."""

import os
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from emocap_pretrain.batch import Batch
from emocap_pretrain.config.batch_split import batch_split
from emocap_pretrain.config.schema import Config
from emocap_pretrain.encoders.pair import Embeddings, TowerPair
from emocap_pretrain.objective import Objective
from emocap_pretrain.schedule import learning_rate
from emocap_pretrain.world import World

TAG = "state"
BUCKET = 50_000_000  # Elements of a communication buffer; DeepSpeed allocates it whole, whatever the model's size.


class Engine:
    """Trains a tower pair; `step` counts optimizer steps from 0.

    The random numbers of a step (dropout) are a function of (seed, step, rank): there is no stream to save.
    """

    def __init__(self, model: TowerPair, config: Config, world: World) -> None:
        self._config, self._world = config, world
        self._objective = Objective.of(config, world.group)
        self._engine = _initialise(model, config, world)
        self.step = 0
        self._finite = torch.ones((), device=world.device)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return learning_rate(self._config.optimizer, self.step, self._config.steps)

    def train(self, batch: Batch) -> dict[str, Tensor | float]:
        """One optimizer step on this rank's rows of the global batch.

        Returns:
            Scalars by name, still on the device, equal on all ranks.
        """
        torch.manual_seed(hash((self._config.seed, self.step, self._world.place.rank)) % 2**63)
        rate = self._set_learning_rate()
        embeddings = cast(Embeddings, self._engine(batch))
        terms = self._objective(embeddings, batch, self.step)
        # DeepSpeed leaves out an update that is not finite and goes on; this remembers it until somebody reads.
        self._finite = self._finite * torch.isfinite(terms.loss.detach())
        self._engine.backward(terms.loss)
        norm = self._clip_unsharded()
        self._engine.step()
        self.step += 1
        return {
            **terms.metrics,
            "finite": self._finite,
            "scale": embeddings.scale.detach(),
            "local_scale": embeddings.local_scale.detach(),
            "learning_rate": rate,
            "gradient_norm": self._engine.get_global_grad_norm() if norm is None else norm,
        }

    def save(self, folder: Path) -> None:
        """Write this rank's share of the training state into an own `folder`. All ranks call it."""
        (folder / TAG).mkdir(parents=True, exist_ok=True)
        self._engine.save_checkpoint(str(folder), tag=TAG, client_state={"step": self.step}, save_latest=False)

    def load(self, folder: Path) -> None:
        """Continue from a folder that holds what all ranks saved. It is unpickled: give it only verified folders."""
        _, client = self._engine.load_checkpoint(str(folder), tag=TAG)
        self.step = int(client["step"])

    def weights(self) -> dict[str, Tensor]:
        """The whole model's weights on the CPU, on rank 0 (elsewhere perhaps empty). All ranks call it."""
        if self._config.engine.zero_stage == 3:
            state = self._engine._zero3_consolidated_16bit_state_dict() or {}
        else:
            state = self._engine.module.state_dict() if self._world.is_main else {}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def _set_learning_rate(self) -> float:
        rate = self.learning_rate
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _clip_unsharded(self) -> Tensor | None:
        """Clips without ZeRO, where DeepSpeed clips but does not tell the norm; None with ZeRO."""
        if self._config.engine.zero_stage > 0:
            return None
        bound = self._config.optimizer.clip_norm or float("inf")
        return nn.utils.clip_grad_norm_(self._engine.module.parameters(), bound)


def _initialise(model: TowerPair, config: Config, world: World) -> Any:
    on_cpu = world.device == "cpu"
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed takes the device of this number; a launcher may show each process its own device only.
    os.environ["LOCAL_RANK"] = str(world.place.local_rank if on_cpu else torch.device(world.device).index)
    import deepspeed

    # Torch's advice to DeepSpeed, which calls them; twice a rank in every log otherwise.
    warnings.filterwarnings("ignore", ".*(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated", FutureWarning)
    # An optional collective for CPUs that would be compiled for a minute at the first start, for no gain here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo" if on_cpu else "nccl", verbose=False)
    optimizer = torch.optim.AdamW(
        _decayed_apart(model, config.optimizer.weight_decay),
        lr=config.optimizer.lr,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
    )
    engine, *_ = deepspeed.initialize(
        model=model.to(world.device), optimizer=optimizer, config=_deepspeed_settings(config, world.place.world)
    )
    return engine


def _deepspeed_settings(config: Config, ranks: int) -> dict[str, Any]:
    stage = config.engine.zero_stage
    return {
        "train_micro_batch_size_per_gpu": batch_split(config, ranks).rows,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.clip_norm if stage else 0.0,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def _decayed_apart(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay acts on matrices; biases, norms and scales stay free."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [each for each in parameters if each.ndim >= 2], "weight_decay": weight_decay},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0},
    ]
