"""Opens any model that this project can read, by the name that a user gives, for `emocap.load` and `emocap evaluate`.

A model is a run of this project, an export of one, a CLIP or SigLIP of another library, or an image tower of timm. None
of them is trusted (docs/security.md).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from emocap_pretrain.config.location import PACKAGE_PREFIX, RUN_PREFIX
from emocap_pretrain.config.objective import ObjectiveConfig
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.inference.alignment import LocalAlignment
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.interop.export import portable
from emocap_pretrain.interop.image_weights import is_image_tower, load_image_tower
from emocap_pretrain.interop.load import load_source
from emocap_pretrain.interop.restore import Restored, restore
from emocap_pretrain.interop.source import is_foreign, local_copy, run_and_step
from emocap_pretrain.model.hog import HogTower
from emocap_pretrain.model.pair import image_alone
from emocap_pretrain.run_folder.results import Weights

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]

HOG = "hog"
"""The name of the tower without weights, with whose probes those of trained towers are compared (`model/hog.py`)."""
_KEY = "source"  # What error messages call the name of a model of another library.


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """Holds a model in evaluation mode on the CPU.

    Attributes:
        embedder: The towers and the tokenizer.
        restored: The checkpoint of the model, if it is one of this project; None for a model of another library.
    """

    embedder: Embedder
    restored: Restored | None = None


def open_model(
    name: str,
    *,
    step: int | None = None,
    weights: Weights | None = None,
    config: Config | None = None,
    interpolate: float | None = None,
    activation: Activation | None = None,
) -> OpenedModel:
    """Opens a model on the CPU. This is not a collective: one process reads the model, and may send it to others.

    Args:
        name: The folder or URL of a run, `run:URL` or `run:URL@step`; a folder that `emocap export --to safetensors`
            has written; a folder, file or hub name of a CLIP or SigLIP of another library, as for `model.from`; one of
            an image tower of timm; or `hog`.
        step: Step of the checkpoint of a run.
        weights: The weights of the step or their moving average, for a run.
        config: The user's own config of the run (`restore`).
        interpolate: The share of an interpolation between the weights of the start and these, for a run.
        activation: The activation of the towers, for a file of another library that does not contain it.

    Raises:
        CheckpointError: If there is no such checkpoint, or if it is damaged.
        ConfigError: If a model cannot be read, or if an argument is for models of another kind.
    """
    name = where_is(name)
    chosen = {"step": step, "weights": weights, "interpolate": interpolate}
    given = [key for key, value in chosen.items() if value is not None]
    if is_of_another_library(name):
        if given:
            raise ConfigError(f"{_KEY}={name}: {' and '.join(given)} is for a run of this project: leave it out.")
        return OpenedModel(_foreign(name, activation))
    if name.startswith(RUN_PREFIX):
        name, of_name = run_and_step(name)
        step = of_name if step is None else step
    if "://" in name or not portable.is_portable(name):
        restored = restore(name, step=step, config=config, weights=weights, interpolate=interpolate)
    elif given:
        raise ConfigError(
            f"{name} is an export, which has only one step and one kind of weights: leave out {' and '.join(given)}."
        )
    else:
        restored = portable.read(name)
        restored = restored if config is None else replace(restored, config=_with_evaluation(restored.config, config))
    return OpenedModel(Embedder.of(restored, "cpu"), restored)


def where_is(name: str) -> str:
    """Returns the name of a model with `~` replaced by the home folder in a path."""
    is_path = "://" not in name and not name.startswith((RUN_PREFIX, PACKAGE_PREFIX))
    return str(Path(name).expanduser()) if is_path else name


def is_of_another_library(name: str) -> bool:
    """Returns whether a name is not that of a run of this project or of an export of one."""
    return _is_hog(name) or (is_foreign(name) and not portable.is_portable(name))


def _is_hog(name: str) -> bool:
    return name == HOG and not Path(name).exists()


def _with_evaluation(config: Config, own: Config) -> Config:
    return config.model_copy(update={"evaluation": own.evaluation})


def _foreign(name: str, activation: Activation | None) -> Embedder:
    if _is_hog(name):
        return Embedder(image_alone(HogTower()), None)
    path = local_copy(name, _KEY)
    if is_image_tower(path, f"{_KEY}={name}"):
        found = load_image_tower(str(path), key=_KEY)
        return Embedder(image_alone(found.tower), None, crop=found.crop)
    loaded = load_source(name, key=_KEY, activation=activation)
    lengths = loaded.settings.text.lengths
    # The projections of patches and sentences are copies of those of images and texts, so both can be compared.
    sharpness = ObjectiveConfig.model_validate({}).sharpness
    local = LocalAlignment(sharpness, lengths.local, is_trained=False)
    return Embedder(loaded.model, loaded.tokenizer, local, lengths.by_part, loaded.crop)
