"""Defines the optimizers and the parameter groups of a model.

Each optimizer is described by a value, its `OptimizerSpec`, and no other module depends on a particular optimizer. The
snapshot, the checkpoint, the estimate of memory and the forecast of the step time read the spec. So an optimizer with a
correct spec works with all of them (decision 24). docs/extend/optimizer.md shows how to add an optimizer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from timm.optim.lamb import Lamb
from timm.optim.lion import Lion
from timm.optim.muon import Muon
from torch import Tensor, nn

from emocap_pretrain.config.optimizer import OptimizerConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.towers import ImageTower, TextTower

State = dict[str, Tensor]
Options = Mapping[str, Any]
"""Options of a parameter group of a torch optimizer, by their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """Describes an optimizer: how it is constructed, and which state it keeps from one update to the next.

    The fields `per_element`, `per_parameter` and `global_` list the names of the state as they are in
    `torch.optim.Optimizer.state`, and `per_group` those in its `param_groups`. A checkpoint stores each state under its
    name, so that any number of ranks can read it. A state that no field lists is lost when a run resumes. Therefore a
    test compares these fields with the state that the optimizer keeps.

    Example:
        spec = optimizer_of(OptimizerConfig(name="adamw", lr=1e-3), zero_stage=0)
        spec.per_element, spec.global_  # (("exp_avg", "exp_avg_sq"), ("step",))

    Attributes:
        name: The value of `optimizer.name`.
        make: Constructs the torch optimizer from parameter groups, which are dicts with `params`, `lr` and
            `weight_decay`.
        begin: Returns the state of one tensor before its first update, equal to the state that the optimizer would
            create. The tensor is a parameter; under ZeRO 1 to 3 it is a flat vector of many parameters, or of parts of
            them. The second argument holds the options of its parameter group.
        per_element: States with the shape of the tensor, one number for each element.
        per_parameter: States of any other shape, at most one tensor for each parameter.
        global_: Scalars that are equal for all tensors that have them, such as the number of updates.
        per_group: Numbers that the optimizer keeps in each of its `param_groups`, with their values before the first
            update. `make` must put these values into the groups.
        matrix_options: Options of the groups of matrices, without embeddings. If it is not empty, matrices and other
            parameters are in different groups.
        other_options: Options of all groups that have no `matrix_options`.
        whole_parameters: Whether the update of an element depends on other elements of its parameter. Such an
            optimizer is refused under ZeRO 1 to 3, which give it flat vectors without the boundaries of parameters.
    """

    name: str
    make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    begin: Callable[[Tensor, Options], State]
    per_element: tuple[str, ...] = ()
    per_parameter: tuple[str, ...] = ()
    global_: tuple[str, ...] = ()
    per_group: Mapping[str, float] = field(default_factory=dict[str, float])
    matrix_options: Options = field(default_factory=dict[str, Any])
    other_options: Options = field(default_factory=dict[str, Any])
    whole_parameters: bool = False

    def __post_init__(self) -> None:
        # In a flat vector of many parameters there is no place for a state of another shape.
        if self.per_parameter and not self.whole_parameters:
            raise ValueError(f"{self.name} has states per parameter, so it needs whole_parameters=True.")

    @property
    def numbers(self) -> tuple[str, ...]:
        """Returns the names of the states that every rank stores: those of `global_` and `per_group`."""
        return (*self.global_, *self.per_group)

    def state_elements(self, parameter: Tensor, options: Options) -> int:
        """Returns how many numbers the optimizer keeps for a parameter, without single numbers such as `global_`.

        `options` are those of the parameter's group.
        """
        state = self.begin(torch.empty(parameter.shape, device="meta"), options)  # "meta" allocates nothing.
        return sum(state[name].numel() for name in (*self.per_element, *self.per_parameter) if name in state)


def _moments(tensor: Tensor, _options: Options) -> State:
    return {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(tensor), "exp_avg_sq": torch.zeros_like(tensor)}


def _adamw(settings: OptimizerConfig) -> OptimizerSpec:
    return OptimizerSpec(
        name="adamw",
        make=partial(torch.optim.AdamW, betas=settings.betas, eps=settings.eps),
        begin=_moments,
        per_element=("exp_avg", "exp_avg_sq"),
        global_=("step",),
    )


def _sgd(settings: OptimizerConfig) -> OptimizerSpec:
    momentum, states = settings.sgd.momentum, ("momentum_buffer",) if settings.sgd.momentum else ()
    return OptimizerSpec(
        name="sgd",
        make=partial(torch.optim.SGD, momentum=momentum, nesterov=settings.sgd.nesterov),
        # Torch makes the first gradient the buffer. A buffer of zeros gives the same: zeros plus the gradient.
        begin=lambda tensor, _: {name: torch.zeros_like(tensor) for name in states},
        per_element=states,
    )


def _adafactor(settings: OptimizerConfig) -> OptimizerSpec:
    def begin(tensor: Tensor, _options: Options) -> State:
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


def _lion(settings: OptimizerConfig) -> OptimizerSpec:
    return OptimizerSpec(
        name="lion",
        make=partial(Lion, betas=settings.betas),
        begin=lambda tensor, _: {"exp_avg": torch.zeros_like(tensor)},
        per_element=("exp_avg",),
    )


def _lamb(settings: OptimizerConfig) -> OptimizerSpec:
    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        begun = [{**group, "step": torch.tensor(0.0)} for group in groups]
        # The engine has clipped the gradient already.
        return Lamb(begun, betas=settings.betas, eps=settings.eps, max_grad_norm=None)

    return OptimizerSpec(
        name="lamb",
        make=make,
        begin=lambda tensor, _: {"exp_avg": torch.zeros_like(tensor), "exp_avg_sq": torch.zeros_like(tensor)},
        per_element=("exp_avg", "exp_avg_sq"),
        per_group={"step": 0},
        whole_parameters=True,  # LAMB scales an update by the norms of the parameter and of the update.
    )


def _muon(settings: OptimizerConfig) -> OptimizerSpec:
    def begin(tensor: Tensor, options: Options) -> State:
        return {"momentum_buffer": torch.zeros_like(tensor)} if options["use_muon"] else _moments(tensor, options)

    own = settings.muon
    return OptimizerSpec(
        name="muon",
        # This scale makes updates as large as those of AdamW, so one `lr` fits the matrices and the rest.
        make=partial(Muon, betas=settings.betas, momentum=own.momentum, adjust_lr_fn="match_rms_adamw"),
        begin=begin,
        per_element=("momentum_buffer", "exp_avg", "exp_avg_sq"),
        global_=("step",),
        matrix_options={"use_muon": True, "nesterov": own.nesterov},
        # With `nesterov` timm would update the rest with NAdamW.
        other_options={"use_muon": False, "nesterov": False, "eps": settings.eps},
        whole_parameters=True,  # Muon makes the rows or columns of each update orthogonal.
    )


def _schedule_free(settings: OptimizerConfig) -> OptimizerSpec:
    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        from emocap_pretrain.training.schedule_free import ScheduleFreeOfGroups

        optimizer = ScheduleFreeOfGroups(groups, betas=settings.betas, eps=settings.eps)
        # The weights of the model are always those with which gradients are computed, called y in the paper. The
        # weights for use, called x, are computed from them and from z when a checkpoint is read (interop/average.py).
        optimizer.train()
        return optimizer

    return OptimizerSpec(
        name="schedule_free",
        make=make,
        begin=lambda tensor, _: {"z": tensor.detach().clone(), "exp_avg_sq": torch.zeros_like(tensor)},
        per_element=("z", "exp_avg_sq"),
        per_group={"k": 0, "weight_sum": 0.0, "lr_max": -1.0},
    )


OPTIMIZERS: Mapping[str, Callable[[OptimizerConfig], OptimizerSpec]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "lion": _lion,
    "lamb": _lamb,
    "muon": _muon,
    "schedule_free": _schedule_free,
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
    """Holds trained parameters by name. They share one weight decay and one factor of the learning rate, `lr_scale`.

    `options` are further options for the torch optimizer (`OptimizerSpec.matrix_options`).
    """

    parameters: Mapping[str, nn.Parameter]
    weight_decay: float
    lr_scale: float
    options: Options = field(default_factory=dict[str, Any])

    def for_torch(self, lr: float) -> dict[str, Any]:
        """Returns the group as a dict for a torch optimizer.

        Torch and DeepSpeed do not use the additional key `lr_scale`, but they leave it in the dict. The function
        `zero.set_learning_rate` reads it there.
        """
        return {
            **self.options,
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
    `lr_scales` names, these rates are multiplied by the factor given there. If the optimizer updates matrices
    differently (Muon), they are in groups of their own. No group is empty.

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
    spec, embeddings = OPTIMIZERS[settings.name](settings), _embeddings(model)
    spared = frozenset[str]() if settings.decay_embeddings else embeddings
    of_layer = _layer_scales(model, settings.layer_decay)
    members: dict[tuple[bool, float, bool], dict[str, nn.Parameter]] = {}
    for name, parameter in trained.items():
        decays = parameter.ndim >= 2 and name not in spared
        scale = of_layer.get(name, 1.0) * _lr_scale(name, settings.lr_scales)
        is_matrix = bool(spec.matrix_options) and parameter.ndim == 2 and name not in embeddings
        members.setdefault((decays, scale, is_matrix), {})[name] = parameter
    return tuple(
        ParameterGroup(
            members[key],
            weight_decay=settings.weight_decay if key[0] else 0.0,
            lr_scale=key[1],
            options=spec.matrix_options if key[2] else spec.other_options,
        )
        for key in sorted(members, key=lambda key: not key[0])
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
