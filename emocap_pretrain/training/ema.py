"""Defines the moving average of the weights (EMA) as one more state of the optimizer.

`with_average` adds the average to an `OptimizerSpec`, as a state with one number per element, like a moment of Adam. So
the code that shards, stores, resumes and counts states of the optimizer also handles the average (decision 33). The
engine calls `update` after each update of the weights.

`AveragedModel` is a whole model with these averages as its weights. Only a run that mines with vectors of the averaged
model has one.

Only trained parameters have an average. Buffers and frozen parameters do not change, so their own values are used.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from emocap_pretrain.checkpoint.layout import AVERAGE
from emocap_pretrain.config.optimizer import EmaConfig
from emocap_pretrain.data.batch import Batch
from emocap_pretrain.model.pair import Embeddings, TowerPair
from emocap_pretrain.training.optimizer import OptimizerSpec, Options, State
from emocap_pretrain.training.representation_cache import Cached

UPDATES = "ema_updates"  # The state that counts the updates of the weights since the average began.


def with_average(spec: OptimizerSpec, settings: EmaConfig | None) -> OptimizerSpec:
    """Returns the spec with the average among its states; the same spec if `settings` is None.

    The average of a tensor begins with the present values of the tensor. So the states must be created before the first
    update of the weights.
    """
    if settings is None:
        return spec

    def begin(tensor: Tensor, options: Options) -> State:
        return {**spec.begin(tensor, options), AVERAGE: tensor.detach().clone(), UPDATES: torch.tensor(0.0)}

    return replace(spec, begin=begin, per_element=(*spec.per_element, AVERAGE), global_=(*spec.global_, UPDATES))


def decay(settings: EmaConfig, updates: int) -> float:
    """Returns the decay of the next update of the average: the share of the old average that it keeps.

    With a warm-up, the decay is at most (1 + n) / (10 + n) after `updates` = n earlier updates, so that the average
    quickly forgets the weights with which training began.
    """
    return min(settings.decay, (1 + updates) / (10 + updates)) if settings.warmup else settings.decay


@torch.no_grad()
def update(tensors: Sequence[tuple[Tensor, State]], settings: EmaConfig) -> float:
    """Updates each average with the present weights. It must be called after every update of the weights.

    The average of an element depends on this element alone. So it does not depend on how ZeRO shards the weights.

    Args:
        tensors: Each tensor that the optimizer updates, with its state.
        settings: The settings of the average.

    Returns:
        The decay that was applied.
    """
    averages = [state[AVERAGE] for _, state in tensors]
    kept = decay(settings, int(tensors[0][1][UPDATES]))
    get_ema_multi_avg_fn(kept)(averages, [tensor for tensor, _ in tensors], 0)
    for _, state in tensors:
        state[UPDATES] += 1
    return kept


class AveragedModel:
    """Encodes batches with the moving average of the weights, so that mining can use its vectors.

    Every rank holds the whole averaged model, and updates it in the same way as the state of the optimizer. It needs no
    communication for this, because each rank has all weights of the model at stages 0 to 2 of ZeRO. The weights of this
    model equal the average in every bit. Dropout and patch dropout are off.
    """

    def __init__(self, model: TowerPair, *, passes: int) -> None:
        """Copies a model.

        Args:
            model: The model, before it is passed to DeepSpeed. Its weights do not matter, because `load` replaces them.
            passes: Number of passes in which a rank encodes its rows.
        """
        self._model = copy.deepcopy(model).requires_grad_(False).eval()
        self._passes = passes

    def __call__(self, batch: Batch) -> Embeddings:
        """Returns the embeddings of this rank's rows, without an autograd graph. This is not a collective."""
        return Cached.of(batch, self._passes, lambda _, part: self._model(part)).embeddings

    def load(self, model: nn.Module, averages: Iterable[tuple[str, Tensor]]) -> None:
        """Copies the buffers and frozen parameters of the trained model, and the averages of the trained parameters.

        `averages` yields the name and the flat average of each trained parameter.
        """
        self._model.to(next(model.parameters()).device).load_state_dict(model.state_dict())
        parameters = dict(self._model.named_parameters())
        for name, average in averages:
            parameters[name].view(-1).copy_(average)

    @torch.no_grad()
    def update(self, model: nn.Module, kept: float) -> None:
        """Updates the average with the weights of the trained model; `kept` is the decay from the function `update`."""
        trained = {name for name, each in model.named_parameters() if each.requires_grad}
        averages, weights = (
            tuple(each for name, each in which.named_parameters() if name in trained) for which in (self._model, model)
        )
        get_ema_multi_avg_fn(kept)(averages, weights, 0)
