"""Trains CLIP-like models of facial emotion, and uses the trained models.

    import emocap_pretrain as emocap

    model = emocap.load("runs/my")
    vectors = model.embed_images(["a.jpg", "b.jpg"])

This module imports neither torch nor the libraries of the towers; `load` does (a test checks this). docs/python.md
describes the use of a model from Python.
"""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import os

    from emocap_pretrain.inference.model import EmotionModel

__all__ = ["load"]


def load(
    source: "str | os.PathLike[str]",
    *,
    step: int | Literal["best"] | None = None,
    weights: Literal["raw", "ema", "schedule_free"] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] | None = None,
) -> "EmotionModel":
    """Loads the model of a run, or a CLIP or SigLIP model of another library, for use from Python.

    The checkpoint is not trusted: nothing that it names is opened, and no code in it is executed (docs/security.md).
    During this call, no other thread of the process may build a model.

    Args:
        source: The folder or URL of a run, or `run:URL@step`; a folder that `emocap export --to safetensors` has
            written; or the folder, file or hub name of a model of another library, as for the setting `model.from`
            (docs/weights.md), or of any other model in docs/evaluation.md. An image tower alone cannot embed texts.
        step: For a run, the step of the checkpoint; "best" takes the best evaluated one, and None the newest one.
        weights: For a run, "raw" takes the weights of the step, "ema" their moving average, and "schedule_free" the
            average that the optimizer schedule_free means for use. None takes the average if the run keeps one.
        device: Device of the model; "auto" is "cuda" if there is a GPU, and "cpu" otherwise.
        activation: The activation of the towers, for a file of another library that does not contain it.

    Raises:
        CheckpointError: If there is no such checkpoint, if it is damaged, or if it has no average for `weights`.
        ConfigError: If the config and weights do not belong together, if a model cannot be read, if `step` or `weights`
            is given for a model of another library or an export, if `activation` is given for a model that is not a
            CLIP or SigLIP of another library, or if `device` is "cuda" and there is no GPU.
        StoreError: If the store of the run cannot be reached.

    Example:
        model = emocap_pretrain.load("runs/my")
        model.classify(["face.jpg"], ["happiness", "sadness", "neutral"]).top(1)
    """
    from emocap_pretrain.inference import model

    return model.load(source, step=step, weights=weights, device=device, activation=activation)
