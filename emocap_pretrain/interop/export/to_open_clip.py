"""Exports a model as a folder that open_clip loads with `local-dir:`.

CLIP's image tower becomes open_clip's own vision transformer, and any other one becomes open_clip's adapter of timm. A
text tower of CLIP or SigLIP becomes open_clip's own `TextTransformer`, which has the same layers under other names. A
text tower of BERT and its relatives becomes open_clip's adapter of transformers.

open_clip passes only a name to the two adapters. Therefore a tower of timm with settings of its own, and every encoder
of transformers, is described in a folder inside of the export, and the config names this folder by its absolute path
(`paths_moved`). The model card says what to change after such an export was moved.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop import rules
from emocap_pretrain.interop.export import whole_clip
from emocap_pretrain.interop.export.accessories import statistics, write_accessories
from emocap_pretrain.interop.export.formats import ExportFormat, without_head
from emocap_pretrain.interop.export.graphs import numbers_of
from emocap_pretrain.interop.export.special_tokens import end_token, texts_cut_later
from emocap_pretrain.interop.export.to_transformers import (
    backbone_weights,
    image_projection,
    model_arguments,
    towers_of,
)
from emocap_pretrain.interop.layouts import clip
from emocap_pretrain.interop.restore import Restored
from emocap_pretrain.model.timm_image import TimmImageTower
from emocap_pretrain.model.transformers_text import TransformersTextTower

NAME = "open_clip"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
IMAGE_FOLDER, TEXT_FOLDER = "image_tower", "text_tower"
# The encoders of transformers that open_clip 3.3 knows, and its names of our poolings.
_ENCODERS = ("bert", "roberta", "xlm-roberta")
_POOLERS = {"mean": "mean_pooler", "cls": "cls_last_hidden_state_pooler"}
# Entries of timm's `pretrained_cfg` about the origin of the weights. They are left out: an export has its own weights.
_SOURCES = {"url", "file", "hf_hub_id", "hf_hub_filename", "state_dict", "source", "architecture", "tag", "custom_load"}


def write(restored: Restored, folder: Path) -> None:
    model, numbers = restored.model, numbers_of(restored.model)
    image, text = towers_of(model, NAME)
    vision, image_weights = _image(restored, image, folder)
    described, text_weights = _text(restored, text, folder)
    weights = {**image_weights, **text_weights, "logit_scale": torch.tensor(math.log(numbers["scale"]))}
    more: dict[str, Any] = {}
    if model.logit_bias is not None:
        more["init_logit_bias"] = numbers["bias"]
        weights["logit_bias"] = torch.tensor(numbers["bias"])
    mean, std = statistics(restored)
    config = {
        "model_cfg": {
            "embed_dim": model.to_text.out_features,
            "custom_text": True,
            "quick_gelu": "hf_model_name" not in described and text.backbone.config.hidden_act == "quick_gelu",
            **more,
            "vision_cfg": vision,
            "text_cfg": described,
        },
        "preprocess_cfg": {
            "size": [model.pixels, model.pixels],
            "mean": mean,
            "std": std,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    save_file({name: each.detach().contiguous().clone() for name, each in weights.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
    write_accessories(restored, folder)


def paths_moved(folder: Path, to: Path) -> None:
    """Replaces the path of the export in its config: `folder` by `to`, the path that it has after it is renamed."""
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    towers = config["model_cfg"]
    for section, key in (("vision_cfg", "timm_model_name"), ("text_cfg", "hf_model_name")):
        if named := towers[section].get(key):
            towers[section][key] = named.replace(str(folder), str(to))
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")


def _image(restored: Restored, image: TimmImageTower, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the config of the image tower, and the weights of the tower and its projection.

    Raises:
        ConfigError: If open_clip's adapter of timm cannot hold the tower.
    """
    if image.width != image.patch_width:
        raise ConfigError(
            f"--to {NAME}: its adapter of timm cannot hold {restored.config.model.image.name}, whose pooled vector is "
            "wider than its features; export to transformers, onnx, torch or safetensors."
        )
    if _is_native(restored):
        return _clip_image(restored, image)
    name = image.backbone.default_cfg["architecture"]
    if not _is_named(image):
        (folder / IMAGE_FOLDER).mkdir()
        kept = {
            key: value for key, value in image.backbone.default_cfg.items() if key not in _SOURCES and value is not None
        }
        described = {"architecture": name, "model_args": model_arguments(image), "pretrained_cfg": kept}
        (folder / IMAGE_FOLDER / "config.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
        name = f"local-dir:{folder / IMAGE_FOLDER}"
    weights = {f"visual.trunk.{name}": each for name, each in backbone_weights(image).items()}
    weights["visual.head.proj.weight"] = image_projection(restored.model)
    return {
        "timm_model_name": name,
        "timm_pool": "",  # open_clip then keeps the pooling of the model.
        "timm_proj": "linear",
        "image_size": image.pixels,
    }, weights


def _clip_image(restored: Restored, image: TimmImageTower) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the config and the weights of open_clip's own vision transformer."""
    sizes = whole_clip.vision_settings(image)
    return {
        "layers": sizes["num_hidden_layers"],
        "width": sizes["hidden_size"],
        "head_width": sizes["hidden_size"] // sizes["num_attention_heads"],
        "mlp_ratio": sizes["intermediate_size"] / sizes["hidden_size"],
        "patch_size": sizes["patch_size"],
        "image_size": image.pixels,
        "act_kwargs": {"approximate": "tanh"} if sizes["hidden_act"] == "gelu_pytorch_tanh" else None,
    }, rules.write(clip.image_rules(len(image.backbone.blocks)), restored.model.state_dict())


def _is_native(restored: Restored) -> bool:
    """Returns whether the image tower can become open_clip's own vision transformer.

    open_clip has a single setting `quick_gelu` for both towers, so either both or none of them may use QuickGELU.

    Raises:
        ConfigError: If a tower is of a class that cannot be exported (`towers_of`).
    """
    image, text = towers_of(restored.model, NAME)
    if not whole_clip.is_clip_image(restored.model, image):
        return False
    kinds = (whole_clip.vision_settings(image)["hidden_act"], text.backbone.config.hidden_act)
    return len({kind == "quick_gelu" for kind in kinds}) == 1


def _is_named(image: TimmImageTower) -> bool:
    """Returns whether timm needs no more than the name of the model to build the tower."""
    size = image.backbone.default_cfg["input_size"][-1]
    return size == image.pixels and model_arguments(image) in ({}, {"img_size": size})


def _text(restored: Restored, text: TransformersTextTower, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the config of the text tower, and the weights of the tower and its projection.

    Raises:
        ConfigError: If open_clip does not have the encoder, or cannot combine it with the pooling or with a bias.
    """
    config = text.backbone.config
    has_bias = restored.config.model.text_bias
    if config.model_type == "clip_text_model" and text.pooling == "eos" and not has_bias:
        return _clip_text(restored, text)
    if config.model_type == "siglip_text_model" and has_bias:
        return _siglip_text(restored, text)
    if config.model_type not in _ENCODERS or text.pooling not in _POOLERS or has_bias:
        raise ConfigError(
            f"--to {NAME}: open_clip has no model.text.pooling={text.pooling} for a {config.model_type} encoder; "
            "export to onnx, torch or safetensors."
        )
    config.save_pretrained(folder / TEXT_FOLDER)
    weights = {
        f"text.transformer.{name}": each
        for name, each in text.backbone.state_dict().items()
        if not name.startswith("pooler.")
    }
    weights["text.proj.weight"] = restored.model.to_text.weight
    return {
        "hf_model_name": str(folder / TEXT_FOLDER),
        "hf_tokenizer_name": TEXT_FOLDER,
        "hf_pooler_type": _POOLERS[text.pooling],
        "hf_proj_type": "linear",
        "context_length": restored.model.prompt_length,
    }, weights


def _clip_text(restored: Restored, text: TransformersTextTower) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config, length = text.backbone.config, restored.model.prompt_length
    weights = rules.write(clip.text_rules(config.num_hidden_layers, "text."), restored.model.state_dict())
    # open_clip pads every text to the number of positions, and a prompt is never longer than this.
    weights["text.positional_embedding"] = weights["text.positional_embedding"][:length]
    return {
        **_sizes(text),
        "context_length": length,
        "pool_type": "eos",
        "eos_id": end_token(restored, text, NAME),
    }, {**weights, "text.text_projection": restored.model.to_text.weight.T}


def _siglip_text(restored: Restored, text: TransformersTextTower) -> tuple[dict[str, Any], dict[str, Tensor]]:
    weights = rules.write(clip.text_rules(text.backbone.config.num_hidden_layers, "text."), restored.model.state_dict())
    projection = {f"text.text_projection.{name}": each for name, each in restored.model.to_text.named_parameters()}
    return {
        **_sizes(text),
        "context_length": text.positions,
        "no_causal_mask": True,
        "pool_type": "last",
        "proj_bias": True,
    }, {**weights, **projection}


def _sizes(text: TransformersTextTower) -> dict[str, Any]:
    config = text.backbone.config
    return {
        "vocab_size": config.vocab_size,
        "hf_tokenizer_name": "tokenizer",  # Any name: open_clip reads the tokenizer of a local folder from there.
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "layers": config.num_hidden_layers,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "pad_id": text.pad_id,
        "norm_kwargs": {"eps": config.layer_norm_eps},
        "act_kwargs": {"approximate": "tanh"} if config.hidden_act == "gelu_pytorch_tanh" else None,
    }


def _lacks(restored: Restored) -> tuple[str, ...]:
    image, text = towers_of(restored.model, NAME)
    has_paths = not (_is_native(restored) or _is_named(image)) or text.backbone.config.model_type in _ENCODERS
    paths = (_PATHS,) if has_paths else ()
    return (_NO_PLACE, *without_head(restored), _OTHER_PIXELS, *texts_cut_later(restored, text), *paths)


_NO_PLACE = """\
open_clip cannot hold the projections of patches and of local sentences, nor the scale of their scores; the formats \
onnx, torch and safetensors can."""
_OTHER_PIXELS = """\
open_clip resizes an image before it crops the square, so its pixels of an image that is not square differ from ours \
(the difference `photo`), and it cleans texts (curly quotes, HTML entities, repeated blanks) before it splits them."""
_PATHS = f"""\
{CONFIG} names this folder by its absolute path, because open_clip finds the descriptions of the towers only by such \
a path. After you have moved the folder, change the path in that file."""

FORMAT = ExportFormat(
    name=NAME,
    about="A folder that open_clip loads with `local-dir:`, with its tokenizer and its preprocessing.",
    library="open_clip",
    modules={"open_clip": "open_clip_torch", "timm": "timm", "transformers": "transformers"},
    write=write,
    lacks=_lacks,
    moved=paths_moved,
    loading="""\
import open_clip, torch
from PIL import Image

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")
tokens = open_clip.get_tokenizer("local-dir:.")(["a happy face", "a sad face"])
images = preprocess(Image.open("face.jpg").convert("RGB"))[None]
image, text = model.eval().encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)
print((model.logit_scale.exp() * image @ text.T).softmax(-1))
""",
)
