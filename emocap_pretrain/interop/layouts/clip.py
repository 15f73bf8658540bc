"""Describes the weights of CLIP as OpenAI and open_clip name them, with vision transformers as image towers.

OpenAI's files, those that open_clip trains, MetaCLIP, FaRL and FLIP all use these names. A state dict contains all
sizes except the number of heads, which is width / 64 in all published models. It does not tell the activation.
"""

from collections.abc import Mapping
from typing import Any

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.layouts.layout import (
    IMAGE,
    OPENAI_MEAN,
    OPENAI_STD,
    TEXT,
    ImageTransformer,
    TextTransformer,
    WeightsLayout,
    count_layers,
    grid_side,
    present,
    scalar,
    shape_of,
    size_of,
    statistics_of,
)
from emocap_pretrain.interop.positions import KEPT
from emocap_pretrain.interop.rules import Rule, Same, Spliced, Split, Transposed, layers, renamed
from emocap_pretrain.model.weights import Shapes

HEAD_WIDTH = 64
# Our names of the modules of a block, by those of OpenAI.
_IMAGE_BLOCK = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TEXT_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
# OpenAI's archives store these numbers of the architecture as tensors.
_OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
LONG_POSITIONS = "positional_embedding_res"  # Long-CLIP's second table, for the positions after the first `KEPT`.
_MASKS = ("attn_mask", "text.attn_mask")


def is_clip(shapes: Shapes) -> bool:
    """Returns whether the names are those of OpenAI's CLIP, with a vision transformer or a ResNet."""
    return any(name.startswith(("visual.conv1.", "visual.transformer.")) for name in shapes)


def describe(shapes: Shapes, config: Mapping[str, Any], *, activation: str | None, where: str) -> WeightsLayout:
    """Describes the weights of a CLIP in the layout of OpenAI and open_clip.

    Args:
        shapes: The shapes of all tensors by name.
        config: The entries `vision_cfg`, `text_cfg` and others of open_clip's config; empty for a bare state dict.
        activation: The activation of both towers; None if it is not known, which is refused.
        where: First words of an error message: the setting and its value.

    Raises:
        ConfigError: If `activation` is None, if the sizes cannot be read from the tensors, or if the model has parts
            that this project cannot build.
    """
    _require_transformer(shapes, where)
    if activation is None:
        raise ConfigError(
            f"{where}: these weights do not say which activation they were trained with; set "
            "model.text.architecture.activation (in Python the argument activation) to quick_gelu (OpenAI, MetaCLIP, "
            "FaRL, FLIP) or gelu (LAION, DataComp)."
        )
    prefix = "text." if any(name.startswith("text.transformer.") for name in shapes) else ""
    image = image_transformer(shapes, config.get("vision_cfg") or {}, activation, where)
    text = text_transformer(shapes, config.get("text_cfg") or {}, prefix, activation, where)
    embedding = shape_of(shapes, f"{prefix}text_projection", 2, where)[1]
    return WeightsLayout(
        name="CLIP in the layout of OpenAI and open_clip",
        kind="open_clip" if prefix else "openai",
        settings={"embedding": embedding, "image": image.settings(), "text": text.settings()},
        rules=(
            *image_rules(image.layers),
            *text_rules(text.layers, prefix, is_long=LONG_POSITIONS in shapes),
            Rule(("to_text.weight",), (f"{prefix}text_projection",), Transposed()),
            *scalar("logit_scale", {"logit_scale": (), **shapes}),
            *scalar("logit_bias", shapes),
        ),
        ignored=present((*_OPENAI_SIZES, *_MASKS), shapes),
    )


def image_rules(depth: int) -> list[Rule]:
    """Returns the rules for a vision transformer of `depth` blocks and for its projection."""
    rules = [
        Rule((f"{IMAGE}cls_token",), ("visual.class_embedding",), Same(leading=2)),
        Rule((f"{IMAGE}pos_embed",), ("visual.positional_embedding",), Same(leading=1)),
        Rule((f"{IMAGE}patch_embed.proj.weight",), ("visual.conv1.weight",)),
        Rule(("to_image.weight",), ("visual.proj",), Transposed()),
        *layers({"ln_pre": "norm_pre", "ln_post": "norm"}, IMAGE, "visual."),
    ]
    for number in range(depth):
        ours, theirs = f"{IMAGE}blocks.{number}.", f"visual.transformer.resblocks.{number}."
        joint = {"attn.in_proj_weight": "attn.qkv.weight", "attn.in_proj_bias": "attn.qkv.bias"}
        rules += [*layers(_IMAGE_BLOCK, ours, theirs), *renamed(joint, ours, theirs)]
    return rules


def text_rules(depth: int, prefix: str, *, is_long: bool = False) -> list[Rule]:
    """Returns the rules for the text transformer without its projection.

    Args:
        depth: Number of blocks.
        prefix: The prefix of the names, "text." or empty.
        is_long: Whether the positions after the first `KEPT` have a second table, as in Long-CLIP.
    """
    table = f"{prefix}positional_embedding"
    tables, form = ((table, LONG_POSITIONS), Spliced(KEPT)) if is_long else ((table,), Same())
    rules = [
        Rule((f"{TEXT}embeddings.token_embedding.weight",), (f"{prefix}token_embedding.weight",)),
        Rule((f"{TEXT}embeddings.position_embedding.weight",), tables, form),
        *layers({"ln_final": "final_layer_norm"}, TEXT, prefix),
    ]
    for number in range(depth):
        ours, theirs = f"{TEXT}encoder.layers.{number}.", f"{prefix}transformer.resblocks.{number}."
        rules += layers(_TEXT_BLOCK, ours, theirs)
        for kind in ("weight", "bias"):
            thirds = tuple(f"{ours}self_attn.{which}_proj.{kind}" for which in "qkv")
            rules.append(Rule(thirds, (f"{theirs}attn.in_proj_{kind}",), Split((1, 1, 1))))
    return rules


def _require_transformer(shapes: Shapes, where: str) -> None:
    if "visual.layer1.0.conv1.weight" in shapes:
        raise ConfigError(f"{where}: the image tower is a ResNet of CLIP; choose a CLIP with a vision transformer.")
    if "visual.class_embedding" not in shapes:
        raise ConfigError(f"{where}: the tensor visual.class_embedding is missing in these weights.")


def image_transformer(shapes: Shapes, config: Mapping[str, Any], activation: str, where: str) -> ImageTransformer:
    """Returns the sizes of the vision transformer, from its tensors and the entry `vision_cfg` of open_clip's config.

    Raises:
        ConfigError: If the image tower is no vision transformer, or the sizes cannot be read from its tensors.
    """
    _require_transformer(shapes, where)
    # Sizes are read from vectors. So a matrix of a wrong shape does not fit the model, and the error names this matrix.
    (width,) = shape_of(shapes, "visual.ln_post.weight", 1, where)
    patch = shape_of(shapes, "visual.conv1.weight", 4, where)[-1]
    tokens, _ = shape_of(shapes, "visual.positional_embedding", 2, where)
    depth = count_layers(shapes, "visual.transformer.resblocks.")
    mean, std = statistics_of(config, ("mean", "std"), (OPENAI_MEAN, OPENAI_STD), where)
    return ImageTransformer(
        family="clip",
        width=width,
        layers=depth,
        heads=max(1, width // size_of(config, "head_width", HEAD_WIDTH, where)),
        patch=patch,
        pixels=patch * grid_side(tokens - 1, "visual.positional_embedding", where),
        mlp_width=shape_of(shapes, "visual.transformer.resblocks.0.mlp.c_fc.bias", 1, where)[0],
        activation=activation,
        mean=mean,
        std=std,
    )


def text_transformer(
    shapes: Shapes, config: Mapping[str, Any], prefix: str, activation: str, where: str
) -> TextTransformer:
    """Returns the sizes of the text transformer, with the family "clip".

    Args:
        shapes: The shapes of all tensors by name.
        config: The entry `text_cfg` of open_clip's config; empty if there is none.
        prefix: First part of the names, "text." or empty.
        activation: The activation.
        where: First words of an error message: the setting and its value.

    Raises:
        ConfigError: If the sizes cannot be read from the tensors.
    """
    (width,) = shape_of(shapes, f"{prefix}ln_final.weight", 1, where)
    positions = shape_of(shapes, f"{prefix}positional_embedding", 2, where)[0]
    tokens = shape_of(shapes, f"{prefix}token_embedding.weight", 2, where)[0]
    return TextTransformer(
        family="clip",
        width=width,
        layers=count_layers(shapes, f"{prefix}transformer.resblocks."),
        heads=size_of(config, "heads", max(1, width // HEAD_WIDTH), where),
        positions=positions,
        tokens=tokens,
        mlp_width=shape_of(shapes, f"{prefix}transformer.resblocks.0.mlp.c_fc.bias", 1, where)[0],
        activation=activation,
        norm_eps=1e-5,
        end_id=_end_token(config, tokens, where),
    )


def _end_token(config: Mapping[str, Any], tokens: int, where: str) -> int:
    """Returns the id of the token at which the text tower pools a text.

    OpenAI and open_clip take the vector of the largest id, which is the end token of CLIP's vocabulary. With
    `pool_type` "eos" the config gives the id.
    """
    return size_of(config, "eos_id", 2, where) if config.get("pool_type") == "eos" else tokens - 1
