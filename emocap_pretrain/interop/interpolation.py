"""Interpolates between the weights with which a run began and its trained weights (WiSE-FT).

The method is WiSE-FT of Wortsman et al. 2022 (arXiv 2109.01903): with the share `a`, each number is
(1 - a) * start + a * trained. A fine-tuned model gains on the data that it was tuned on and loses on others; a share
between 0 and 1 often keeps most of the gain and loses little.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from emocap_pretrain.errors import ConfigError

Weights = Mapping[str, Tensor]


def interpolated(start: Weights, trained: Weights, share: float) -> dict[str, Tensor]:
    """Returns (1 - share) * start + share * trained, for each tensor by its name. The inputs do not change.

    Learned scales are stored as logarithms, and the logarithms are interpolated. Tensors of integers, such as counters,
    are those of `trained`. With the share 0 all other tensors equal those of `start` in every bit, and with the share 1
    those of `trained`.

    Args:
        start: The weights of one model.
        trained: The weights of another model with the same names and shapes.
        share: The share of `trained`, from 0 to 1.

    Raises:
        ConfigError: If the share is not between 0 and 1, or the models differ in a name or a shape.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"weights are interpolated with a share from 0 to 1, but {share:g} was given.")
    for name in sorted(start.keys() | trained.keys()):
        shapes = [tuple(each[name].shape) if name in each else None for each in (start, trained)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"weights of different models cannot be interpolated: {name} has shape {shapes[0]} in the first and "
                f"{shapes[1]} in the second, where None means that it is missing."
            )
    return {
        name: torch.lerp(start[name].to(each), each, share) if each.is_floating_point() else each
        for name, each in trained.items()
    }
