"""Opens models of transformers that are neither CLIP nor SigLIP, for evaluation: image models, and pairs of towers.

CLIP and SigLIP become models of this project, which can be trained (`layouts/transformers.py`). All other models keep
the class of their library, wrapped as towers. A folder is not trusted: its config may only choose among the kinds
below, whose configs name no other file or hub, and gives them numbers and short words; the weights must be safetensors,
and the model that the config describes must fit them before memory is allocated. No code of a folder is executed.
"""

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

import emocap_torchvision
from emocap_pretrain.config.fields import ImageCrop
from emocap_pretrain.data.transform import Resize
from emocap_pretrain.errors import CheckpointError, ConfigError
from emocap_pretrain.interop.layouts.image_processor import ImagePreparation, read_preparation
from emocap_pretrain.interop.layouts.layout import Tree
from emocap_pretrain.interop.restore import LARGEST_PIXELS, WeightShapes, is_plain, number_too_large
from emocap_pretrain.interop.tensors import Tensors, open_tensors
from emocap_pretrain.model.towers import ImageTower
from emocap_pretrain.model.transformers_loading import WRONG_NUMBERS, loaded, quiet
from emocap_pretrain.model.transformers_text import KINDS as TEXT_KINDS
from emocap_pretrain.model.transformers_towers import (
    ImagePooling,
    PooledTextTower,
    TextPooling,
    TransformersImageTower,
)

emocap_torchvision.install()
import transformers  # noqa: E402 - after emocap_torchvision
from transformers import CONFIG_MAPPING, MODEL_MAPPING  # noqa: E402

IMAGE_KINDS = (
    "aimv2_vision_model",
    "beit",
    "bit",
    "chinese_clip_vision_model",
    "clip_vision_model",
    "convnext",
    "convnextv2",
    "data2vec-vision",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_convnext",
    "dinov3_vit",
    "efficientnet",
    "focalnet",
    "hiera",
    "ijepa",
    "mlcd_vision_model",
    "mobilenet_v1",
    "mobilenet_v2",
    "pixio",
    "pvt",
    "pvt_v2",
    "regnet",
    "resnet",
    "segformer",
    "siglip_vision_model",
    "swiftformer",
    "swin",
    "swinv2",
    "vit",
    "vit_mae",
    "vit_msn",
)
"""The kinds (`model_type`) of image models that can be opened. Their configs name no file and no other model."""


@dataclass(frozen=True, slots=True)
class PairClass:
    """Names the parts of a class of transformers whose two towers map images and texts into one space.

    Attributes:
        name: The class.
        image: The module that encodes images.
        to_image: The module that projects their pooled vectors; empty if they are not projected.
        text: The module that encodes texts.
        to_text: The module that projects their pooled vectors.
        image_pooling: How the vector of an image is made (`TransformersImageTower`).
        text_pooling: How the vector of a text is made (`PooledTextTower`).
        scale: How the model holds the scale of its cosines: its logarithm, its inverse, or not at all.
    """

    name: str
    image: str = "vision_model"
    to_image: str = "visual_projection"
    text: str = "text_model"
    to_text: str = "text_projection"
    image_pooling: ImagePooling = "pooler"
    text_pooling: TextPooling = "pooler"
    scale: Literal["logit_scale", "temperature", ""] = "logit_scale"


_BLIP_RETRIEVAL = PairClass(
    "BlipForImageTextRetrieval",
    to_image="vision_proj",
    text="text_encoder",
    to_text="text_proj",
    image_pooling="class",
    text_pooling="cls",
    scale="",
)
PAIR_KINDS: Mapping[str, PairClass] = {
    "align": PairClass("AlignModel", to_image="", text_pooling="cls", scale="temperature"),
    "altclip": PairClass("AltCLIPModel", text_pooling="cls"),
    "blip": PairClass("BlipModel"),
    "chinese_clip": PairClass("ChineseCLIPModel", text_pooling="cls"),
    "clipseg": PairClass("CLIPSegModel"),
    "flava": PairClass(
        "FlavaModel", image="image_model", to_image="image_projection", image_pooling="class", text_pooling="cls"
    ),
    "groupvit": PairClass("GroupViTModel"),
    "owlvit": PairClass("OwlViTModel"),
}
"""The kinds of models with two towers that can be opened besides CLIP and SigLIP.

AIMv2 is not among them: in transformers 5.23 each token of its texts attends to later ones if no text of a batch is
padded, and otherwise not, so the vector of a text depends on the other texts.
"""

# Keys that do not describe a tower: they name the author's classes and labels, choose code, or change the outputs.
_DROPPED = frozenset(
    {
        "architectures",
        "auto_map",
        "backbone",
        "backbone_config",
        "backbone_kwargs",
        "dtype",
        "id2label",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "quantization_config",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_pretrained_backbone",
        "use_timm_backbone",
    }
)
_POOLER = "pooler."
LARGEST_GRID = 1 << 14  # Patches of an image; the attention between more of them could need much memory and time.


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedTowers:
    """Holds the towers of a model of transformers with their weights, in evaluation mode on the CPU.

    Attributes:
        crop: The part of an image that is resized.
        resize: How this part is resized.
        image: The image tower.
        text: The text tower; None for an image model.
        to_image: The projection of the images' pooled vectors; None if they are not projected.
        to_text: The projection of the texts' vectors; None for an image model.
        logit_scale: The logarithm of the learned scale; None if the model has none.
    """

    crop: ImageCrop
    resize: Resize
    image: ImageTower
    text: PooledTextTower | None = None
    to_image: nn.Module | None = None
    to_text: nn.Module | None = None
    logit_scale: float | None = None


def can_open(tree: Tree) -> bool:
    """Returns whether `open_towers` opens models with this config.json."""
    return tree.get("model_type") in {*IMAGE_KINDS, *PAIR_KINDS}


def open_towers(folder: Path, tree: Tree, where: str) -> OpenedTowers:
    """Opens an image model or a pair of towers that transformers has written.

    Args:
        folder: The folder of the model.
        tree: The content of its config.json, for which `can_open` is True.
        where: First words of an error message: the argument that names the model, and its value.

    Raises:
        ConfigError: If the weights, the config or the image processor cannot be read, or if they do not fit.
    """
    kind = str(tree["model_type"])
    preparation = read_preparation(folder, where)
    tensors = _safetensors(folder, where)
    shapes = WeightShapes(tensors.shapes)
    config = _config(kind, tree, shapes, where)
    if kind in PAIR_KINDS:
        return _pair(_pair_class(kind, tree), config, preparation, tensors, where)
    model_class: Any = MODEL_MAPPING[type(config)]
    options: Tree = {"add_pooling_layer": True} if _may_pool(model_class) else {}
    if options and not any(_POOLER in name for name in tensors.shapes):
        # Files of classifiers lack the weights of a pooler, which would keep random values.
        empty = _empty(model_class, config, tensors, where, **options)
        options["add_pooling_layer"] = not any(name.startswith(_POOLER) for name, _ in empty.named_parameters())
    model = _model(model_class, config, tensors, where, **options)
    image = _image(model, preparation, None, where)
    return OpenedTowers(crop=preparation.crop, resize=preparation.resize, image=image)


def encoder_of(tree: Tree, tensors: Tensors, where: str, *, has_pooler: bool) -> tuple[Any, int]:
    """Returns a text encoder of transformers with its weights, and the size of its vectors.

    Args:
        tree: The content of the encoder's config.json.
        tensors: Its weights, under the names of the encoder. For `mt5`, these are the names of the encoder's stack.
        where: First words of an error message: the argument that names the model, and its value.
        has_pooler: Whether the weights contain those of the encoder's own pooling.

    Raises:
        ConfigError: If the kind of the encoder is not known, or if config and weights do not fit.
    """
    kind = str(tree.get("model_type"))[:40]
    if kind not in {*TEXT_KINDS, "mt5"}:
        raise ConfigError(
            f"{where}: the text encoder is of the kind {kind!r}; only {', '.join(TEXT_KINDS)} and mt5 fit."
        )
    config = _config(kind, tree, WeightShapes(tensors.shapes), where)
    if kind == "mt5":
        stack = {f"encoder.{name}": shape for name, shape in tensors.shapes.items()}
        renamed = Tensors(stack, lambda names: {f"encoder.{name}": each for name, each in _loaded(tensors, names)})
        return _model(transformers.MT5EncoderModel, config, renamed, where), config.d_model
    model_class: Any = MODEL_MAPPING[type(config)]
    options: Tree = {"add_pooling_layer": has_pooler} if _may_pool(model_class) else {}
    return _model(model_class, config, tensors, where, **options), config.hidden_size


def _loaded(tensors: Tensors, names: Iterable[str]) -> Iterable[tuple[str, Tensor]]:
    return tensors.load([name.removeprefix("encoder.") for name in names]).items()


def _may_pool(model_class: Any) -> bool:
    return "add_pooling_layer" in inspect.signature(model_class).parameters


def _pair_class(kind: str, tree: Tree) -> PairClass:
    is_retrieval = kind == "blip" and _BLIP_RETRIEVAL.name in (tree.get("architectures") or ())
    return _BLIP_RETRIEVAL if is_retrieval else PAIR_KINDS[kind]


def _pair(parts: PairClass, config: Any, preparation: ImagePreparation, tensors: Tensors, where: str) -> OpenedTowers:
    model = _model(getattr(transformers, parts.name), config, tensors, where)
    text, to_text = getattr(model, parts.text), getattr(model, parts.to_text)
    settings, width = text.config, next(to_text.parameters()).shape[-1]
    pad = getattr(settings, "pad_token_id", None) or 0
    # The position ids of RoBERTa begin after the id of the padding.
    positions = settings.max_position_embeddings - (pad + 1 if parts.name == "AltCLIPModel" else 0)
    scale = None if not parts.scale else float(getattr(model, parts.scale).detach())
    return OpenedTowers(
        crop=preparation.crop,
        resize=preparation.resize,
        image=_image(getattr(model, parts.image), preparation, parts.image_pooling, where),
        text=PooledTextTower(text, width=width, positions=positions, pad_id=pad, pooling=parts.text_pooling),
        to_image=getattr(model, parts.to_image) if parts.to_image else None,
        to_text=to_text,
        logit_scale=-math.log(scale) if parts.scale == "temperature" and scale and scale > 0 else scale,
    )


def _image(
    model: Any, preparation: ImagePreparation, pooling: ImagePooling | None, where: str
) -> TransformersImageTower:
    patch = getattr(model.config, "patch_size", None)
    if isinstance(patch, int) and patch > 0 and (preparation.pixels // patch) ** 2 > LARGEST_GRID:
        raise ConfigError(f"{where}: patch_size={patch} makes more than {LARGEST_GRID:,} patches of an image.")
    try:
        return TransformersImageTower(
            model, pixels=preparation.pixels, mean=preparation.mean, std=preparation.std, pooling=pooling
        )
    except WRONG_NUMBERS as error:
        first = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"{where}: {type(model).__name__} cannot read the images of {preparation.pixels} pixels that its image "
            f"processor makes ({first})."
        ) from error


def _safetensors(folder: Path, where: str) -> Tensors:
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise ConfigError(
            f"{where}: the folder has no model.safetensors, the only form in which weights of this kind of model are "
            "read; transformers writes it with save_pretrained."
        )
    return open_tensors(folder, where)


def _config(kind: str, tree: Tree, shapes: WeightShapes, where: str) -> Any:
    """Returns the config as an object of transformers, with the values of a stranger only where they are harmless.

    Raises:
        ConfigError: If a value is too large for the weights or is a text that is no short name, or if transformers
            refuses the config.
    """
    config_class: Any = CONFIG_MAPPING[kind]
    try:
        plain = _described(config_class, tree)
        reason = number_too_large(plain, shapes) or _too_deep(plain, len(shapes.shapes))
        if reason or not is_plain(plain):
            raise ConfigError(f"{where}: its config {reason or 'contains a text that is not a short name'}.")
        if kind == "vit_mae":  # It would hide most patches, as in its training.
            plain["mask_ratio"] = 0.0
        with quiet():
            return config_class.from_dict(plain)
    except (*WRONG_NUMBERS, StrictDataclassError, RecursionError) as error:
        first = " ".join(str(error).split())[:200] or repr(error)
        raise ConfigError(f"{where}: config.json is wrong: {first}.") from error


def _described(config_class: Any, tree: Tree) -> Tree:
    """Returns the entries of a config that describe its towers: those that the class knows, without `_DROPPED`."""
    sections: Mapping[str, Any] = config_class.sub_configs
    known = {*config_class().to_dict(), *config_class.attribute_map} - _DROPPED
    found: Tree = {}
    for key, value in tree.items():
        # Older releases of transformers have written each section twice.
        section = sections.get(key.removesuffix("_dict"))
        if section is not None:
            if isinstance(value, dict):
                found[key] = _described(section, cast("Tree", value))
        elif key in known and not key.startswith("_"):
            found[key] = value
    return found


def _too_deep(plain: Tree, most: int) -> str | None:
    """Returns why a config is refused: a number of layers, or a side of images, that no weights can fill."""
    for key, value in _entries(plain):
        numbers = [each for each in _flat(value) if isinstance(each, int | float)]
        if ("layer" in key or "depth" in key) and any(each > most for each in numbers) and "eps" not in key:
            return f"asks for {key}={str(value)[:40]}, but the weights are only {most:,} tensors"
        if key == "image_size" and any(each > LARGEST_PIXELS for each in numbers):
            return f"asks for images of {str(value)[:40]} pixels"
    return None


def _entries(tree: Tree) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _entries(cast("Tree", value))
        else:
            yield key, value


def _flat(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _model(model_class: Any, config: Any, tensors: Tensors, where: str, **options: Any) -> Any:
    """Builds a model and loads its weights, after a comparison that allocates no memory.

    Raises:
        ConfigError: If the model cannot be built, is larger than the weights, or does not get all of its weights.
    """
    empty = _empty(model_class, config, tensors, where, **options)
    most = sum(each.numel() for each in empty.parameters())
    has = WeightShapes(tensors.shapes).numbers
    if most > has:
        raise ConfigError(
            f"{where}: these weights do not fill {model_class.__name__}: its config describes {most:,} numbers, and "
            f"the file has {has:,}. Give a folder whose config.json and weights belong together."
        )
    state: dict[str, Tensor] = tensors.load(tensors.shapes)
    return loaded(model_class, where, None, config=config, state_dict=state, **options)[0].eval()


def _empty(model_class: Any, config: Any, tensors: Tensors, where: str, **options: Any) -> nn.Module:
    """Builds a model on the device "meta", within a budget that follows from the weights.

    Raises:
        ConfigError: If the model cannot be built, or is clearly larger than the weights.
    """
    try:
        with torch.device("meta"), WeightShapes(tensors.shapes).budget(), quiet():
            return model_class(config, **options)
    except CheckpointError as error:
        raise ConfigError(f"{where}: {error}") from error
    except (*WRONG_NUMBERS, ImportError) as error:
        first = " ".join(str(error).split())[:160] or repr(error)
        raise ConfigError(f"{where}: transformers cannot build {model_class.__name__} ({first}).") from error
