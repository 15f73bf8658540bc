"""Describes the weights of CLIP and SigLIP models as the library transformers names them.

A config.json leaves out values that equal the defaults of transformers, so the config classes of the library fill them
in. MetaCLIP and FLIP are published in the layout of CLIP, and SigLIP 2 with images of a fixed size in that of SigLIP.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError

import emocap_torchvision
from emocap_pretrain.data.transform import Resize
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.layouts.image_processor import filter_of, processor_settings
from emocap_pretrain.interop.layouts.layout import (
    IMAGE,
    OPENAI_MEAN,
    OPENAI_STD,
    SIGLIP_MEAN,
    SIGLIP_STD,
    TEXT,
    ImageTransformer,
    TextTransformer,
    Tree,
    Triple,
    WeightsLayout,
    present,
    shape_of,
    size_of,
    statistics_of,
)
from emocap_pretrain.interop.rules import Concatenated, Rule, Same, Split, layers, renamed
from emocap_pretrain.model.transformers_loading import quiet
from emocap_pretrain.model.weights import Shapes

emocap_torchvision.install()
from transformers import CLIPConfig, MetaClip2Config, SiglipConfig  # noqa: E402 - after emocap_torchvision

_CONFIGS: Mapping[str, Any] = {"clip": CLIPConfig, "metaclip_2": MetaClip2Config, "siglip": SiglipConfig}
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
KINDS = (*_CONFIGS, "siglip2")  # For SigLIP 2 with images of any size, `describe` says why it is refused.
_STATISTICS = ("image_mean", "image_std")
_IMAGE_EPS = {"clip": 1e-5, "siglip": 1e-6}  # Epsilon of the layer norms in timm's towers.
# Older releases of transformers have written each section twice.
_SECTIONS = ("vision_config", "text_config", "vision_config_dict", "text_config_dict")
# transformers divides by some of these sizes without a check.
_SIZES = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "image_size", "patch_size")
# The keys of a section that describe its tower. Other keys, such as the dtype, are not needed.
_TOWER_KEYS = {
    *_SIZES,
    "num_channels",
    "vocab_size",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "eos_token_id",
    "pad_token_id",
    "vision_use_head",
}
# What transformers raises for a config with wrong values.
_WRONG_VALUES = (
    ArithmeticError,
    AttributeError,
    KeyError,
    RecursionError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
_POSITIONS = "embeddings.position_embedding.weight"
_VISION, _TEXT = "vision_model.", "text_model."
_BLOCK = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_VIT_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_TEXT_BLOCK = (
    *(f"self_attn.{which}_proj" for which in ("q", "k", "v", "out")),
    "layer_norm1",
    "layer_norm2",
    "mlp.fc1",
    "mlp.fc2",
)
# Buffers that older releases of transformers have stored with the weights.
_IGNORED = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")


def describe(folder: Path, shapes: Shapes, tree: Tree, *, where: str) -> WeightsLayout:
    """Describes the weights of a folder that transformers has written.

    Args:
        folder: The folder, which may have a preprocessor_config.json.
        shapes: The shapes of all tensors by name.
        tree: The content of config.json.
        where: First words of an error message: the setting and its value.

    Raises:
        ConfigError: If the model is neither a CLIP nor a SigLIP model with square images of a fixed size, or if its
            config asks for something that the towers of this project do not have.
    """
    config = _config(tree, where)
    kind = str(tree["model_type"])
    family = "siglip" if kind == "siglip" else "clip"
    images = processor_settings(folder, where)
    default = (OPENAI_MEAN, OPENAI_STD) if family == "clip" else (SIGLIP_MEAN, SIGLIP_STD)
    mean, std = statistics_of(images, _STATISTICS, default, where)
    image = _image(config.vision_config, family, mean, std, where)
    text = _text(config.text_config, kind, where)
    for layers_of, key in ((image.layers, "vision_config"), (text.layers, "text_config")):
        if layers_of > len(shapes):
            raise ConfigError(
                f"{where}: {key}.num_hidden_layers={layers_of:,}, but the file has only {len(shapes):,} tensors."
            )
    _require_rows(shapes, f"{_VISION}{_POSITIONS}", image.positions, where)
    _require_rows(shapes, f"{_TEXT}{_POSITIONS}", text.positions, where)
    settings: Tree = {"image": image.settings(), "text": text.settings()}
    if family == "clip":
        settings |= {"embedding": size_of(config.to_dict(), "projection_dim", None, where)}
        rules = [*clip_rules(image.layers), Rule(("logit_scale",), ("logit_scale",), Same(leading=1))]
    else:
        settings |= {"embedding": image.width, "project_images": False, "text_bias": True}
        rules = [*siglip_rules(image.layers), *_scales()]
    rules += text_rules(text.layers)
    name = {"clip": "CLIPModel", "metaclip_2": "MetaClip2Model", "siglip": "SiglipModel"}[kind]
    return WeightsLayout(
        name=f"{name} of transformers",
        kind="transformers",
        settings=settings,
        rules=tuple(rules),
        ignored=present(_IGNORED, shapes),
        # The image processor of SigLIP has no crop, and that of CLIP crops unless its file says otherwise.
        crop="center" if images.get("do_center_crop", family == "clip") is True else "whole",
        resize=Resize(filter_of(images)),
    )


def _config(tree: Tree, where: str) -> Any:
    """Returns the config as an object of transformers, which fills in the default values.

    Raises:
        ConfigError: If the kind of the model is not known, if a size of a tower is wrong (`size_of`), or if
            transformers refuses the config.
    """
    kind = str(tree.get("model_type"))[:40]
    if kind not in _CONFIGS:
        more = " (its images have no fixed size)" if kind == "siglip2" else ""
        raise ConfigError(
            f"{where}: config.json describes a model of the kind {kind!r}{more}; this project reads the kinds "
            f"{', '.join(_CONFIGS)}."
        )
    plain: Tree = {key: tree[key] for key in ("projection_dim",) if key in tree}
    for name in _SECTIONS:
        if tree.get(name) is not None:
            plain[name] = _tower(tree[name], name, where)
    try:
        # Only these classes are built, so a config cannot choose code that is executed.
        with quiet():  # For a published SigLIP, transformers remarks that its own default tokens do not exist there.
            return _CONFIGS[kind].from_dict(plain)
    except _WRONG_VALUES as error:
        raise ConfigError(f"{where}: config.json is wrong: {_one_line(error)}.") from error


def _tower(section: Any, name: str, where: str) -> Tree:
    """Returns the entries of a section that describe a tower, after a check of its sizes.

    Raises:
        ConfigError: If the section is not a mapping, or a size is wrong (`size_of`).
    """
    if not isinstance(section, dict):
        raise ConfigError(f"{where}: config.json is wrong: {name} is not a mapping.")
    found: Tree = {
        key: value for key, value in cast("Tree", section).items() if key in _TOWER_KEYS and value is not None
    }
    for key in _SIZES:
        size_of(found, key, 1, where)
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or repr(error)


def _require_rows(shapes: Shapes, name: str, rows: int, where: str) -> None:
    has, _ = shape_of(shapes, name, 2, where)
    if has != rows:
        raise ConfigError(f"{where}: the tensor {name} has {has} rows, but {rows} according to config.json.")


def clip_rules(depth: int) -> list[Rule]:
    """Returns the rules for the vision transformer of a CLIPModel, and for both projections."""
    return [
        Rule((f"{IMAGE}cls_token",), (f"{_VISION}embeddings.class_embedding",), Same(leading=2)),
        Rule((f"{IMAGE}pos_embed",), (f"{_VISION}embeddings.position_embedding.weight",), Same(leading=1)),
        Rule((f"{IMAGE}patch_embed.proj.weight",), (f"{_VISION}embeddings.patch_embedding.weight",)),
        *layers({"pre_layrnorm": "norm_pre", "post_layernorm": "norm"}, IMAGE, _VISION),
        *_blocks(depth),
        Rule(("to_image.weight",), ("visual_projection.weight",)),
        Rule(("to_text.weight",), ("text_projection.weight",)),
    ]


def siglip_rules(depth: int) -> list[Rule]:
    """Returns the rules for the vision transformer of a SiglipModel, its attention pooling, and the text projection."""
    pooling, head = f"{IMAGE}attn_pool.", f"{_VISION}head."
    same = {"attention.out_proj": "proj", "layernorm": "norm", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    return [
        Rule((f"{IMAGE}pos_embed",), (f"{_VISION}embeddings.position_embedding.weight",), Same(leading=1)),
        *layers({"embeddings.patch_embedding": "patch_embed.proj", "post_layernorm": "norm"}, IMAGE, _VISION),
        *_blocks(depth),
        Rule((f"{pooling}latent",), (f"{head}probe",)),
        *(
            # The first third of the rows computes the queries, and the other two thirds compute keys and values.
            Rule((f"{pooling}q.{kind}", f"{pooling}kv.{kind}"), (f"{head}attention.in_proj_{kind}",), Split((1, 2)))
            for kind in ("weight", "bias")
        ),
        *layers(same, pooling, head),
        *layers({"text_model.head": "to_text"}, "", ""),
    ]


def vit_rules(depth: int) -> list[Rule]:
    """Returns the rules for a ViTModel without its pooler, whose names begin with those of an image tower in a pair."""
    found = [
        Rule((f"{IMAGE}cls_token",), (f"{_VISION}embeddings.cls_token",)),
        Rule((f"{IMAGE}pos_embed",), (f"{_VISION}embeddings.position_embeddings",)),
        *layers({"embeddings.patch_embeddings.projection": "patch_embed.proj", "layernorm": "norm"}, IMAGE, _VISION),
    ]
    for number in range(depth):
        ours, theirs = f"{IMAGE}blocks.{number}.", f"{_VISION}layers.{number}."
        found += [*layers(_VIT_BLOCK, ours, theirs), *_joined(ours, f"{theirs}attention.")]
    return found


def text_rules(depth: int) -> list[Rule]:
    """Returns the rules for the text transformer. CLIPModel and SiglipModel have the same names for its modules."""
    modules = [f"encoder.layers.{number}.{module}" for number in range(depth) for module in _TEXT_BLOCK]
    tables = ("embeddings.token_embedding.weight", _POSITIONS)
    both = {module: module for module in (*modules, "final_layer_norm")}
    return [*layers(both, TEXT, _TEXT), *renamed({table: table for table in tables}, TEXT, _TEXT)]


def _blocks(depth: int) -> list[Rule]:
    rules: list[Rule] = []
    for number in range(depth):
        ours, theirs = f"{IMAGE}blocks.{number}.", f"{_VISION}encoder.layers.{number}."
        rules += [*layers(_BLOCK, ours, theirs), *_joined(ours, f"{theirs}self_attn.")]
    return rules


def _joined(ours: str, attention: str) -> list[Rule]:
    """Returns the rules for the query, key and value of a block; timm has one matrix with the rows of all three."""
    return [
        Rule((f"{ours}attn.qkv.{kind}",), tuple(f"{attention}{which}_proj.{kind}" for which in "qkv"), Concatenated(3))
        for kind in ("weight", "bias")
    ]


def _scales() -> list[Rule]:
    return [Rule((name,), (name,), Same()) for name in ("logit_scale", "logit_bias")]


def _image(config: Any, family: str, mean: Triple, std: Triple, where: str) -> ImageTransformer:
    if abs(config.layer_norm_eps - _IMAGE_EPS[family]) > 1e-9:
        raise ConfigError(
            f"{where}: layer_norm_eps={config.layer_norm_eps}, but timm's towers have {_IMAGE_EPS[family]}."
        )
    if config.num_channels != 3:
        raise ConfigError(f"{where}: the model reads images with {config.num_channels} channels, and 3 are needed.")
    tree = config.to_dict()
    return ImageTransformer(
        family=family,
        width=size_of(tree, "hidden_size", None, where),
        layers=size_of(tree, "num_hidden_layers", None, where),
        heads=size_of(tree, "num_attention_heads", None, where),
        patch=size_of(tree, "patch_size", None, where),
        pixels=size_of(tree, "image_size", None, where),
        mlp_width=size_of(tree, "intermediate_size", None, where),
        activation=_activation(config, where),
        mean=mean,
        std=std,
    )


def _text(config: Any, kind: str, where: str) -> TextTransformer:
    tree = config.to_dict()
    tokens = size_of(tree, "vocab_size", None, where)
    end = tree.get("eos_token_id")
    if not isinstance(end, int):
        raise ConfigError(f"{where}: text_config.eos_token_id={str(end)[:40]!r}; one number is needed.")
    # Old configs have the wrong value 2. CLIPModel then takes the largest id, the end token of CLIP's vocabulary.
    end = tokens - 1 if kind == "clip" and end == 2 else end
    return TextTransformer(
        family="siglip" if kind == "siglip" else "clip",
        width=size_of(tree, "hidden_size", None, where),
        layers=size_of(tree, "num_hidden_layers", None, where),
        heads=size_of(tree, "num_attention_heads", None, where),
        positions=size_of(tree, "max_position_embeddings", None, where),
        tokens=tokens,
        mlp_width=size_of(tree, "intermediate_size", None, where),
        activation=_activation(config, where),
        norm_eps=float(config.layer_norm_eps),
        end_id=None if kind == "siglip" else end,
        pad_id=config.pad_token_id if kind == "siglip" else None,
    )


def _activation(config: Any, where: str) -> str:
    if config.hidden_act not in _ACTIVATIONS:
        raise ConfigError(f"{where}: the activation {config.hidden_act!r} is none of {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[config.hidden_act]
