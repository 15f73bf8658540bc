"""Describes the weights of CLIP and SigLIP models as the library transformers names them.

The config.json of a folder leaves out values that equal the defaults of transformers, so the library's own config
classes fill them in. MetaCLIP and FLIP are published in the layout of CLIP, and SigLIP 2 in that of SigLIP.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import emocap_torchvision
from emocap_pretrain.errors import ConfigError
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
    WeightsLayout,
    present,
)
from emocap_pretrain.interop.rules import Divided, Form, Joined, Rule, Same, layers, renamed
from emocap_pretrain.model.weights import Shapes

emocap_torchvision.install()
from transformers import CLIPConfig, SiglipConfig  # noqa: E402 - after emocap_torchvision

_CONFIGS: Mapping[str, Any] = {"clip": CLIPConfig, "siglip": SiglipConfig}
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
_STATISTICS = ("image_mean", "image_std")
_IMAGE_EPS = {"clip": 1e-5, "siglip": 1e-6}  # Those of the layer norms of timm's towers.
_VISION, _TEXT = "vision_model.", "text_model."
_BLOCK = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_TEXT_BLOCK = (
    *(f"self_attn.{which}_proj" for which in ("q", "k", "v", "out")),
    *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
)
# Buffers that older releases of transformers have stored with the weights.
_CONSTANTS = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")


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
    family = str(tree.get("model_type"))
    if family not in _CONFIGS:
        more = " (its images have no fixed size)" if family == "siglip2" else ""
        raise ConfigError(
            f"{where}: config.json describes a model of the kind {family!r}{more}; this project reads the kinds "
            f"{', '.join(_CONFIGS)}."
        )
    try:
        # Only these two classes are built, and they take any keys, so a config cannot choose code that is executed.
        config = _CONFIGS[family].from_dict(tree)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{where}: config.json is wrong: {str(error).splitlines()[0]}") from error
    mean, std = _statistics(folder, family, where)
    image = _image(config.vision_config, family, mean, std, where)
    text = _text(config.text_config, family, where)
    settings: Tree = {"image": image.settings(), "text": text.settings()}
    if family == "clip":
        settings |= {"embedding": int(config.projection_dim)}
        rules = [*clip_rules(image.layers), Rule(("logit_scale",), ("logit_scale",), Same(leading=1))]
    else:
        settings |= {"embedding": image.width, "project_images": False, "text_bias": True}
        rules = [*siglip_rules(image.layers), *_scales()]
    rules += text_rules(text.layers)
    name = "CLIPModel" if family == "clip" else "SiglipModel"
    return WeightsLayout(
        name=f"{name} of transformers",
        kind="transformers",
        settings=settings,
        rules=tuple(rules),
        constants=present(_CONSTANTS, shapes),
    )


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
            # One third of the rows makes the query, and two thirds make keys and values.
            Rule((f"{pooling}q.{kind}", f"{pooling}kv.{kind}"), (f"{head}attention.in_proj_{kind}",), Divided((1, 2)))
            for kind in ("weight", "bias")
        ),
        *layers(same, pooling, head),
        *layers({"text_model.head": "to_text"}, "", ""),
    ]


def text_rules(depth: int) -> list[Rule]:
    """Returns the rules for the text transformer, whose modules have the same names in both models."""
    modules = [f"encoder.layers.{number}.{module}" for number in range(depth) for module in _TEXT_BLOCK]
    tables = ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight")
    both = {module: module for module in (*modules, "final_layer_norm")}
    return [*layers(both, TEXT, _TEXT), *renamed({table: table for table in tables}, TEXT, _TEXT)]


def _blocks(depth: int) -> list[Rule]:
    rules: list[Rule] = []
    joined: Form = Joined(3)
    for number in range(depth):
        ours, theirs = f"{IMAGE}blocks.{number}.", f"{_VISION}encoder.layers.{number}."
        rules += layers(_BLOCK, ours, theirs)
        for kind in ("weight", "bias"):
            parts = tuple(f"{theirs}self_attn.{which}_proj.{kind}" for which in "qkv")
            rules.append(Rule((f"{ours}attn.qkv.{kind}",), parts, joined))
    return rules


def _scales() -> list[Rule]:
    return [Rule((name,), (name,), Same()) for name in ("logit_scale", "logit_bias")]


def _image(config: Any, family: str, mean: tuple[float, ...], std: tuple[float, ...], where: str) -> ImageTransformer:
    if abs(config.layer_norm_eps - _IMAGE_EPS[family]) > 1e-9:
        raise ConfigError(
            f"{where}: layer_norm_eps={config.layer_norm_eps}, and timm's towers have {_IMAGE_EPS[family]}."
        )
    if config.num_channels != 3:
        raise ConfigError(f"{where}: the model reads images with {config.num_channels} channels, and 3 are needed.")
    return ImageTransformer(
        family=family,
        width=int(config.hidden_size),
        layers=int(config.num_hidden_layers),
        heads=int(config.num_attention_heads),
        patch=int(config.patch_size),
        pixels=int(config.image_size),
        mlp_width=int(config.intermediate_size),
        activation=_activation(config, where),
        mean=mean,
        std=std,
    )


def _text(config: Any, family: str, where: str) -> TextTransformer:
    tokens = int(config.vocab_size)
    # With the old value 2, transformers takes the largest id, which is the end token of CLIP's vocabulary.
    end = None if config.eos_token_id is None else int(config.eos_token_id)
    return TextTransformer(
        family=family,
        width=int(config.hidden_size),
        layers=int(config.num_hidden_layers),
        heads=int(config.num_attention_heads),
        positions=int(config.max_position_embeddings),
        tokens=tokens,
        mlp_width=int(config.intermediate_size),
        activation=_activation(config, where),
        norm_eps=float(config.layer_norm_eps),
        end_id=(tokens - 1 if end == 2 else end) if family == "clip" else None,
        pad_id=None if family == "clip" else config.pad_token_id,
    )


def _activation(config: Any, where: str) -> str:
    if config.hidden_act not in _ACTIVATIONS:
        raise ConfigError(f"{where}: the activation {config.hidden_act!r} is none of {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[config.hidden_act]


def _statistics(folder: Path, family: str, where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of the image processor; without one, those of the published models."""
    default = (OPENAI_MEAN, OPENAI_STD) if family == "clip" else (SIGLIP_MEAN, SIGLIP_STD)
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return default
    try:
        tree = json.loads(path.read_bytes())
        pairs = zip(_STATISTICS, default, strict=True)
        mean, std = (tuple(float(each) for each in tree.get(key) or own) for key, own in pairs)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: preprocessor_config.json cannot be read ({error}).") from error
    return mean, std
