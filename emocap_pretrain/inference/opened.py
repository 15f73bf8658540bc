"""Opens any model that this project can read, by its name, for `emocap_pretrain.load` and `emocap evaluate`.

The name may belong to a run of this project, to a portable export of a run, to a CLIP or SigLIP model of another
library, or to an image tower of another library. Or it is `hog`. No file of a model is trusted (docs/security.md).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from emocap_pretrain.config.location import PACKAGE_PREFIX, RUN_PREFIX
from emocap_pretrain.config.model import PartLengthsConfig
from emocap_pretrain.config.objective import ObjectiveConfig
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.parts import PROMPT_PART
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.inference.alignment import LocalAlignment
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.interop.export import portable
from emocap_pretrain.interop.image_weights import is_image_tower, load_image_tower
from emocap_pretrain.interop.layouts import open_clip
from emocap_pretrain.interop.layouts.layout import Tree
from emocap_pretrain.interop.layouts.transformers import KINDS
from emocap_pretrain.interop.load import load_source
from emocap_pretrain.interop.open_clip_texts import open_pair, text_config
from emocap_pretrain.interop.restore import Restored, StepChoice, restore
from emocap_pretrain.interop.source import CONFIG_FILE, is_foreign, local_copy, run_and_step
from emocap_pretrain.interop.transformers_models import OpenedTowers, can_open, open_towers
from emocap_pretrain.model.hog import HogTower
from emocap_pretrain.model.json_files import read_json
from emocap_pretrain.model.pair import image_alone, pair_of
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
        restored: What was read from the checkpoint or the export, for a model of this project; None for a model of
            another library and for `hog`.
    """

    embedder: Embedder
    restored: Restored | None = None


def open_model(
    name: str,
    *,
    step: StepChoice | None = None,
    weights: Weights | None = None,
    config: Config | None = None,
    interpolate: float | None = None,
    activation: Activation | None = None,
) -> OpenedModel:
    """Opens a model on the CPU. This is not a collective: one process reads the model, and may send it to others.

    Args:
        name: The folder or URL of a run, `run:URL`, `run:URL@step` or `run:URL@best`; a folder that
            `emocap export --to safetensors` has written; a folder, file or hub name of a CLIP or SigLIP of another
            library, as for `model.from`; a folder or hub name of another model of transformers (`interop/
            transformers_models.py`); a folder, file or hub name of an image tower of timm; or `hog`.
        step: For a run, the step of the checkpoint, or "best" (`restore`); None takes the newest one.
        weights: For a run, "raw" for the weights of the step, "ema" for their moving average, or "schedule_free" for
            the average of this optimizer; None takes the average if the run keeps one.
        config: The user's own config of the run (`restore`). For an export, only its section `evaluation` is used, and
            for a model of another library nothing of it.
        interpolate: For a run, the share `a` in the interpolation (1 - a) * start + a * trained of its weights; None
            interpolates nothing.
        activation: The activation of the towers, for a file of another library that does not contain it. With a folder
            that names its activation, this argument is ignored.

    Raises:
        CheckpointError: If there is no such checkpoint, if it is damaged, if it has no average for `weights`, or if
            `interpolate` is given and the run has no checkpoint of step 0.
        ConfigError: If the model cannot be read; if `step`, `weights` or `interpolate` is given and the model is not a
            run; or if `activation` is given and the model is not a CLIP or SigLIP of another library.
        StoreError: If the store of the run cannot be reached.
    """
    name = where_is(name)
    chosen = {"step": step, "weights": weights, "interpolate": interpolate}
    given = [key for key, value in chosen.items() if value is not None]
    if is_of_another_library(name):
        if given:
            raise ConfigError(f"{_KEY}={name}: {' and '.join(given)} is for a run of this project: leave it out.")
        return OpenedModel(_foreign(name, activation))
    _need_no_activation(name, activation)
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
    """Returns the name of a model. If the name may be a path, the home folder replaces `~` at its beginning.

    A name that begins with a dot, such as "./org/name", becomes an absolute path, because "org/name" could also be a
    name on the hub.
    """
    is_path = "://" not in name and not name.startswith((RUN_PREFIX, PACKAGE_PREFIX))
    if not is_path:
        return name
    path = Path(name).expanduser()
    return str(path.absolute() if name.startswith(".") else path)


def is_of_another_library(name: str) -> bool:
    """Returns whether a name is that of a model of another library or `hog`.

    Otherwise it is the name of a run of this project, or of a portable export of a run.
    """
    return _is_hog(name) or (is_foreign(name) and not portable.is_portable(name))


def _need_no_activation(name: str, activation: Activation | None) -> None:
    if activation is not None:
        raise ConfigError(f"{_KEY}={name}: activation={activation} is for a CLIP of another library: leave it out.")


def _is_hog(name: str) -> bool:
    return name == HOG and not Path(name).exists()


def _with_evaluation(config: Config, own: Config) -> Config:
    return config.model_copy(update={"evaluation": own.evaluation})


def _foreign(name: str, activation: Activation | None) -> Embedder:
    if _is_hog(name):
        _need_no_activation(name, activation)
        return Embedder(image_alone(HogTower()), None)
    path, where = local_copy(name, _KEY), f"{_KEY}={name}"
    if is_image_tower(path, where):
        _need_no_activation(name, activation)
        found = load_image_tower(str(path), key=_KEY)
        return Embedder(image_alone(found.tower), None, crop=found.crop)
    if config := text_config(path, where):
        _need_no_activation(name, activation)
        return _embedder_of(open_pair(path, config, where), path)
    if tree := _of_transformers(path, where):
        _need_no_activation(name, activation)
        return _embedder_of(open_towers(path, tree, where), path)
    loaded = load_source(name, key=_KEY, activation=activation)
    lengths = loaded.settings.text.lengths
    # The projections of patches and sentences are copies of those of images and texts, so both can be compared.
    sharpness = ObjectiveConfig.model_validate({}).sharpness
    local = LocalAlignment(sharpness, lengths.local, is_trained=False)
    return Embedder(loaded.model, loaded.tokenizer, local, lengths.by_part, loaded.crop, loaded.resize)


def _of_transformers(path: Path, where: str) -> Tree | None:
    """Returns the config.json of a folder with a model that `open_towers` opens; None for any other model."""
    config = path / CONFIG_FILE
    if not config.is_file() or (path / open_clip.CONFIG_FILE).is_file():
        return None
    tree = read_json(config, where)
    if can_open(tree):
        return tree
    kind = tree.get("model_type")
    if kind is None or kind in KINDS:
        return None
    raise ConfigError(
        f"{where}: config.json describes a model of the kind {str(kind)[:40]!r}, which cannot be opened; "
        "docs/evaluation.md lists the kinds that can."
    )


def _embedder_of(found: OpenedTowers, folder: Path) -> Embedder:
    crop, resize = found.crop, found.resize
    if found.text is None or found.to_text is None:
        return Embedder(image_alone(found.image), None, crop=crop, resize=resize)
    positions = found.text.positions
    lengths = {part: min(length, positions) for part, length in PartLengthsConfig().by_part.items()}
    model = pair_of(
        found.image,
        found.text,
        found.to_image,
        found.to_text,
        prompt_length=lengths[PROMPT_PART.name],
        logit_scale=found.logit_scale,
    )
    return Embedder(model, Tokenizer.load(str(folder)), lengths=lengths, crop=crop, resize=resize)
