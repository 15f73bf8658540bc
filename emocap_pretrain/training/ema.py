"""Defines the moving average of the weights (EMA) as one more state of the optimizer.

`with_average` adds the average to an `OptimizerSpec`. It is a state per element, as a moment of Adam is. So ZeRO shards
it, checkpoints store it, a run resumes it on any number of ranks, and the estimate of memory counts it, without code
for the average in those places (decision 33). The engine calls `update` after each update of the weights.

Only trained parameters have an average. Buffers and frozen parameters do not change, so their own values are used.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from emocap_pretrain.checkpoint.layout import AVERAGE
from emocap_pretrain.config.schema import EmaConfig
from emocap_pretrain.training.optimizer import OptimizerSpec, State

UPDATES = "ema_updates"  # The state that counts the updates of the weights that the average contains.


def with_average(spec: OptimizerSpec, settings: EmaConfig | None) -> OptimizerSpec:
    """Returns the spec with the average among its states; the same spec if `settings` is None.

    The average of a tensor begins with the values of the tensor. So the states must be created before the first update
    of the weights.
    """
    if settings is None:
        return spec

    def begin(tensor: Tensor) -> State:
        return {**spec.begin(tensor), AVERAGE: tensor.detach().clone(), UPDATES: torch.tensor(0.0)}

    return replace(spec, begin=begin, per_element=(*spec.per_element, AVERAGE), global_=(*spec.global_, UPDATES))


def decay(settings: EmaConfig, updates: int) -> float:
    """Returns the share of the average that the next update keeps, after `updates` earlier updates.

    During the warm-up it is (1 + n) / (10 + n) after n updates, so the average soon forgets the weights of the start.
    """
    return min(settings.decay, (1 + updates) / (10 + updates)) if settings.warmup else settings.decay


@torch.no_grad()
def update(tensors: Sequence[tuple[Tensor, State]], settings: EmaConfig) -> None:
    """Moves each average towards the present weights. The caller has just updated the weights.

    The average of an element depends on this element alone. So it does not depend on how ZeRO divides the weights.

    Args:
        tensors: Each tensor that the optimizer updates, with its state.
        settings: The settings of the average.
    """
    averages = [state[AVERAGE] for _, state in tensors]
    kept = decay(settings, int(tensors[0][1][UPDATES]))
    get_ema_multi_avg_fn(kept)(averages, [tensor for tensor, _ in tensors], 0)
    for _, state in tensors:
        state[UPDATES] += 1
