"""Wraps a trained pair as two modules whose inputs and outputs are plain tensors, so that torch can export them.

There is one module for images and one for texts, because most users embed images and texts at different times. The
normalization of pixel values, the projections and the normalization to unit length are parts of the modules.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from emocap_pretrain.data.batch import Texts
from emocap_pretrain.model.pair import MAX_SCALE, TowerPair


class ImageGraph(nn.Module):
    """Computes the unit vectors of images and of their patches."""

    def __init__(self, model: TowerPair) -> None:
        super().__init__()
        self.tower: Any = model.image
        self.to_image, self.to_patch = model.to_image, model.to_patch

    def forward(
        self, images: UInt8[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch embedding"], Float[Tensor, "batch patches embedding"]]:
        pooled, patches = self.tower.encode_image(images)
        return _unit(self.to_image(pooled)), _unit(self.to_patch(patches))


class TextGraph(nn.Module):
    """Computes two unit vectors of each text, and also returns the learned scales and the bias (`numbers_of`).

    The first vector is compared with the vectors of images, and the second one with those of patches.
    """

    def __init__(self, model: TowerPair) -> None:
        super().__init__()
        self.tower: Any = model.text
        self.to_text, self.to_sentence = model.to_text, model.to_sentence
        for name, value in numbers_of(model).items():
            self.register_buffer(name, torch.tensor(value))

    def forward(
        self, input_ids: Int[Tensor, "texts length"], attention_mask: Int[Tensor, "texts length"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        vectors = self.tower.encode_text(Texts(input_ids, attention_mask.bool()))
        # The numbers are copied, because torch.export refuses outputs that are buffers.
        numbers = (getattr(self, name).clone() for name in NUMBERS)
        return _unit(self.to_text(vectors)), _unit(self.to_sentence(vectors)), *numbers


NUMBERS = ("scale", "local_scale", "bias")


def numbers_of(model: TowerPair) -> dict[str, float]:
    """Returns the learned scales and the bias of the scores by their names (`NUMBERS`).

    `scale` multiplies the cosine of an image and a text, and `local_scale` that of a patch and a sentence. Both are at
    most `MAX_SCALE`, as in training. `bias` is 0 if the model has none.
    """
    logs = (float(model.logit_scale.detach()), float(model.local_logit_scale.detach()))
    scales = [math.exp(min(each, math.log(MAX_SCALE))) for each in logs]
    bias = 0.0 if model.logit_bias is None else float(model.logit_bias.detach())
    return dict(zip(NUMBERS, (*scales, bias), strict=True))


@dataclass(frozen=True, slots=True)
class Graph:
    """Holds a module with everything that an exporter needs to know about it.

    Attributes:
        name: Name of the file without its suffix.
        module: The module.
        example: Arguments of `forward`, by name.
        dynamic: For each argument, the axes of variable size, as `dynamic_shapes` of `torch.export.export` takes them.
        outputs: Names of the results.
    """

    name: str
    module: nn.Module
    example: Mapping[str, Tensor]
    dynamic: Mapping[str, Mapping[int, Any]]
    outputs: tuple[str, ...]


def graphs_of(model: TowerPair, *, longest: int) -> tuple[Graph, Graph]:
    """Returns the modules of images and of texts; `longest` is the largest number of tokens of a text."""
    batch, texts = torch.export.Dim("batch"), torch.export.Dim("texts")
    length = torch.export.Dim("length", min=1, max=longest)
    # No example has the size 0 or 1, because torch.export would treat that size as a constant.
    images = torch.zeros(2, 3, model.pixels, model.pixels, dtype=torch.uint8)
    ids = torch.ones(3, min(7, longest), dtype=torch.int64)
    sides = {0: texts, 1: length}
    return (
        Graph("image", ImageGraph(model).eval(), {"images": images}, {"images": {0: batch}}, ("image", "patches")),
        Graph(
            "text",
            TextGraph(model).eval(),
            {"input_ids": ids, "attention_mask": ids.clone()},
            {"input_ids": sides, "attention_mask": sides},
            ("text", "sentence", *NUMBERS),
        ),
    )


def _unit(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors.float(), dim=-1)
