"""Opens models of open_clip whose text tower is an encoder of transformers, for evaluation.

open_clip stores the weights of such an encoder, and only the name of its config, which it downloads. A folder is not
trusted, so nothing that it names is opened: the encoder's config.json and its tokenizer must lie in the folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from emocap_pretrain.config.model import ImageTowerConfig
from emocap_pretrain.errors import CheckpointError, ConfigError
from emocap_pretrain.interop.layouts import open_clip
from emocap_pretrain.interop.layouts.layout import IMAGE, Tree, WeightsLayout, size_of
from emocap_pretrain.interop.restore import WeightShapes, too_large
from emocap_pretrain.interop.source import CONFIG_FILE
from emocap_pretrain.interop.tensors import OPEN_CLIP_FILES, Tensors, open_tensors
from emocap_pretrain.interop.transformers_models import OpenedTowers, encoder_of
from emocap_pretrain.interop.translation import translated
from emocap_pretrain.model.json_files import read_json
from emocap_pretrain.model.timm_image import TimmImageTower
from emocap_pretrain.model.transformers_towers import PooledTextTower, TextPooling
from emocap_pretrain.model.weights import Fit, shapes_of

_ENCODER, _PROJECTION, _SCALE = "text.transformer.", "text.proj.", "logit_scale"
_POOLINGS: Mapping[str, TextPooling] = {
    "mean_pooler": "mean",
    "cls_last_hidden_state_pooler": "cls",
    "cls_pooler": "pooler",
}


def text_config(folder: Path, where: str) -> Tree | None:
    """Returns open_clip's config of a folder whose text tower is an encoder of transformers; None for any other folder.

    Raises:
        ConfigError: If the config cannot be read.
    """
    if not (folder / open_clip.CONFIG_FILE).is_file():
        return None
    config = open_clip.read_config(folder, where)
    return config if config["text_cfg"].get("hf_model_name") else None


def open_pair(folder: Path, config: Tree, where: str) -> OpenedTowers:
    """Opens the towers of a model.

    Args:
        folder: The folder of the model.
        config: The result of `text_config`, which is not None.
        where: First words of an error message: the argument that names the model, and its value.

    Raises:
        ConfigError: If the weights or a config cannot be read, or if they do not fit.
    """
    tensors, text = open_tensors(folder, where, preferred=OPEN_CLIP_FILES), config["text_cfg"]
    layout = open_clip.describe_image(tensors.shapes, config, where=where)
    if not (folder / CONFIG_FILE).is_file():
        named = str(text["hf_model_name"])[:60]
        raise ConfigError(
            f"{where}: the text tower is {named!r} of transformers, whose config is not in the folder: copy the "
            f"{CONFIG_FILE} and the tokenizer of that model into the folder. They are never downloaded, because the "
            "author of a model could name any source."
        )
    pooler = str(text.get("hf_pooler_type", "mean_pooler"))
    if pooler not in _POOLINGS:
        raise ConfigError(f"{where}: hf_pooler_type={pooler[:40]!r}; one of {', '.join(_POOLINGS)} is needed.")
    tree = read_json(folder / CONFIG_FILE, where)
    encoder, width = encoder_of(tree, _part(tensors, _ENCODER), where, has_pooler=pooler == "cls_pooler")
    image, to_image = _image(layout, tensors, where)
    return OpenedTowers(
        crop=layout.crop,
        resize=layout.resize,
        image=image,
        text=PooledTextTower(
            encoder,
            width=width,
            positions=size_of(text, "context_length", 77, where),
            pad_id=encoder.config.pad_token_id or 0,
            pooling=_POOLINGS[pooler],
        ),
        to_image=to_image,
        to_text=_projection(_part(tensors, _PROJECTION), width, where),
        logit_scale=float(tensors.load([_SCALE])[_SCALE].flatten()[0]) if _SCALE in tensors.shapes else None,
    )


def _part(tensors: Tensors, prefix: str) -> Tensors:
    """Returns the tensors whose names begin with a prefix, under their names without it."""
    names = [name for name in tensors.shapes if name.startswith(prefix)]

    def read(wanted: Any) -> dict[str, Tensor]:
        found = tensors.load([prefix + name for name in wanted])
        return {name.removeprefix(prefix): each for name, each in found.items()}

    return Tensors({name.removeprefix(prefix): tensors.shapes[name] for name in names}, read)


def _image(layout: WeightsLayout, tensors: Tensors, where: str) -> tuple[TimmImageTower, nn.Linear | None]:
    """Builds the image tower and its projection, after a comparison that allocates no memory."""
    shapes = WeightShapes(tensors.shapes)
    try:
        # A tower with pretrained weights keeps the statistics of its batch norm.
        settings = ImageTowerConfig.model_validate({**layout.settings["image"], "pretrained": "open_clip"})
    except ValidationError as error:
        raise ConfigError(f"{where}: {error.errors()[0]['msg']}.") from error
    if reason := too_large(settings, settings.options, shapes):
        raise ConfigError(f"{where}: its config {reason}.")
    expected = translated(layout, tensors, where, values=False)
    own = {name.removeprefix(IMAGE): each for name, each in expected.items() if name.startswith(IMAGE)}
    try:
        with torch.device("meta"), shapes.budget():
            empty = TimmImageTower(settings)
    except CheckpointError as error:
        raise ConfigError(f"{where}: {error}") from error
    fit = Fit.of(shapes_of(empty.backbone.state_dict()), shapes_of(own))
    fit.require(where, f"the tower {settings.name}", "Give a folder whose config and weights belong together.")
    given, tower = translated(layout, tensors, where, values=True), TimmImageTower(settings)
    tower.backbone.load_state_dict({name: given[IMAGE + name] for name in own})
    matrix = given.get("to_image.weight")
    return tower, None if matrix is None else _linear(matrix)


def _projection(tensors: Tensors, width: int, where: str) -> nn.Module:
    """Returns the projection of texts: none, a matrix, or two matrices with GELU between them.

    Raises:
        ConfigError: If the tensors are others, or their shapes do not fit.
    """
    names = {(): [], ("weight",): ["weight"], ("0.weight", "2.weight"): ["0.weight", "2.weight"]}
    order = names.get(tuple(sorted(tensors.shapes)))
    sides = [tensors.shapes[name] for name in order or ()]
    if (
        order is None
        or any(len(shape) != 2 for shape in sides)
        or any(
            before != shape[1] for before, shape in zip([width, *(shape[0] for shape in sides)], sides, strict=False)
        )
    ):
        raise ConfigError(f"{where}: the projection of texts ({', '.join(sorted(tensors.shapes))[:80]}) does not fit.")
    found = [_linear(tensors.load([name])[name]) for name in order]
    return found[0] if len(found) == 1 else nn.Sequential(found[0], nn.GELU(), found[1]) if found else nn.Identity()


def _linear(matrix: Tensor) -> nn.Linear:
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(matrix)
    return layer
