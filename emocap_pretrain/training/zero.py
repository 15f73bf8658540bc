"""This is the only module that uses internals of DeepSpeed: how it is started, and where its optimizer keeps its state.

The internals are those of DeepSpeed 0.19.8. They are not part of its public interface, so another version may change
them; then `tests/emocap_pretrain/training/test_zero.py` fails.
"""

import os
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.training.optimizer import OptimizerSpec, ParameterGroup, State
from emocap_pretrain.training.state_layout import Layout, Slice

BUCKET = 50_000_000  # Elements of a communication buffer; DeepSpeed allocates it whole, whatever the model's size.


@dataclass(frozen=True, slots=True)
class StateSlice:
    """The optimizer's state of one slice of a parameter, by name; writing into the tensors changes the optimizer.

    Attributes:
        per_element: Flat views, each as long as the slice.
        per_parameter: Whole tensors; empty for a slice that does not begin the parameter, so that one rank stores them.
    """

    slice: Slice
    per_element: State
    per_parameter: State

    def part(self, inner: Slice) -> "StateSlice":
        """Returns views of an inner slice."""
        offset = inner.offset - self.slice.offset
        views = {name: view.narrow(0, offset, inner.length) for name, view in self.per_element.items()}
        return StateSlice(inner, views, {} if inner.offset else self.per_parameter)


def initialise(
    model: nn.Module,
    optimizer: OptimizerSpec,
    groups: Sequence[ParameterGroup],
    world: RankGroup,
    *,
    lr: float,
    clip_norm: float,
    zero_stage: int,
    rows: int,
) -> tuple[Any, Layout]:
    """Returns a DeepSpeed engine that holds rank 0's weights on every rank, and how its optimizer's state lies.

    Args:
        model: The model. At stage 3 its parameters are empty afterwards.
        optimizer: What to make of the groups.
        groups: The trained parameters of the model.
        world: All ranks; each has to call this.
        lr: Learning rate until the first step sets another one.
        clip_norm: Largest norm of the whole gradient under ZeRO 1 to 3; 0 never clips.
        zero_stage: 0 to 3.
        rows: Most rows of the global batch that a rank has.
    """
    on_cpu = world.device == "cpu"
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed takes the device of this number; a launcher may show each process its own device only.
    os.environ["LOCAL_RANK"] = str(world.info.local_rank if on_cpu else torch.device(world.device).index)
    import deepspeed

    # Torch's advice to DeepSpeed, which calls them; twice a rank in every log otherwise.
    warnings.filterwarnings("ignore", ".*(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated", FutureWarning)
    # An optional collective for CPUs that would be compiled for a minute at the first start, for no gain here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo" if on_cpu else "nccl", verbose=False)
    model = model.to(world.device)
    _share_buffers(model, world)
    # Taken before DeepSpeed, which empties parameters at stage 3.
    sizes = tuple(tuple((name, each.numel()) for name, each in group.parameters.items()) for group in groups)
    layout = Layout(zero_stage, world.world_size, sizes, optimizer.name)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer.make([group.for_torch(lr) for group in groups]),
        config=_deepspeed_settings(zero_stage, rows, clip_norm),
    )
    return engine, layout


@contextmanager
def reduced_once(engine: Any) -> Generator[None]:
    """Inside, gradients of several backward passes add up on each rank; at the end they are averaged over the ranks."""
    if engine.zero_optimization_stage() > 0:
        with engine.coalesce_grad_reduction():
            yield
        return
    with engine.no_sync():
        yield
    engine.allreduce_gradients()


def forget_forward(engine: Any) -> None:
    """Frees, after a forward pass without a backward pass, the parameters that stage 3 still holds for one."""
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.parameter_offload.partition_all_parameters()


def set_learning_rate(engine: Any, rate: float) -> None:
    """Sets the rate of the next update; each group takes its own multiple of it."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def state_slices(engine: Any, spec: OptimizerSpec, layout: Layout, rank: int) -> Iterator[StateSlice]:
    """Yields the state of every slice that this rank's optimizer works on."""
    optimizer = _torch_optimizer(engine)
    for tensor, slices in zip(_tensors(engine), layout.tensors(rank), strict=True):
        state = _state(optimizer, spec, tensor)
        whole = {name: state[name] for name in spec.per_parameter if name in state}
        flat = {name: state[name].view(-1) for name in spec.per_element if name in state}
        for position, each in slices:
            views = {name: view.narrow(0, position, each.length) for name, view in flat.items()}
            yield StateSlice(each, views, whole)


def global_state(engine: Any, spec: OptimizerSpec) -> State:
    """Returns the scalars that the optimizer keeps, such as the number of updates that changed the weights."""
    state = _state(_torch_optimizer(engine), spec, _tensors(engine)[0])
    return {name: state[name] for name in spec.global_}


def set_global_state(engine: Any, spec: OptimizerSpec, values: Mapping[str, Tensor]) -> None:
    """Gives every tensor of the optimizer the same scalars."""
    optimizer = _torch_optimizer(engine)
    for tensor in _tensors(engine):
        state = _state(optimizer, spec, tensor)
        for name in spec.global_:
            state[name].copy_(values[name])


def weights(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """Yields the model's tensors. Each is whole until the next is asked for; all ranks iterate together."""
    import deepspeed

    for name, tensor in engine.module.state_dict(keep_vars=True).items():
        with deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
            yield name, tensor.detach()


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    return engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer


def _tensors(engine: Any) -> list[Tensor]:
    """Returns what the optimizer updates on this rank: parameters, or one flat tensor for each group."""
    match engine.zero_optimization_stage():
        case 0:
            return [each for group in engine.optimizer.param_groups for each in group["params"]]
        case 3:
            return engine.optimizer.fp32_partitioned_groups_flat
        case _:
            return engine.optimizer.single_partition_of_fp32_groups


def _state(optimizer: torch.optim.Optimizer, spec: OptimizerSpec, tensor: Tensor) -> State:
    """Returns the state of one tensor. Before the first update it is put there as torch would begin with it."""
    state = optimizer.state[tensor]
    if not state:
        state.update(spec.begin(tensor))
    return state


def _share_buffers(model: nn.Module, world: RankGroup) -> None:
    """Broadcasts rank 0's statistics of frozen norms; DeepSpeed broadcasts parameters alone. A collective."""
    if world.process_group is None:
        return
    parameters = dict(model.named_parameters())
    for name, tensor in model.state_dict().items():
        if name not in parameters:
            dist.broadcast(tensor, 0, group=world.process_group)


def _deepspeed_settings(zero_stage: int, rows: int, clip_norm: float) -> dict[str, Any]:
    return {
        # A rank may have a row less; DeepSpeed only multiplies this number to count samples that nobody reads.
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm if zero_stage else 0.0,
        "zero_optimization": {
            "stage": zero_stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "sub_group_size": 10**15,  # One flat tensor a group, which `Layout` counts on.
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
