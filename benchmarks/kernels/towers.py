"""An image tower and a text tower with random weights, which cost the same as those of a training step.

Only this module imports timm and transformers, and only when towers are built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from .outcome import UnableError

_VOCABULARY = 8192
_HEAD_WIDTH = 64


@dataclass(frozen=True, slots=True)
class TowerShape:
    """The image tower by its name in timm, the text tower by layers and width, and the embedding size of both."""

    image: str
    text_layers: int
    text_width: int
    embedding: int


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of both towers, which are not normalised.

    Attributes:
        image: [rows, embedding].
        patches: [rows, patches, embedding].
        texts: [each, embedding].
    """

    image: Tensor
    patches: Tensor
    texts: Sequence[Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        return [self.image, self.patches, *self.texts]


class Towers(nn.Module):
    """An image tower and one text tower, which embeds all groups of texts one after the other."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.image = _image_tower(shape.image)
        self.text = _text_tower(shape.text_layers, shape.text_width)
        width: int = self.image.num_features
        self.to_image, self.to_patch = (nn.Linear(width, shape.embedding, bias=False) for _ in range(2))
        self.to_text = nn.Linear(shape.text_width, shape.embedding, bias=False)

    @property
    def pixels(self) -> int:
        return self.image.pretrained_cfg["input_size"][-1]

    def forward(self, images: Tensor, texts: Sequence[Tensor]) -> Outputs:
        """Embeds images [rows, 3, pixels, pixels], and groups of token ids, int64 [texts, length] each."""
        features = self.image.forward_features(images)
        pooled = self.image.forward_head(features, pre_logits=True)
        patches = features[:, self.image.num_prefix_tokens :]
        found = [self.to_text(self.text(ids).mean(1)) for ids in texts]
        return Outputs(self.to_image(pooled), self.to_patch(patches), found)

    def tokens(self, texts: int, length: int, device: torch.device) -> Tensor:
        """Returns random token ids, int64 [texts, length]."""
        return torch.randint(_VOCABULARY, (texts, length), device=device)


def _image_tower(name: str) -> Any:
    if find_spec("timm") is None:
        raise UnableError("timm, which builds the image tower, is not installed.")
    # timm imports torchvision, which does not load with a CPU build of torch without this.
    from emocap_pretrain.model import torchvision_ops

    torchvision_ops.install()
    import timm

    try:
        tower: Any = timm.create_model(name, num_classes=0)
    except RuntimeError as error:
        raise UnableError(f"--image-tower {name}: {str(error).splitlines()[0]}") from error
    if not hasattr(tower, "num_prefix_tokens"):
        raise UnableError(f"--image-tower {name} has no tokens for patches; choose a vit.")
    return tower


def _text_tower(layers: int, width: int) -> nn.Module:
    heads = max(1, width // _HEAD_WIDTH)
    return _Plain(layers, width, heads) if find_spec("transformers") is None else _Bert(layers, width, heads)


class _Bert(nn.Module):
    """A BERT of transformers: token ids [texts, length] -> [texts, length, width]."""

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=_VOCABULARY,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
        )
        self.encoder: Any = BertModel(config, add_pooling_layer=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.encoder(input_ids=ids).last_hidden_state


class _Plain(nn.Module):
    """A tower of the same size, built from torch alone."""

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(_VOCABULARY, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers)

    def forward(self, ids: Tensor) -> Tensor:
        return self.encoder(self.embed(ids))
