"""Writes image towers of timm as image models of transformers, for programs such as LLaVA that read no models of timm.

The rules that read the weights of these models (`interop/layouts`) also write them. A tower becomes one of them if its
tensors are exactly those of the rules, and if it computes nothing that the names do not show (`_is_plain`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emocap_pretrain.interop import rules
from emocap_pretrain.interop.export.whole_clip import vision_settings
from emocap_pretrain.interop.layouts import transformers as layouts
from emocap_pretrain.interop.layouts.layout import IMAGE
from emocap_pretrain.interop.rules import Rule
from emocap_pretrain.model.timm_image import TimmImageTower, timm

_LAYERS: Any = timm.layers
_TRANSFORMER: Any = timm.models.vision_transformer
PREFIX = "vision_model."
"""The prefix of the image tower's tensors in the models of transformers with two towers."""


@dataclass(frozen=True, slots=True)
class VisionModel:
    """Holds an image tower as an image model of transformers.

    Attributes:
        settings: Its config, with the `model_type`. The `pooler_output` of the model is the tower's pooled vector.
        weights: Its weights; the names begin with `PREFIX`.
    """

    settings: dict[str, Any]
    weights: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Kind:
    """Describes a kind of image model: its `model_type`, its rules, and how it pools, by timm's name."""

    model_type: str
    rules: Callable[[int], Sequence[Rule]]
    pool: str


_KINDS = (
    _Kind("vit", layouts.vit_rules, "token"),
    _Kind("clip_vision_model", layouts.clip_rules, "token"),
    _Kind("siglip_vision_model", layouts.siglip_rules, "map"),
)


def vision_model(image: TimmImageTower) -> VisionModel | None:
    """Returns the tower as an image model of transformers; None if none of `_KINDS` computes what the tower does."""
    if not _is_plain(image):
        return None
    own = {f"{IMAGE}{name}": each for name, each in image.backbone.state_dict().items()}
    for kind in _KINDS:
        found = [rule for rule in kind.rules(len(image.backbone.blocks)) if all(IMAGE in name for name in rule.ours)]
        if image.backbone.global_pool != kind.pool or own.keys() != {name for rule in found for name in rule.ours}:
            continue
        settings, weights = {**vision_settings(image), "model_type": kind.model_type}, rules.write(found, own)
        if kind.model_type == "vit":
            # Its pooler is a dense layer and an activation. These leave the class token as it is.
            settings["pooler_act"] = "linear"
            weights[f"{PREFIX}pooler.dense.weight"] = torch.eye(image.width)
            weights[f"{PREFIX}pooler.dense.bias"] = torch.zeros(image.width)
        return VisionModel(settings, weights)
    return None


def _is_plain(image: TimmImageTower) -> bool:
    """Returns whether a tower is a vision transformer whose blocks compute what the names of their tensors say.

    Every patch and, if there is one, the class token has a position. All norms have the same epsilon, and in each block
    a norm precedes the attention and another one the MLP.
    """
    backbone = image.backbone
    if type(backbone) is not _TRANSFORMER.VisionTransformer or backbone.pos_embed is None:
        return False
    if backbone.pos_embed.shape[1] != backbone.patch_embed.num_patches + backbone.num_prefix_tokens:
        return False
    blocks: Sequence[Any] = list(backbone.blocks)
    parts = (_TRANSFORMER.Block, _LAYERS.Attention, _LAYERS.Mlp)
    norms = (backbone.norm, *(norm for block in blocks for norm in (block.norm1, block.norm2)))
    return len({getattr(norm, "eps", None) for norm in norms}) == 1 and all(
        (type(block), type(block.attn), type(block.mlp)) == parts for block in blocks
    )
