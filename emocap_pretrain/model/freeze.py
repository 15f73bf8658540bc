"""Freezes parts of a `TowerPair`, so that they keep the values with which training begins.

A frozen parameter has neither a gradient nor optimizer state. Checkpoints contain it like all other weights. If the
first blocks of a tower are frozen, autograd keeps none of their activations, because no gradient passes through them.
A tower whose parameters are all frozen also runs without dropout (`TowerPair.train`).
"""

from typing import cast

from torch import nn

from emocap_pretrain.config.fields import Freeze
from emocap_pretrain.config.model import ModelConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.towers import ImageTower, TextTower


def freeze_towers(image: ImageTower, text: TextTower, settings: ModelConfig) -> None:
    """Freezes the parts of the towers that `model.image.freeze` and `model.text.freeze` name.

    Raises:
        ConfigError: If a number of blocks is so large that nothing of the tower would be trained.
    """
    _freeze(image, settings.image.freeze, "model.image.freeze")
    _freeze(text, settings.text.freeze, "model.text.freeze")


def is_frozen(module: nn.Module) -> bool:
    """Returns whether all parameters of the module are frozen."""
    return not any(parameter.requires_grad for parameter in module.parameters())


def _freeze(tower: ImageTower | TextTower, depth: Freeze | None, key: str) -> None:
    """Freezes all parameters of a tower, or those whose depth (`parameter_depths`) is at most `depth`."""
    if depth is None:
        return
    depths = tower.parameter_depths()
    last = max(depths.values())
    if isinstance(depth, int) and depth >= last:
        raise ConfigError(
            f"{key}={depth}: the depths of this tower are 0 (embeddings) to {last}, so at most {last - 1} leaves "
            f"something to train; to freeze the whole tower set {key}=all."
        )
    # At run time every tower is a module (towers.py).
    for name, parameter in cast(nn.Module, tower).named_parameters():
        if depth == "all" or depths[name] <= depth:
            parameter.requires_grad_(False)
