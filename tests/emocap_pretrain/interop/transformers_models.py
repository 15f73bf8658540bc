"""Writes small models of transformers with random weights, for the tests of models that are opened for evaluation."""

from collections.abc import Mapping
from typing import Any

import torch

from emocap_torchvision import install

install()
import transformers  # noqa: E402 - after emocap_torchvision
from families import END, POSITIONS, TOKENS  # noqa: E402
from transformers import CONFIG_MAPPING, MODEL_MAPPING  # noqa: E402

PIXELS = 32
VIT: dict[str, Any] = {
    "image_size": PIXELS,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}
_RESNET: dict[str, Any] = {**_STAGES, "embedding_size": 8, "layer_type": "basic"}
_SWIN: dict[str, Any] = {
    "image_size": PIXELS,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
}
IMAGE_MODELS: Mapping[str, dict[str, Any]] = {
    "aimv2_vision_model": VIT,
    "beit": {**VIT, "use_relative_position_bias": True},
    "bit": {**_STAGES, "embedding_size": 8, "num_groups": 4, "layer_type": "preactivation"},
    "chinese_clip_vision_model": VIT,
    "clip_vision_model": VIT,
    "convnext": _STAGES,
    "convnextv2": _STAGES,
    "data2vec-vision": VIT,
    "deit": VIT,
    "dinov2": VIT,
    "dinov2_with_registers": {**VIT, "num_register_tokens": 4},
    "dinov3_convnext": _STAGES,
    "dinov3_vit": {**VIT, "num_register_tokens": 4},
    "efficientnet": {"image_size": PIXELS, "width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320},
    "focalnet": {
        "image_size": PIXELS,
        "embed_dim": 16,
        "depths": [1, 1],
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
    },
    "hiera": {"image_size": [PIXELS, PIXELS], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    "ijepa": VIT,
    "mlcd_vision_model": VIT,
    "mobilenet_v1": {"image_size": PIXELS, "depth_multiplier": 0.25},
    "mobilenet_v2": {"image_size": PIXELS, "depth_multiplier": 0.25},
    "pixio": {**VIT, "n_cls_tokens": 2},
    "pvt": {
        "image_size": 64,
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 2],
    },
    "pvt_v2": {
        "image_size": 64,
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 2],
    },
    "regnet": {**_STAGES, "embedding_size": 8, "groups_width": 4},
    "resnet": _RESNET,
    "segformer": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]},
    "siglip_vision_model": VIT,
    "swiftformer": {"image_size": PIXELS, "depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32]},
    "swin": _SWIN,
    "swinv2": _SWIN,
    "vit": VIT,
    "vit_mae": {**VIT, "decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1},
    "vit_msn": VIT,
}


def image_model(kind: str, **more: Any) -> Any:
    config = CONFIG_MAPPING[kind](**{**IMAGE_MODELS[kind], **more})
    return spread(MODEL_MAPPING[type(config)](config))


def spread(model: Any) -> Any:
    """Draws random weights, so that also those differ that a new model sets to 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            # Deep models without norms of each image would otherwise compute nearly equal vectors for all images.
            torch.nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5, generator=generator)
        else:
            torch.nn.init.normal_(parameter, float(name.endswith("weight")), 0.15, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            torch.nn.init.uniform_(buffer, 0.5, 1.5, generator=generator)
    return model.eval()


# Models with two towers.

_TEXT: dict[str, Any] = {
    "vocab_size": TOKENS,
    "max_position_embeddings": POSITIONS,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": END,
}
_TOWERS: dict[str, Any] = {"vision_config": VIT, "text_config": _TEXT, "projection_dim": 20}
_GROUPS: dict[str, Any] = {
    "depths": [1, 1],
    "num_group_tokens": [4, 0],
    "num_output_groups": [4, 2],
    "num_hidden_layers": 2,
}
# RoBERTa's positions begin after the id of the padding.
_XLM_ROBERTA: dict[str, Any] = {
    **_TEXT,
    "pad_token_id": 1,
    "project_dim": 20,
    "max_position_embeddings": POSITIONS + 2,
}
_MULTIMODAL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
PAIRS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "align": ("AlignModel", {**_TOWERS, "vision_config": IMAGE_MODELS["efficientnet"], "projection_dim": 80}),
    "altclip": ("AltCLIPModel", {**_TOWERS, "text_config": _XLM_ROBERTA}),
    "blip": ("BlipModel", _TOWERS),
    "blip-retrieval": ("BlipForImageTextRetrieval", {**_TOWERS, "image_text_hidden_size": 20}),
    "chinese_clip": ("ChineseCLIPModel", _TOWERS),
    "clipseg": ("CLIPSegModel", _TOWERS),
    "flava": (
        "FlavaModel",
        {**_TOWERS, "image_config": VIT, "multimodal_config": _MULTIMODAL, "hidden_size": 32},
    ),
    "groupvit": ("GroupViTModel", {**_TOWERS, "vision_config": {**VIT, **_GROUPS}, "projection_intermediate_dim": 28}),
    "owlvit": ("OwlViTModel", _TOWERS),
}


def pair_model(name: str) -> Any:
    model_class, settings = PAIRS[name]
    kind: Any = getattr(transformers, model_class)
    return spread(kind(kind.config_class(**settings)))
