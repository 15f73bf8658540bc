"""Evaluates a trained model with weights of another kind. The report shows these scores beside the results.

Weights of another kind are the interpolations between the weights at the start of the training and the trained weights.
If the results belong to the moving average, the weights of the step themselves are another kind, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from emocap_pretrain.evaluation import run_tasks
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.interop.interpolation import interpolated
from emocap_pretrain.interop.restore import Restored
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.results import OtherWeights, TaskResult


def scores_of(restored: Restored, everyone: RankGroup, *, share: float | None = None) -> OtherWeights:
    """Returns the scores of a restored model, on every rank. This is a collective.

    Args:
        restored: The model, on this rank's device.
        everyone: The ranks among which the data are divided.
        share: The share of the trained weights in the weights of the model; None if these are not interpolated.

    Raises:
        ConfigError, LostContact: As `run_tasks.evaluate` does.
    """
    config = restored.config
    embedder = Embedder.of(restored, str(restored.model.logit_scale.device))
    results = run_tasks.evaluate(config.evaluation, embedder, everyone, url=config.stored()["evaluation"]["url"])
    return OtherWeights(restored.weights, share, tuple(_scores_alone(each) for each in results))


def curve(
    restored: Restored, start: Mapping[str, Tensor], shares: Sequence[float], everyone: RankGroup
) -> tuple[OtherWeights, ...]:
    """Returns the scores of the model interpolated with each share, on every rank. This is a collective.

    The weights of the model are replaced while this function runs, and restored at its end, but not after an error.

    Args:
        restored: The trained model, on this rank's device.
        start: The weights at the start of the training, by their names in the model.
        shares: The shares of the trained weights.
        everyone: The ranks among which the data are divided.

    Raises:
        ConfigError: If the weights of the start belong to another model, or as `run_tasks.evaluate` does.
        LostContact: As `run_tasks.evaluate` does.
    """
    if not shares:
        return ()
    trained = {name: each.clone() for name, each in restored.model.state_dict().items()}
    found: list[OtherWeights] = []
    for share in shares:
        restored.model.load_state_dict(interpolated(start, trained, share))
        found.append(scores_of(restored, everyone, share=share))
    restored.model.load_state_dict(trained)
    return tuple(found)


def _scores_alone(result: TaskResult) -> TaskResult:
    return replace(result, class_values=(), confusion_matrices=())
