"""Starts DeepSpeed and reads the state of its optimizer. No other module uses internals of DeepSpeed.

The internals are those of DeepSpeed 0.19.8. They are not part of its public interface, so another version may change
them; then `tests/emocap_pretrain/training/test_zero.py` fails.

DeepSpeed's own checkpoints are not used, because they are pickles that depend on the number of ranks (decision 16).
Instead this module gives access to the tensors of the optimizer's state, as `Layout` divides them: at stage 0 each
parameter has its own state; at stages 1 to 3 the optimizer sees one flat tensor for each parameter group, which holds
this rank's share of the group.

DeepSpeed is imported inside of functions, because `initialise` sets DS_ACCELERATOR before the first import.
"""

import os
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.training.optimizer import OptimizerSpec, Options, ParameterGroup, State
from emocap_pretrain.training.state_layout import Layout, Slice

BUCKET = 50_000_000  # Elements of a communication buffer, which DeepSpeed allocates even for a small model.


@dataclass(frozen=True, slots=True)
class StateSlice:
    """Holds the optimizer's state of one slice of a parameter. Writing into its tensors changes the optimizer.

    Attributes:
        slice: The elements of the parameter.
        per_element: Flat views by the name of the state, each as long as the slice.
        per_parameter: Tensors of any shape by the name of the state, each for the whole parameter. It is empty unless
            the slice contains the first element of the parameter, so that only one rank stores these tensors.
    """

    slice: Slice
    per_element: State
    per_parameter: State

    def part(self, inner: Slice) -> "StateSlice":
        """Returns the state of the slice `inner`, which lies inside this one, as views."""
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
    offload_optimizer: bool = False,
    rows: int,
) -> tuple[Any, Layout]:
    """Returns a DeepSpeed engine with rank 0's weights on every rank, and the layout of its optimizer's state.

    This is a collective: all ranks must call it.

    Args:
        model: The model. At stage 3 its parameters are empty afterwards.
        optimizer: The optimizer that is constructed from the groups.
        groups: The trained parameters of the model.
        world: All ranks.
        lr: Learning rate until the first step sets another one.
        clip_norm: Norm above which DeepSpeed clips the whole gradient under ZeRO 1 to 3; 0 means no clipping. At stage
            0 it has no effect, because the class `Engine` clips the gradient.
        zero_stage: Stage of ZeRO, 0 to 3.
        offload_optimizer: Whether the optimizer's tensors and its update are in host memory, at stages 1 to 3.
        rows: Number of rows of the rank with the most rows, in a full step.
    """
    on_cpu = world.device == "cpu"
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed uses the device with this number. A launcher may make only one device visible to each process.
    os.environ["LOCAL_RANK"] = str(world.info.local_rank if on_cpu else torch.device(world.device).index)
    import deepspeed

    # DeepSpeed calls these functions, so torch would print two warnings on each rank.
    warnings.filterwarnings("ignore", ".*(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated", FutureWarning)
    # This optional collective for CPUs would be compiled for a minute at the first start, and does not help here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo" if on_cpu else "nccl", verbose=False)
    model = model.to(world.device)
    _share_buffers(model, world)
    # The sizes are read before DeepSpeed starts, because it empties the parameters at stage 3.
    sizes = tuple(tuple((name, each.numel()) for name, each in group.parameters.items()) for group in groups)
    offload = {"device": "cpu", "pin_memory": not on_cpu} if offload_optimizer else None
    layout = Layout(zero_stage, world.world_size, sizes, optimizer.name)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer.make([group.for_torch(lr) for group in groups]),
        config=_deepspeed_settings(zero_stage, rows, clip_norm, offload=offload),
    )
    return engine, layout


@contextmanager
def reduced_once(engine: Any) -> Generator[None]:
    """Adds up, on each rank, the gradients of all backward passes in the `with` block.

    The end of the `with` block is a collective: it averages the sums over the ranks. Inside the block each rank holds
    its sums for all parameters, even at stages 2 and 3 of ZeRO (decision 18).
    """
    # DeepSpeed has one function for stages 1 to 3, which refuses stage 0, and another one that refuses stages 2 and 3.
    if engine.zero_optimization_stage() > 0:
        with engine.coalesce_grad_reduction():
            yield
        return
    with engine.no_sync():
        yield
    engine.allreduce_gradients()


def forget_forward(engine: Any) -> None:
    """Frees the gathered parameters of ZeRO stage 3 after a forward pass that no backward pass follows."""
    # Stage 3 keeps parameters for the backward pass, and has fetched some in advance.
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.parameter_offload.partition_all_parameters()


def scaled_loss(engine: Any, loss: Tensor, scale: float) -> Tensor:
    """Returns the loss for `engine.backward`, so that the gradients are multiplied by `scale`.

    Under ZeRO 1 to 3, DeepSpeed multiplies the loss, and divides the gradients when it clips them in `engine.step`. At
    stage 0 it does neither, and `unscale` divides the gradients.
    """
    if engine.zero_optimization_stage() == 0:
        return loss * scale
    engine.optimizer.loss_scale = scale
    return loss


def unscale(engine: Any, scale: float) -> None:
    """Divides the gradients of all parameters by `scale`. It is for stage 0 alone."""
    for parameter in engine.module.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(1 / scale)


def set_learning_rate(engine: Any, rate: float) -> None:
    """Sets the learning rate of the next update. Each parameter group multiplies it by its own factor `lr_scale`."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def states(engine: Any, spec: OptimizerSpec) -> list[tuple[Tensor, State]]:
    """Returns each tensor that the optimizer updates on this rank, with its state.

    At stage 0 the tensors are the parameters. At stages 1 to 3 there is one flat tensor for each parameter group. The
    state is created if there was no update yet.
    """
    optimizer = _torch_optimizer(engine)
    return [
        (tensor, _state(optimizer, spec, tensor, group))
        for group, tensors in zip(optimizer.param_groups, _tensors(engine), strict=True)
        for tensor in tensors
    ]


def state_slices(engine: Any, spec: OptimizerSpec, layout: Layout, rank: int) -> Iterator[StateSlice]:
    """Yields the state of every slice that this rank's optimizer updates, in the order of `layout.tensors`.

    The tensors are views on the device: writing into them changes the optimizer.
    """
    for (_, state), slices in zip(states(engine, spec), layout.tensors(rank), strict=True):
        whole = {name: state[name] for name in spec.per_parameter if name in state}
        flat = {name: state[name].view(-1) for name in spec.per_element if name in state}
        for position, each in slices:
            views = {name: view.narrow(0, position, each.length) for name, view in flat.items()}
            yield StateSlice(each, views, whole)


def global_state(engine: Any, spec: OptimizerSpec) -> State:
    """Returns the numbers that the optimizer keeps once, or once for each parameter group.

    These are the scalars in `OptimizerSpec.global_`, and for each name in `OptimizerSpec.per_group` one vector, which
    has the values of all groups in their order.
    """
    # The scalars are equal for all tensors that have them. With Muon, matrices have no `step`.
    kept = [state for _, state in states(engine, spec)]
    scalars = {name: next((each[name] for each in kept if name in each), torch.tensor(0.0)) for name in spec.global_}
    groups = _torch_optimizer(engine).param_groups
    vectors = {name: [float(group[name]) for group in groups] for name in spec.per_group}
    return scalars | {name: torch.tensor(values, dtype=torch.float64) for name, values in vectors.items()}


def set_global_state(engine: Any, spec: OptimizerSpec, values: Mapping[str, Tensor]) -> None:
    """Sets the numbers that `global_state` returns to `values`.

    The state of each tensor that the optimizer updates has its own copy of the scalars. All copies are set.
    """
    for _, state in states(engine, spec):
        for name in state.keys() & set(spec.global_):
            state[name].copy_(values[name])
    for name, begun in spec.per_group.items():
        for group, value in zip(_torch_optimizer(engine).param_groups, values[name].tolist(), strict=True):
            # The optimizer may keep a tensor there, and otherwise a number of this type.
            group[name] = torch.tensor(value) if isinstance(group[name], Tensor) else type(begun)(value)


def weights(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """Yields each parameter and buffer of the model, by name. This is a collective: all ranks must iterate together.

    Under ZeRO 3 a parameter has all its elements only until the next tensor is yielded.
    """
    import deepspeed

    # `keep_vars` gives the parameters themselves. Under stage 3 they have a `ds_id` and are empty until they are
    # gathered. Buffers are whole on every rank.
    for name, tensor in engine.module.state_dict(keep_vars=True).items():
        with deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
            yield name, tensor.detach()


def whole_state(
    engine: Any, spec: OptimizerSpec, layout: Layout, world: RankGroup, name: str
) -> Iterator[tuple[str, Tensor]]:
    """Yields a state per element of each trained parameter, flat and whole, with the name of the parameter.

    This is a collective: all ranks must iterate together.
    """
    held = {each.slice.name: each for each in state_slices(engine, spec, layout, world.rank)}
    for parameter, length in chain.from_iterable(layout.groups):
        whole = torch.zeros(length, device=world.device)
        if parameter in held:
            mine = held[parameter]
            whole[mine.slice.offset : mine.slice.end] = mine.per_element[name]
        # At stage 0 each rank has the whole state. Otherwise each element is in one rank's slice, and 0 elsewhere.
        if layout.zero_stage > 0 and world.process_group is not None:
            dist.all_reduce(whole, group=world.process_group)
        yield parameter, whole


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    # Under ZeRO, DeepSpeed wraps the torch optimizer in its own one.
    return engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer


def _tensors(engine: Any) -> list[list[Tensor]]:
    """Returns, for each parameter group, the tensors that the optimizer updates on this rank.

    These are the parameters of the group, or with ZeRO one flat tensor.
    """
    match engine.zero_optimization_stage():
        case 0:
            return [group["params"] for group in engine.optimizer.param_groups]
        case 3:
            return [[each] for each in engine.optimizer.fp32_partitioned_groups_flat]
        case _:
            return [[each] for each in engine.optimizer.single_partition_of_fp32_groups]


def _state(optimizer: torch.optim.Optimizer, spec: OptimizerSpec, tensor: Tensor, options: Options) -> State:
    """Returns the optimizer's state of one tensor. Before the first update it creates the state as torch would."""
    # Torch creates the state at the first update only, but a snapshot may be taken, or a checkpoint loaded, before it.
    state = optimizer.state[tensor]
    if not state:
        state.update(spec.begin(tensor, options))
    return state


def _share_buffers(model: nn.Module, world: RankGroup) -> None:
    """Broadcasts rank 0's buffers, such as the running statistics of frozen batch norms. This is a collective.

    DeepSpeed broadcasts the parameters only.
    """
    if world.process_group is None:
        return
    # The types are compared and not the names, because a state dict may rename parameters (model/lora.py).
    for tensor in model.state_dict(keep_vars=True).values():
        if not isinstance(tensor, nn.Parameter):
            dist.broadcast(tensor, 0, group=world.process_group)


def _deepspeed_settings(
    zero_stage: int, rows: int, clip_norm: float, *, offload: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        # A rank may have one row less. DeepSpeed uses this number only to count samples, and nothing reads that count.
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": 1,
        # It is always given, because DeepSpeed clips to norm 1 by default. At stage 0 the engine clips by itself.
        "gradient_clipping": clip_norm if zero_stage else 0.0,
        "zero_optimization": {
            "stage": zero_stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "sub_group_size": 10**15,  # `Layout` assumes one flat tensor for each group.
            **({"offload_optimizer": offload} if offload else {}),
        },
        # Otherwise DeepSpeed would ask for its own AdamW in host memory, which it compiles at the first start.
        "zero_force_ds_cpu_optimizer": False,
        # Otherwise DeepSpeed refuses optimizers that are not on its list. Our own rule is `whole_parameters`.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,  # DeepSpeed prints its progress every so many steps, so it never does.
    }
