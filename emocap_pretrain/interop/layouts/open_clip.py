"""Describes models with an open_clip_config.json.

Models whose image tower is a model of timm, such as open_clip's SigLIP models, are described here. For models with
open_clip's own vision transformer, this module checks the config, and `clip.py` describes them.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from emocap_pretrain.config.fields import ImageCrop
from emocap_pretrain.data.transform import Resize
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.layouts import clip
from emocap_pretrain.interop.layouts.layout import (
    IMAGE,
    SIGLIP_MEAN,
    SIGLIP_STD,
    TIMM_NAME,
    TextTransformer,
    Tree,
    WeightsLayout,
    present,
    scalar,
    shape_of,
    size_of,
    statistics_of,
)
from emocap_pretrain.interop.rules import Rule, Transposed, layers
from emocap_pretrain.model.json_files import read_json
from emocap_pretrain.model.weights import Shapes

CONFIG_FILE = "open_clip_config.json"
_TRUNK = "visual.trunk."
_POOLS = ("avg", "token", "map", "max", "avgmax", "")
# Options of open_clip's own towers that change what they compute. Only these values can be built in this project.
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
_CLIP_TEXT = {**_NEEDS, "no_causal_mask": False, "proj_bias": False}
_ANY_EPS_AND_ACTIVATION = {key: own for key, own in _NEEDS.items() if key not in ("norm_kwargs", "act_kwargs")}


def read_config(folder: Path, where: str) -> Tree:
    """Returns the mapping `model_cfg` of open_clip_config.json, and adds settings of the images from `preprocess_cfg`.

    `mean` and `std` are added to `vision_cfg` if the file has them. The keys `resize_mode` and `interpolation` are
    added beside `vision_cfg`; they say how images become square (`crop_of`) and with which filter they are resized, and
    are None if the file does not say it.

    Args:
        folder: The folder of the model.
        where: First words of an error message: the setting and its value.

    Raises:
        ConfigError: If the file cannot be read, or has no config of an image tower or of a text tower.
    """
    tree = read_json(folder / CONFIG_FILE, where)
    try:
        model, images = dict(tree["model_cfg"]), tree.get("preprocess_cfg") or {}
        statistics = {key: images[key] for key in ("mean", "std") if images.get(key)}
        vision = {**model["vision_cfg"], **statistics}
        mode = {key: images.get(key) for key in ("resize_mode", "interpolation")}
        return {**model, **mode, "vision_cfg": vision, "text_cfg": dict(model["text_cfg"])}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: {CONFIG_FILE} cannot be read ({error!r}).") from error


def crop_of(config: Tree) -> ImageCrop:
    """Returns the part of an image that the model was published to read: "whole" if `resize_mode` is "squash".

    Otherwise it is "center", the central square, which is open_clip's default. `config` is the result of `read_config`.
    """
    return "whole" if config["resize_mode"] == "squash" else "center"


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
        name = str(text["hf_model_name"])[:60]
        raise ConfigError(
            f"{where}: the text tower is {name!r} of transformers; such a model can be evaluated, and not trained: "
            "choose another one."
        )
    if not vision.get("timm_model_name"):
        _require(vision, _CLIP_VISION, "vision_cfg", where)
        _require(text, _CLIP_TEXT, "text_cfg", where)
        if text.get("pool_type", "argmax") not in ("argmax", "eos"):
            raise ConfigError(f"{where}: text_cfg.pool_type={str(text['pool_type'])[:40]!r}; only argmax and eos fit.")
        activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
        layout = clip.describe(shapes, config, activation=activation, where=where)
    else:
        layout = _with_timm(shapes, vision, text, where)
    return replace(layout, crop=crop_of(config), resize=_resize(config))


def describe_image(shapes: Shapes, config: Tree, *, where: str) -> WeightsLayout:
    """Describes the image tower and its projection alone, for a model with a text tower of transformers.

    Every other tensor of the file is ignored, except those whose names begin with `visual.`.

    Args:
        shapes: The shapes of all tensors by name.
        config: The result of `read_config`.
        where: First words of an error message: the setting and its value.

    Raises:
        ConfigError: If the config asks for parts that this project cannot build.
    """
    vision = config["vision_cfg"]
    if vision.get("timm_model_name"):
        settings, rules = _image(vision, where), _timm_rules(shapes, vision, where)
    else:
        _require(vision, _CLIP_VISION, "vision_cfg", where)
        found = clip.image_transformer(shapes, vision, "quick_gelu" if config.get("quick_gelu") else "gelu", where)
        settings, rules = found.settings(), clip.image_rules(found.layers)
    return WeightsLayout(
        name="open_clip with a text tower of transformers",
        kind="open_clip",
        settings={"image": settings},
        rules=tuple(rules),
        ignored=frozenset(name for name in shapes if not name.startswith("visual.")),
        crop=crop_of(config),
        resize=_resize(config),
    )


def _timm_rules(shapes: Shapes, vision: Tree, where: str) -> list[Rule]:
    """Returns the rules for an image tower of timm and its projection."""
    if vision.get("timm_proj", "linear") not in ("none", "linear") or "visual.head.mlp.fc1.weight" in shapes:
        raise ConfigError(f"{where}: timm_proj={vision.get('timm_proj')!r}; only none and linear can be read.")
    names = [each.removeprefix(_TRUNK) for each in shapes if each.startswith(_TRUNK)]
    projection = [Rule(("to_image.weight",), ("visual.head.proj.weight",))] if _projects_images(vision) else []
    return [*(Rule((IMAGE + each,), (_TRUNK + each,)) for each in names), *projection]


def _projects_images(vision: Tree) -> bool:
    return vision.get("timm_proj", "linear") == "linear"


def _resize(config: Tree) -> Resize:
    # For "random" in training, open_clip itself evaluates with the bicubic filter.
    return Resize("bilinear" if config["interpolation"] == "bilinear" else "bicubic")


def _with_timm(shapes: Shapes, vision: Tree, text: Tree, where: str) -> WeightsLayout:
    images = _timm_rules(shapes, vision, where)
    _require(text, _ANY_EPS_AND_ACTIVATION, "text_cfg", where)
    tower = _text(shapes, text, where)
    is_linear = bool(text.get("proj_bias"))
    name = "text.text_projection.weight" if is_linear else "text.text_projection"
    sides = shape_of(shapes, name, 2, where)
    rules = [
        *images,
        *clip.text_rules(tower.layers, "text."),
        *(
            layers({"text.text_projection": "to_text"}, "", "")
            if is_linear
            else [Rule(("to_text.weight",), (name,), Transposed())]
        ),
        *(rule for each in ("logit_scale", "logit_bias") for rule in scalar(each, shapes)),
    ]
    settings: Tree = {
        "embedding": sides[0] if is_linear else sides[1],
        "project_images": _projects_images(vision),
        "text_bias": is_linear,
        "image": _image(vision, where),
        "text": tower.settings(),
    }
    return WeightsLayout(
        name="open_clip with an image tower of timm",
        kind="open_clip",
        settings=settings,
        rules=tuple(rules),
        ignored=present(("text.attn_mask",), shapes),
    )


def _image(vision: Tree, where: str) -> Tree:
    name = str(vision["timm_model_name"])
    # The config is not trusted. For a name with a prefix such as `hf-hub:`, timm would open a hub or a file.
    if not TIMM_NAME.fullmatch(name):
        raise ConfigError(f"{where}: vision_cfg.timm_model_name={name[:60]!r} is not the name of a model in timm.")
    pool = vision.get("timm_pool", "avg")
    if pool not in _POOLS:
        raise ConfigError(f"{where}: vision_cfg.timm_pool={str(pool)[:40]!r}; one of {', '.join(_POOLS)} is needed.")
    size = vision.get("image_size")
    sides = {"image_size": size[0] if isinstance(size, list) and size else size}
    mean, std = statistics_of(vision, ("mean", "std"), (SIGLIP_MEAN, SIGLIP_STD), where)
    return {
        "name": name,
        "pixels": size_of(sides, "image_size", 224, where),
        # With an empty name, open_clip keeps the pooling of the timm model.
        "options": {"global_pool": pool} if pool else {},
        "mean": list(mean),
        "std": list(std),
    }


def _text(shapes: Shapes, config: Tree, where: str) -> TextTransformer:
    # In open_clip's SigLIP each token attends to all tokens, and the last position is pooled. In its other models each
    # token attends to earlier tokens only.
    reads = (bool(config.get("no_causal_mask")), config.get("pool_type", "argmax"))
    families = {(True, "last"): "siglip", (False, "argmax"): "clip", (False, "eos"): "clip"}
    if not isinstance(reads[1], str) or reads not in families:
        raise ConfigError(f"{where}: no_causal_mask={reads[0]} with pool_type={reads[1]!r} cannot be read.")
    family = families[reads]
    activation, eps = _activation_and_eps(config, where)
    found = clip.text_transformer(shapes, config, "text.", activation, where)
    return replace(found, family=family, norm_eps=eps, end_id=found.end_id if family == "clip" else None)


def _activation_and_eps(config: Tree, where: str) -> tuple[str, float]:
    """Returns the activation of the text tower, and the epsilon of its layer norms.

    Raises:
        ConfigError: If the config describes one of them in a form that this project does not know.
    """
    activation, norm = config.get("act_kwargs") or {}, config.get("norm_kwargs") or {}
    eps = norm.get("eps", 1e-5) if isinstance(norm, dict) else None
    if activation not in ({}, {"approximate": "tanh"}, {"approximate": "none"}):
        raise ConfigError(f"{where}: text_cfg.act_kwargs={str(activation)[:60]} cannot be read.")
    if not isinstance(eps, float) or norm.keys() > {"eps"}:
        raise ConfigError(f"{where}: text_cfg.norm_kwargs={str(norm)[:60]} cannot be read.")
    return "gelu_tanh" if activation == {"approximate": "tanh"} else "gelu", eps


def _require(config: Tree, needs: Mapping[str, Any], section: str, where: str) -> None:
    for key, own in needs.items():
        if config.get(key, own) != own:
            raise ConfigError(
                f"{where}: {section}.{key}={str(config[key])[:60]!r}, but this project can only build {own!r}."
            )
