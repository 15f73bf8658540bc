"""Exports a model whose towers are those of CLIP or SigLIP as a `CLIPModel` or `SiglipModel` of transformers.

The rules that read the weights of these classes (`interop/layouts`) also write them. A model belongs to a family if the
rules of the family name exactly the model's tensors, apart from those in `OWN`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from emocap_pretrain.checkpoint.layout import WEIGHTS
from emocap_pretrain.interop import rules
from emocap_pretrain.interop.export.graphs import numbers_of
from emocap_pretrain.interop.layouts import clip
from emocap_pretrain.interop.layouts import transformers as layouts
from emocap_pretrain.interop.layouts.layout import IMAGE
from emocap_pretrain.interop.restore import Restored
from emocap_pretrain.interop.rules import Rule
from emocap_pretrain.model.pair import HEAD, TowerPair
from emocap_pretrain.model.timm_image import TimmImageTower
from emocap_pretrain.model.transformers_loading import quiet
from emocap_pretrain.model.transformers_text import TransformersTextTower

# Our tensors that no class of transformers can hold, and the scale and bias, which `write` sets itself.
OWN = frozenset({"to_patch.weight", "to_sentence.weight", "local_logit_scale", "logit_scale", "logit_bias", *HEAD})


@dataclass(frozen=True, slots=True)
class Family:
    """Holds the name of a family, "clip" or "siglip", and the rules for its weights.

    The rules translate the weights of our model into those of the family's class in transformers, `CLIPModel` or
    `SiglipModel`.
    """

    name: str
    rules: tuple[Rule, ...]


def family_of(model: TowerPair, image: TimmImageTower, text: TransformersTextTower) -> Family | None:
    """Returns the family to which both towers of a model belong; None if there is none."""
    blocks = getattr(image.backbone, "blocks", ())
    kind = text.backbone.config.model_type
    if kind == "clip_text_model" and text.pooling == "eos":
        family, images = "clip", layouts.clip_rules(len(blocks))
    elif kind == "siglip_text_model":
        family, images = "siglip", layouts.siglip_rules(len(blocks))
    else:
        return None
    found = (*images, *layouts.text_rules(text.backbone.config.num_hidden_layers))
    covered = {name for rule in found for name in rule.ours}
    return Family(family, found) if covered == model.state_dict().keys() - OWN else None


def is_clip_image(model: TowerPair, image: TimmImageTower) -> bool:
    """Returns whether the image tower and its projection are those of CLIP."""
    if not isinstance(model.to_image, nn.Linear):
        return False
    own = {f"{IMAGE}{name}" for name in image.backbone.state_dict()} | {"to_image.weight"}
    rules_of_openai = clip.image_rules(len(getattr(image.backbone, "blocks", ())))
    return own == {name for rule in rules_of_openai for name in rule.ours}


def write(
    restored: Restored,
    family: Family,
    image: TimmImageTower,
    text_config: Any,
    weights: Mapping[str, Tensor],
    folder: Path,
) -> None:
    """Writes the config and the weights of a `CLIPModel` or `SiglipModel`.

    `weights` holds tensors of the text model, by their names in transformers; they replace those that the rules give.
    """
    model, numbers = restored.model, numbers_of(restored.model)
    vision, described = vision_settings(image), text_config.to_dict()
    scale = torch.tensor(math.log(numbers["scale"]))
    built: nn.Module
    with quiet():  # transformers warns of values in its own defaults.
        if family.name == "clip":
            own = {"logit_scale": scale}
            size = model.to_text.out_features
            built = CLIPModel(CLIPConfig(text_config=described, vision_config=vision, projection_dim=size))
        else:
            own = {"logit_scale": scale[None], "logit_bias": torch.tensor([numbers["bias"]])}
            described["projection_size"] = model.to_text.out_features
            built = SiglipModel(SiglipConfig(text_config=described, vision_config=vision))
    built.load_state_dict({**rules.write(family.rules, model.state_dict()), **weights, **own})
    config: Any = built.config
    config.architectures = [type(built).__name__]
    with quiet():
        config.save_pretrained(folder)
    save_file(built.state_dict(), folder / WEIGHTS, metadata={"format": "pt"})


def vision_settings(image: TimmImageTower) -> dict[str, Any]:
    """Returns the settings of the image tower by their names in transformers."""
    backbone = image.backbone
    block = backbone.blocks[0]
    return {
        "hidden_size": backbone.embed_dim,
        "num_hidden_layers": len(backbone.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "patch_size": backbone.patch_embed.patch_size[0],
        "image_size": image.pixels,
        "hidden_act": activation_of(block.mlp.act),
        "layer_norm_eps": backbone.norm.eps,
    }


def activation_of(module: nn.Module) -> str:
    """Returns transformers' name of the activation of an MLP of timm."""
    kind = type(module).__name__
    if kind == "GELUTanh" or getattr(module, "approximate", "none") == "tanh":
        return "gelu_pytorch_tanh"
    return {"QuickGELU": "quick_gelu", "GELU": "gelu"}.get(kind, kind.lower())
