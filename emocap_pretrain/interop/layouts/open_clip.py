"""Describes the models of open_clip whose image tower is a model of timm, such as its SigLIP models.

open_clip stores them with a file open_clip_config.json. Models whose image tower is open_clip's own vision transformer
are in `clip.py`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.layouts import clip
from emocap_pretrain.interop.layouts.layout import (
    IMAGE,
    SIGLIP_MEAN,
    SIGLIP_STD,
    TextTransformer,
    Tree,
    WeightsLayout,
    count_layers,
    present,
    shape_of,
)
from emocap_pretrain.interop.rules import Rule, Same, Transposed, layers
from emocap_pretrain.model.weights import Shapes

CONFIG_FILE = "open_clip_config.json"
_TRUNK = "visual.trunk."
# Options of open_clip's own towers that change what they compute, with the values that the towers of this project have.
_NEEDS: Mapping[str, Any] = {
    "ls_init_value": None,
    "attentional_pool": False,
    "no_ln_pre": False,
    "final_ln_after_pool": False,
    "pos_embed_type": "learnable",
    "embed_cls": False,
    "proj_type": "linear",
    "norm_kwargs": None,
    "block_type": None,
    "act_kwargs": None,
} | dict.fromkeys(("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), False)
_CLIP_VISION = {**_NEEDS, "pool_type": "tok"}
_CLIP_TEXT = {**_NEEDS, "pool_type": "argmax", "no_causal_mask": False, "proj_bias": False}
_ANY_EPS_AND_ACTIVATION = {key: own for key, own in _NEEDS.items() if key not in ("norm_kwargs", "act_kwargs")}


def read_config(folder: Path, where: str) -> Tree:
    """Returns the architecture in open_clip_config.json, with mean and std of the images in `vision_cfg`.

    Raises:
        ConfigError: If the file cannot be read.
    """
    try:
        tree = json.loads((folder / CONFIG_FILE).read_bytes())
        model, images = dict(tree["model_cfg"]), tree.get("preprocess_cfg") or {}
        statistics = {key: images[key] for key in ("mean", "std") if images.get(key)}
        return {**model, "vision_cfg": {**model["vision_cfg"], **statistics}, "text_cfg": dict(model["text_cfg"])}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: {CONFIG_FILE} cannot be read ({error!r}).") from error


def describe(shapes: Shapes, config: Tree, *, where: str) -> WeightsLayout:
    """Describes the weights of a model with a config of open_clip.

    Args:
        shapes: The shapes of all tensors by name.
        config: The result of `read_config`.
        where: First words of an error message: the setting and its value.

    Raises:
        ConfigError: If the config asks for parts that this project cannot build.
    """
    vision, text = config["vision_cfg"], config["text_cfg"]
    if text.get("hf_model_name"):
        raise ConfigError(f"{where}: the text tower is {text['hf_model_name']!r} of transformers; take another model.")
    if not vision.get("timm_model_name"):
        _require(vision, _CLIP_VISION, "vision_cfg", where)
        _require(text, _CLIP_TEXT, "text_cfg", where)
        activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
        return clip.describe(shapes, config, activation=activation, where=where)
    return _with_timm(shapes, vision, text, where)


def _with_timm(shapes: Shapes, vision: Tree, text: Tree, where: str) -> WeightsLayout:
    if vision.get("timm_proj", "linear") not in ("none", "linear") or "visual.head.mlp.fc1.weight" in shapes:
        raise ConfigError(f"{where}: timm_proj={vision.get('timm_proj')!r}; only none and linear can be read.")
    _require(text, _ANY_EPS_AND_ACTIVATION, "text_cfg", where)
    tower = _text(shapes, text, where)
    is_linear = "text.text_projection" not in shapes
    name = "text.text_projection.weight" if is_linear else "text.text_projection"
    sides = shape_of(shapes, name, 2, where)
    projects_images = "visual.head.proj.weight" in shapes
    names = [each.removeprefix(_TRUNK) for each in shapes if each.startswith(_TRUNK)]
    rules = [
        *(Rule((IMAGE + each,), (_TRUNK + each,)) for each in names),
        *([Rule(("to_image.weight",), ("visual.head.proj.weight",))] if projects_images else []),
        *clip.text_rules(tower.layers, "text."),
        *(
            layers({"text.text_projection": "to_text"}, "", "")
            if is_linear
            else [Rule(("to_text.weight",), (name,), Transposed())]
        ),
        *(Rule((each,), (each,), Same(leading=1)) for each in ("logit_scale", "logit_bias") if each in shapes),
    ]
    settings: Tree = {
        "embedding": sides[0] if is_linear else sides[1],
        "project_images": projects_images,
        "text_bias": "text.text_projection.bias" in shapes,
        "image": _image(vision),
        "text": tower.settings(),
    }
    return WeightsLayout(
        name="open_clip with an image tower of timm",
        kind="open_clip",
        settings=settings,
        rules=tuple(rules),
        constants=present(("text.attn_mask",), shapes),
    )


def _image(vision: Tree) -> Tree:
    pixels = vision.get("image_size", 224)
    return {
        "name": str(vision["timm_model_name"]),
        "pixels": int(pixels[0] if isinstance(pixels, list) else pixels),
        # With an empty name, open_clip keeps the pooling of the timm model.
        "options": {"global_pool": pool} if (pool := vision.get("timm_pool", "avg")) else {},
        "mean": list(vision.get("mean") or SIGLIP_MEAN),
        "std": list(vision.get("std") or SIGLIP_STD),
    }


def _text(shapes: Shapes, config: Tree, where: str) -> TextTransformer:
    positions, width = shape_of(shapes, "text.positional_embedding", 2, where)
    tokens = shape_of(shapes, "text.token_embedding.weight", 2, where)[0]
    # open_clip's SigLIP sees all tokens and pools the last position; its other models see earlier tokens only.
    reads = (bool(config.get("no_causal_mask")), config.get("pool_type", "argmax"))
    families = {(True, "last"): "siglip", (False, "argmax"): "clip"}
    if reads not in families:
        raise ConfigError(f"{where}: no_causal_mask={reads[0]} with pool_type={reads[1]!r} cannot be read.")
    family = families[reads]
    is_tanh = (config.get("act_kwargs") or {}).get("approximate") == "tanh"
    return TextTransformer(
        family=family,
        width=width,
        layers=count_layers(shapes, "text.transformer.resblocks."),
        heads=int(config.get("heads", max(1, width // clip.HEAD_WIDTH))),
        positions=positions,
        tokens=tokens,
        mlp_width=shape_of(shapes, "text.transformer.resblocks.0.mlp.c_fc.weight", 2, where)[0],
        activation="gelu_tanh" if is_tanh else "gelu",
        norm_eps=float((config.get("norm_kwargs") or {}).get("eps", 1e-5)),
        end_id=tokens - 1 if family == "clip" else None,
    )


def _require(config: Tree, needs: Mapping[str, Any], section: str, where: str) -> None:
    for key, own in needs.items():
        if config.get(key, own) != own:
            raise ConfigError(f"{where}: {section}.{key}={config[key]!r}, and this project builds {own!r} only.")
