"""Defines the optimizers and the parameter groups of a model.

Each optimizer is described by a value, its `OptimizerSpec`, and no other module depends on a particular optimizer. The
snapshot, the checkpoint, the estimate of memory and the forecast of the step time read the spec. So an optimizer with a
correct spec works with all of them (decision 24). docs/extend/optimizer.md shows how to add an optimizer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from emocap_pretrain.config.optimizer import OptimizerConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.towers import ImageTower, TextTower

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """Describes an optimizer: how it is constructed, and which state it keeps from one update to the next.

    The fields `per_element`, `per_parameter` and `global_` list the names of the state as they are in
    `torch.optim.Optimizer.state`. A checkpoint stores each state under its name, so that any number of ranks can read
    it. A state that no field lists is lost when a run resumes. Therefore a test compares these fields with the state
    that torch's optimizer keeps.

    Example:
        spec = optimizer_of(OptimizerConfig(name="adamw", lr=1e-3), zero_stage=0)
        spec.per_element, spec.global_  # (("exp_avg", "exp_avg_sq"), ("step",))

    Attributes:
        name: The value of `optimizer.name`.
        make: Constructs the torch optimizer from parameter groups, which are dicts with `params`, `lr` and
            `weight_decay`.
        begin: Returns the state of one tensor before its first update, equal to the state that torch would create. The
            tensor is a parameter; under ZeRO 1 to 3 it is a flat vector of many parameters, or of parts of them.
        per_element: States with the shape of the tensor, one number for each element.
        per_parameter: States of any other shape, at most one tensor for each parameter.
        global_: Scalars that are equal for all tensors, such as the number of updates.
        whole_parameters: Whether the update of an element depends on other elements of its parameter. Such an
            optimizer is refused under ZeRO 1 to 3, which give it flat vectors without the boundaries of parameters.
    """

    name: str
    make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    begin: Callable[[Tensor], State]
    per_element: tuple[str, ...] = ()
    per_parameter: tuple[str, ...] = ()
    global_: tuple[str, ...] = ()
    whole_parameters: bool = False

    def __post_init__(self) -> None:
        # In a flat vector of many parameters there is no place for a state of another shape.
        if self.per_parameter and not self.whole_parameters:
            raise ValueError(f"{self.name} has states per parameter, so it needs whole_parameters=True.")

    def state_elements(self, parameter: Tensor) -> int:
        """Returns how many numbers the optimizer keeps for a parameter, without the scalars of `global_`."""
        state = self.begin(torch.empty(parameter.shape, device="meta"))  # The meta device allocates nothing.
        return sum(state[name].numel() for name in (*self.per_element, *self.per_parameter) if name in state)


def _adamw(settings: OptimizerConfig) -> OptimizerSpec:
    def begin(tensor: Tensor) -> State:
        return {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(tensor), "exp_avg_sq": torch.zeros_like(tensor)}

    return OptimizerSpec(
        name="adamw",
        make=partial(torch.optim.AdamW, betas=settings.betas, eps=settings.eps),
        begin=begin,
        per_element=("exp_avg", "exp_avg_sq"),
        global_=("step",),
    )


def _sgd(settings: OptimizerConfig) -> OptimizerSpec:
    momentum, states = settings.sgd.momentum, ("momentum_buffer",) if settings.sgd.momentum else ()
    return OptimizerSpec(
        name="sgd",
        make=partial(torch.optim.SGD, momentum=momentum, nesterov=settings.sgd.nesterov),
        # Torch makes the first gradient the buffer. A buffer of zeros gives the same: zeros plus the gradient.
        begin=lambda tensor: {name: torch.zeros_like(tensor) for name in states},
        per_element=states,
    )


def _adafactor(settings: OptimizerConfig) -> OptimizerSpec:
    def begin(tensor: Tensor) -> State:
        step = {"step": torch.tensor(0.0)}
        # As torch does: a vector has one variance for each element, a matrix one for each row and each column.
        if tensor.ndim < 2:
            return {**step, "variance": torch.zeros_like(tensor)}
        *batch, rows, columns = tensor.shape
        return {**step, "row_var": tensor.new_zeros(*batch, rows, 1), "col_var": tensor.new_zeros(*batch, 1, columns)}

    own = settings.adafactor
    return OptimizerSpec(
        name="adafactor",
        make=partial(torch.optim.Adafactor, beta2_decay=own.beta2_decay, d=own.clip_threshold),
        begin=begin,
        per_element=("variance",),
        per_parameter=("row_var", "col_var"),
        global_=("step",),
        whole_parameters=True,  # Adafactor scales an update by the root mean squares of the update and the parameter.
    )


OPTIMIZERS: Mapping[str, Callable[[OptimizerConfig], OptimizerSpec]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adafactor": _adafactor,
}


def optimizer_of(settings: OptimizerConfig, zero_stage: int) -> OptimizerSpec:
    """Returns the spec of the optimizer that the settings name.

    Raises:
        ConfigError: If the optimizer needs whole parameters and `zero_stage` is 1 to 3, which divides parameters.
    """
    spec = OPTIMIZERS[settings.name](settings)
    if spec.whole_parameters and zero_stage > 0:
        raise ConfigError(
            f"optimizer.name={spec.name} needs whole parameters, and engine.zero_stage={zero_stage} divides them: "
            "set engine.zero_stage=0, or another optimizer.name."
        )
    return spec


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Holds trained parameters by name. They share one weight decay and one factor of the learning rate, `lr_scale`."""

    parameters: Mapping[str, nn.Parameter]
    weight_decay: float
    lr_scale: float

    def for_torch(self, lr: float) -> dict[str, Any]:
        """Returns the group as a dict for a torch optimizer.

        Torch and DeepSpeed do not use the additional key `lr_scale`, but they leave it in the dict. The function
        `zero.set_learning_rate` reads it there.
        """
        return {
            "params": list(self.parameters.values()),
            "weight_decay": self.weight_decay,
            "lr_scale": self.lr_scale,
            "lr": lr * self.lr_scale,
        }


def parameter_groups(model: nn.Module, settings: OptimizerConfig) -> tuple[ParameterGroup, ...]:
    """Returns the trained parameters in groups: first those with weight decay, then those without.

    Weight decay applies to tensors with two or more axes. It does not apply to other tensors (biases, norms and learned
    scales), nor to embeddings if `decay_embeddings` is false. The last layer of a tower has the full learning rate,
    and each earlier layer has `layer_decay` times the rate of the next layer. For the parts of the model that
    `lr_scales` names, these rates are multiplied by the factor given there. No group is empty.

    Raises:
        ConfigError: If nothing is trained, or a key of `lr_scales` does not name a trained part of the model.
    """
    # All ranks make the same groups in the same order, because DeepSpeed and `Layout` divide them by position.
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    if not trained:
        raise ConfigError(
            "model: there is nothing to train, because both towers and all projections and scales are frozen; take "
            "something out of model.freeze."
        )
    _require_parts(settings.lr_scales, trained)
    spared = frozenset[str]() if settings.decay_embeddings else _embeddings(model)
    of_layer = _layer_scales(model, settings.layer_decay)
    members: dict[tuple[bool, float], dict[str, nn.Parameter]] = {}
    for name, parameter in trained.items():
        decays = parameter.ndim >= 2 and name not in spared
        scale = of_layer.get(name, 1.0) * _lr_scale(name, settings.lr_scales)
        members.setdefault((decays, scale), {})[name] = parameter
    return tuple(
        ParameterGroup(members[decays, scale], settings.weight_decay if decays else 0.0, scale)
        for decays, scale in sorted(members, key=lambda key: not key[0])
    )


def _embeddings(model: nn.Module) -> frozenset[str]:
    """Returns the names of the embedding parameters of a model.

    These are the weights of `nn.Embedding`, and the position embeddings and class tokens that `no_weight_decay` of a
    timm model lists.
    """
    found: set[str] = set()
    for place, module in model.named_modules():
        listed = module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()  # pyright: ignore[reportCallIssue]
        inner = ["weight"] if isinstance(module, nn.Embedding) else listed
        found.update(f"{place}.{name}".lstrip(".") for name in inner)
    return frozenset(found)


def _layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    scales: dict[str, float] = {}
    for place, tower in model.named_children():
        if isinstance(tower, ImageTower | TextTower):
            depths = tower.parameter_depths()
            last = max(depths.values(), default=0)
            scales |= {f"{place}.{name}": decay ** (last - depth) for name, depth in depths.items()}
    return scales


def _require_parts(parts: Mapping[str, float], trained: Mapping[str, nn.Parameter]) -> None:
    for part in parts:
        if not any(_is_in(name, part) for name in trained):
            known = ", ".join(dict.fromkeys(name.partition(".")[0] for name in trained))
            raise ConfigError(
                f"optimizer.lr_scales has {part}, which is no trained part of the model; the parts are {known}, and "
                "the modules inside them by their dotted names."
            )


def _lr_scale(name: str, scales: Mapping[str, float]) -> float:
    # The longest part is the most particular one, such as `image.backbone` beside `image`.
    fitting = [part for part in scales if _is_in(name, part)]
    return scales[max(fitting, key=len)] if fitting else 1.0


def _is_in(name: str, part: str) -> bool:
    # With the dots, `image` contains `image.norm` and `image` itself, and not `image_bias`.
    return f"{name}.".startswith(f"{part}.")
