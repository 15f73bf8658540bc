"""What is known of DeepSpeed's insides, all of it: how it is started and where its optimizer keeps the moments.

Read from version 0.19.8, which promises none of it; `tests/emocap_pretrain/engine/test_zero.py` fails when it moves.
"""

import os
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from emocap_pretrain.config.batch_split import batch_split
from emocap_pretrain.config.schema import Config
from emocap_pretrain.engine.layout import Layout, Slice
from emocap_pretrain.world import World

BUCKET = 50_000_000  # Elements of a communication buffer; DeepSpeed allocates it whole, whatever the model's size.
FIELDS = ("exp_avg", "exp_avg_sq")  # Adam's moments, by torch's names.


@dataclass(frozen=True, slots=True)
class Moments:
    """Views of both moments, by field, of one slice of a parameter; writing into them changes the optimizer."""

    slice: Slice
    fields: dict[str, Tensor]

    def part(self, inner: Slice) -> "Moments":
        """Views of an inner slice."""
        offset = inner.offset - self.slice.offset
        return Moments(inner, {field: view.narrow(0, offset, inner.length) for field, view in self.fields.items()})


def initialise(model: nn.Module, config: Config, world: World) -> tuple[Any, Layout]:
    """A DeepSpeed engine that holds rank 0's weights on every rank, and how its optimizer's state lies."""
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
    model = model.to(world.device)
    _share_buffers(model, world)
    groups = _decayed_apart(model, config.optimizer.weight_decay)
    layout = _layout(model, groups, config.engine.zero_stage, world.place.world)
    settings = config.optimizer
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=_deepspeed_settings(config, world.place.world)
    )
    return engine, layout


@contextmanager
def reduced_once(engine: Any) -> Generator[None]:
    """Gradients of several backward passes add up on each rank and are averaged over the ranks at the end."""
    if engine.zero_optimization_stage() > 0:
        with engine.coalesce_grad_reduction():
            yield
        return
    with engine.no_sync():
        yield
    engine.allreduce_gradients()


def forget_forward(engine: Any) -> None:
    """After a forward pass that no backward pass follows: stage 3 still holds, and fetches, parameters for one."""
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.parameter_offload.partition_all_parameters()


def moments(engine: Any, layout: Layout, rank: int) -> Iterator[Moments]:
    """The moments of every slice that this rank's optimizer works on."""
    adam = _adam(engine)
    for tensor, slices in zip(_tensors(engine), layout.tensors(rank), strict=True):
        state = _state(adam, tensor)
        for position, each in slices:
            views = {field: state[field].view(-1).narrow(0, position, each.length) for field in FIELDS}
            yield Moments(each, views)


def updates(engine: Any) -> int:
    """Optimizer steps that changed the weights; Adam's bias correction counts these."""
    adam = _adam(engine)
    return int(_state(adam, _tensors(engine)[0])["step"])


def set_updates(engine: Any, number: int) -> None:
    adam = _adam(engine)
    for tensor in _tensors(engine):
        _state(adam, tensor)["step"].fill_(number)


def weights(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """The model's state, each tensor whole while it is the current one; all ranks walk through it together."""
    import deepspeed

    for name, tensor in engine.module.state_dict(keep_vars=True).items():
        with deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
            yield name, tensor.detach()


def _adam(engine: Any) -> torch.optim.Optimizer:
    return engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer


def _tensors(engine: Any) -> list[Tensor]:
    """What Adam updates on this rank: parameters, or one flat tensor a group."""
    match engine.zero_optimization_stage():
        case 0:
            return [each for group in engine.optimizer.param_groups for each in group["params"]]
        case 3:
            return engine.optimizer.fp32_partitioned_groups_flat
        case _:
            return engine.optimizer.single_partition_of_fp32_groups


def _state(adam: torch.optim.Optimizer, tensor: Tensor) -> dict[str, Tensor]:
    """Adam's of one tensor; before the first update the one that torch would begin with."""
    state = adam.state[tensor]
    if not state:
        state["step"] = torch.tensor(0.0)
        for field in FIELDS:
            state[field] = torch.zeros_like(tensor)
    return state


def _share_buffers(model: nn.Module, world: World) -> None:
    """Rank 0's statistics of frozen norms; DeepSpeed shares parameters alone."""
    if world.group is None:
        return
    parameters = dict(model.named_parameters())
    for name, tensor in model.state_dict().items():
        if name not in parameters:
            dist.broadcast(tensor, 0, group=world.group)


def _deepspeed_settings(config: Config, ranks: int) -> dict[str, Any]:
    stage = config.engine.zero_stage
    return {
        # A rank may have a row less; DeepSpeed only multiplies this number to count samples that nobody reads.
        "train_micro_batch_size_per_gpu": batch_split(config, ranks).rows,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.clip_norm if stage else 0.0,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "sub_group_size": 10**15,  # One flat tensor a group, which `Layout` counts on.
        },
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


def _layout(model: nn.Module, groups: list[dict[str, Any]], stage: int, ranks: int) -> Layout:
    """Taken before DeepSpeed, which empties parameters at stage 3."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    sizes = tuple(tuple((names[each], each.numel()) for each in group["params"]) for group in groups)
    return Layout(stage, ranks, tuple(group for group in sizes if group))  # DeepSpeed too leaves out an empty group.
