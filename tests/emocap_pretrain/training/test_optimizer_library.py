"""Compares the optimizers under ZeRO with the libraries that define them, without ZeRO and in one process.

The gradients are given numbers, and their means over two ranks are exact in float32. So all differences come from how
the engine uses an optimizer, and not from the order of float additions in a backward pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import timm.optim
import torch
from gloo_ranks import on_gloo
from optimizer_cases import CASES, with_optimizer
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn

from emocap_pretrain.config.optimizer import OptimizerConfig
from emocap_pretrain.config.schema import Config
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.training import zero
from emocap_pretrain.training.optimizer import optimizer_of, parameter_groups

STEPS, RANKS, DECAY = 3, 2, 0.25
# No axis of a matrix is shorter than 4: by itself, timm would update such a matrix with AdamW.
SHAPES = {"matrix": (6, 5), "other": (4, 7), "bias": (7,), "scale": (1,)}


class GivenGradients(nn.Module):
    """Has parameters of several shapes. The gradient of its output has the given values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(SHAPES["matrix"]))
        self.other = nn.Parameter(torch.randn(SHAPES["other"]))
        self.bias = nn.Parameter(torch.randn(SHAPES["bias"]))
        self.scale = nn.Parameter(torch.tensor([0.5]))

    def forward(self, gradients: dict[str, Tensor]) -> Tensor:
        named = {"matrix": self.matrix, "other": self.other, "bias": self.bias, "scale": self.scale}
        return torch.stack([(named[name] * each).sum() for name, each in gradients.items()]).sum()


def gradients_of(step: int, rank: int) -> dict[str, Tensor]:
    """Returns gradients in eighths, so that sums and means over ranks have no rounding errors."""
    source = torch.Generator().manual_seed(10 * step + rank)
    return {name: torch.randint(-40, 40, shape, generator=source) / 8 for name, shape in SHAPES.items()}


def trained(world: RankGroup, cases: Sequence[tuple[OptimizerConfig, int]]) -> list[dict[str, Tensor]]:
    """Returns the weights after three steps at the given stage of ZeRO, for each case."""
    return [_trained(world, settings, stage) for settings, stage in cases]


def _trained(world: RankGroup, settings: OptimizerConfig, stage: int) -> dict[str, Tensor]:
    model, spec = GivenGradients(), optimizer_of(settings, stage)
    groups = parameter_groups(model, settings)
    engine, _ = zero.initialise(model, spec, groups, world, lr=settings.lr, clip_norm=0.0, zero_stage=stage, rows=1)
    for step in range(STEPS):
        zero.set_learning_rate(engine, settings.lr / (step + 1))
        engine.backward(engine(gradients_of(step, world.rank)))
        engine.step()
    return {name: each.clone() for name, each in zero.weights(engine)}


def by_the_library(settings: OptimizerConfig) -> dict[str, Tensor]:
    """Returns the weights after three steps of the library's own optimizer, as its documentation shows its use."""
    model = GivenGradients()
    named = dict(model.named_parameters())
    matrices, rest = [named["matrix"], named["other"]], [named["bias"], named["scale"]]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizers = _of_the_library(settings, groups)
    for step in range(STEPS):
        both = [gradients_of(step, rank) for rank in range(RANKS)]
        for name, parameter in named.items():
            parameter.grad = torch.stack([each[name] for each in both]).mean(0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.lr / (step + 1)
            optimizer.step()
    return {name: each.detach() for name, each in named.items()}


def _of_the_library(settings: OptimizerConfig, groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
    lr, betas, eps = settings.lr, settings.betas, settings.eps
    adamw: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps}
    make: dict[str, Callable[[], list[torch.optim.Optimizer]]] = {
        "adamw": lambda: [torch.optim.AdamW(groups, **adamw)],
        "sgd": lambda: [torch.optim.SGD(groups, lr=lr, momentum=0.9)],
        "adafactor": lambda: [torch.optim.Adafactor(groups, lr=lr)],
        "lion": lambda: [timm.optim.Lion(groups, lr=lr, betas=betas)],
        "lamb": lambda: [timm.optim.Lamb(groups, **adamw, max_grad_norm=None)],
        "muon": lambda: [
            timm.optim.Muon(groups[:1], lr=lr, momentum=0.95, nesterov=True),
            torch.optim.AdamW(groups[1:], **adamw),
        ],
        "schedule_free": lambda: [AdamWScheduleFree(groups, **adamw)],
    }
    found = make[settings.name]()
    for optimizer in found:
        if isinstance(optimizer, AdamWScheduleFree):
            optimizer.train()
    return found


def test_three_steps_on_two_ranks_equal_those_of_the_library(tiny_config: Config) -> None:
    settings = [with_optimizer(tiny_config, name, weight_decay=DECAY).optimizer for name, _ in CASES]
    found = on_gloo(RANKS, trained, [(each, stage) for each, (_, stage) in zip(settings, CASES, strict=True)])[0]
    begun = dict(GivenGradients().named_parameters())
    for (name, stage), own, weights in zip(CASES, settings, found, strict=True):
        for key, wanted in by_the_library(own).items():
            assert not torch.equal(wanted, begun[key])
            torch.testing.assert_close(weights[key], wanted, rtol=0, atol=1e-6, msg=f"{name}, stage {stage}: {key}")


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_the_weights_for_use_equal_those_of_the_library(steps: int) -> None:
    # interop/average.py computes them by the same formula from a checkpoint.
    parameter = nn.Parameter(torch.arange(6.0))
    optimizer = AdamWScheduleFree([parameter], lr=0.1, betas=(0.9, 0.98))
    optimizer.train()
    for step in range(steps):
        parameter.grad = torch.full((6,), float(step - 2))
        optimizer.step()
    trained_at = parameter.detach().clone()
    base = optimizer.state[parameter]["z"] if steps else trained_at
    optimizer.eval()
    assert trained_at.lerp(base, 1 - 1 / 0.9).equal(parameter.detach())
