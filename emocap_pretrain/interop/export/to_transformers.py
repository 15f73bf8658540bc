"""Exports a model for transformers.

If both towers are of the family CLIP or SigLIP, it becomes a `CLIPModel` or a `SiglipModel` (`whole_clip.py`). Any
other model becomes a `VisionTextDualEncoderModel`. Its image tower is a `ViTModel`, `CLIPVisionModel` or
`SiglipVisionModel` if one of them computes the same (`vision_towers.py`), and otherwise a `TimmWrapperModel`. A
`VisionTextDualEncoderModel` projects the `pooler_output` of each tower. For the image tower, this output is the pooled
vector. Two kinds of text towers have a pooler that fits:

- CLIP's text model, whose pooler takes the vector of the end token (`pooling: eos`).
- BERT and its relatives, whose pooler computes tanh(W x + b) of the first token's vector x (`pooling: cls`). The export
  sets W to a tiny multiple of the identity and b to 0, so that the result is x times the factor, up to an error far
  below `verify.BOUND`. The projection is divided by the factor.

No pooler of transformers computes the mean over tokens.
"""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, TimmWrapperConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.export import whole_clip
from emocap_pretrain.interop.export.accessories import write_accessories
from emocap_pretrain.interop.export.formats import ExportFormat, without_head
from emocap_pretrain.interop.export.graphs import numbers_of
from emocap_pretrain.interop.export.special_tokens import LEGACY_END, end_token, swapped, texts_cut_later
from emocap_pretrain.interop.export.vision_towers import PREFIX, VisionModel, vision_model
from emocap_pretrain.interop.restore import Restored
from emocap_pretrain.model.pair import TowerPair
from emocap_pretrain.model.timm_image import TimmImageTower
from emocap_pretrain.model.transformers_loading import quiet
from emocap_pretrain.model.transformers_text import TransformersTextTower

NAME = "transformers"
# tanh(x) differs from x by x^3 / 3. Hidden states are at most some hundreds, and 1e-6 of them is in the linear range.
_LINEAR = 1e-6
_NOT_IN_LLAVA = (
    "the image tower becomes a TimmWrapperModel, which LLaVA of transformers cannot read; it reads vision transformers "
    "that pool a class token and have no register tokens, layer scale or rotary positions, and those of CLIP and "
    "SigLIP."
)


def write(restored: Restored, folder: Path) -> None:
    image, text = towers_of(restored.model, NAME)
    config = copy.deepcopy(text.backbone.config)
    config._name_or_path = ""
    if family := whole_clip.family_of(restored.model, image, text):
        weights: dict[str, Tensor] = {}
        tokenizer = None
        if family.name == "clip":
            weights["text_model.embeddings.token_embedding.weight"] = text.backbone.get_input_embeddings().weight
            tokenizer = _with_end_token(restored, text, config, weights)
        whole_clip.write(restored, family, image, config, weights, folder)
    else:
        tokenizer = _write_dual_encoder(restored, image, text, config, folder)
    write_accessories(restored, folder, tokenizer=tokenizer)


def _write_dual_encoder(
    restored: Restored, image: TimmImageTower, text: TransformersTextTower, config: Any, folder: Path
) -> str | None:
    """Writes the config and the weights of a `VisionTextDualEncoderModel`.

    Returns the text of a new tokenizer.json if tokens get other ids, and None otherwise.

    Raises:
        ConfigError: As `_text` raises it.
    """
    model, scale = restored.model, math.log(numbers_of(restored.model)["scale"])
    weights, tokenizer = _text(restored, text, config)
    vision = vision_model(image) or _wrapped(image)
    described = VisionTextDualEncoderConfig(
        vision_config=vision.settings,
        text_config=config.to_dict(),
        projection_dim=model.to_text.out_features,
        logit_scale_init_value=scale,
    )
    built = VisionTextDualEncoderModel(described)
    built.load_state_dict(
        {
            **vision.weights,
            **weights,
            "visual_projection.weight": image_projection(model),
            "logit_scale": torch.tensor(scale),
        }
    )
    with quiet():
        # It names the tensors of a ViTModel so that older releases of transformers find them, too.
        built.save_pretrained(folder)
    return tokenizer


def _wrapped(image: TimmImageTower) -> VisionModel:
    # VisionTextDualEncoderModel reads `hidden_size`, which TimmWrapperConfig does not define itself.
    described: dict[str, Any] = {
        "architecture": image.backbone.default_cfg["architecture"],
        "model_args": model_arguments(image),
        "num_labels": 0,
        "hidden_size": image.width,
    }
    weights = {f"{PREFIX}timm_model.{name}": each for name, each in backbone_weights(image).items()}
    return VisionModel(TimmWrapperConfig(**described).to_dict(), weights)


def towers_of(model: TowerPair, kind: str) -> tuple[TimmImageTower, TransformersTextTower]:
    """Returns the two towers, if they are those of timm and transformers.

    Raises:
        ConfigError: If a tower is of another class.
    """
    image, text = model.image, model.text
    if not isinstance(image, TimmImageTower) or not isinstance(text, TransformersTextTower):
        raise ConfigError(
            f"--to {kind}: it holds towers of timm and transformers; export to onnx, torch or safetensors."
        )
    return image, text


def image_projection(model: TowerPair) -> Tensor:
    """Returns the matrix that projects pooled image vectors; the identity, if the model does not project them."""
    return model.to_image.weight if isinstance(model.to_image, nn.Linear) else torch.eye(model.to_text.out_features)


def model_arguments(image: TimmImageTower) -> dict[str, Any]:
    """Returns the arguments besides the name with which timm builds the tower, as timm itself stores them."""
    left_out = {"num_classes", "patch_drop_rate"}  # Patch dropout acts only in training.
    return {name: value for name, value in image.backbone._model_args.items() if name not in left_out}


def backbone_weights(image: TimmImageTower) -> dict[str, Tensor]:
    """Returns the weights of an image tower for a tower of the same name that timm has built anew.

    In this project the batch norm of a pretrained tower is frozen. The new tower has the usual batch norm, which also
    counts its batches. In evaluation mode both compute the same.
    """
    frozen = (
        name for name, each in image.backbone.named_modules() if type(each).__name__.startswith("FrozenBatchNorm")
    )
    return {**image.backbone.state_dict(), **{f"{name}.num_batches_tracked": torch.tensor(0) for name in frozen}}


def _text(restored: Restored, text: TransformersTextTower, config: Any) -> tuple[dict[str, Tensor], str | None]:
    """Returns the weights of the text tower and its projection, and the text of a new tokenizer.json.

    The text is None if no token needs another id. Otherwise the ids in `config` are changed too.

    Raises:
        ConfigError: If no pooler of transformers computes the pooling of the tower, or if the tower pools an end token
            that transformers cannot find (`end_token`).
    """
    weights = {f"text_model.{name}": each for name, each in text.backbone.state_dict().items()}
    has_bias, matrix, tokenizer = restored.config.model.text_bias, restored.model.to_text.weight, None
    is_clip = config.model_type == "clip_text_model"
    if is_clip and text.pooling == "eos" and not has_bias:
        tokenizer = _with_end_token(restored, text, config, weights)
    elif not is_clip and text.pooling == "cls" and not has_bias and (pooler := _pooler(config)):
        weights |= pooler
        matrix = matrix / _LINEAR
    else:
        bias = " with a bias of its projection" if has_bias else ""
        raise ConfigError(
            f"--to {NAME}: VisionTextDualEncoderModel cannot hold model.text.pooling={text.pooling} of a "
            f"{config.model_type} encoder{bias}; export to open_clip, onnx, torch or safetensors."
        )
    return {**weights, "text_projection.weight": matrix}, tokenizer


def _with_end_token(
    restored: Restored, text: TransformersTextTower, config: Any, weights: dict[str, Tensor]
) -> str | None:
    """Sets the end token in `config`, and returns the text of a new tokenizer.json if this token needs another id.

    transformers does not look for the id `LEGACY_END`. An end token with this id exchanges its id with another token,
    also in `weights`.

    Raises:
        ConfigError: If texts end with different tokens, or with one that also occurs before the end (`end_token`).
    """
    end = end_token(restored, text, NAME)
    config.eos_token_id = end
    if end != LEGACY_END:
        return None
    other = LEGACY_END - 1
    name = "text_model.embeddings.token_embedding.weight"
    order = torch.arange(config.vocab_size)
    order[[end, other]] = order[[other, end]]
    weights[name] = weights[name][order]
    config.eos_token_id = other
    if config.pad_token_id in {end, other}:
        config.pad_token_id = end + other - config.pad_token_id
    return swapped(restored.tokenizer, end, other)


def _pooler(config: Any) -> dict[str, Tensor] | None:
    """Returns weights that make BERT's pooler multiply by `_LINEAR`; None if the encoder has no such pooler."""
    with torch.device("meta"):
        names = {name for name, _ in AutoModel.from_config(config).named_parameters()}
    if not {"pooler.dense.weight", "pooler.dense.bias"} <= names:
        return None
    size = config.hidden_size
    return {
        "text_model.pooler.dense.weight": _LINEAR * torch.eye(size),
        "text_model.pooler.dense.bias": torch.zeros(size),
    }


def _lacks(restored: Restored) -> tuple[str, ...]:
    image, text = towers_of(restored.model, NAME)
    family = whole_clip.family_of(restored.model, image, text)
    has_bias = restored.model.logit_bias is not None and not (family and family.name == "siglip")
    bias = ", nor the bias of the scores" if has_bias else ""
    line = (
        "transformers cannot hold the projections of patches and of local sentences, nor the scale of their "
        f"scores{bias}; the formats onnx, torch and safetensors can."
    )
    is_read = family is not None or vision_model(image) is not None
    return (line, *(() if is_read else (_NOT_IN_LLAVA,)), *without_head(restored), *texts_cut_later(restored, text))


FORMAT = ExportFormat(
    name=NAME,
    about="A CLIPModel, SiglipModel or VisionTextDualEncoderModel with its image processor and its tokenizer.",
    library="transformers",
    modules={"transformers": "transformers", "timm": "timm"},
    write=write,
    lacks=_lacks,
    loading="""\
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

model = AutoModel.from_pretrained(".").eval()
pixels = AutoImageProcessor.from_pretrained(".")(Image.open("face.jpg"), return_tensors="pt")
texts = ["a happy face", "a sad face"]
tokens = AutoTokenizer.from_pretrained(".")(texts, padding="max_length", truncation=True, return_tensors="pt")
print(model(**pixels, **tokens).logits_per_image.softmax(-1))
""",
)
