"""Wraps models of transformers as towers, for the evaluation of models that were not trained here.

The towers return what their library computes, without other norms or projections. Runs of this project are trained with
the towers of `timm_image.py` and `transformers_text.py`.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from emocap_pretrain.data.batch import Texts
from emocap_pretrain.model.transformers_text import pool

ImagePooling = Literal["pooler", "class", "mean"]
TextPooling = Literal["pooler", "cls", "mean"]
# Parameters of tokens that precede the patches: class, distillation and register tokens.
_PREFIX = ("cls_token", "class_embedding", "distillation_token", "register_tokens")
_INTERPOLATE = "interpolate_pos_encoding"


class TransformersImageTower(nn.Module):
    """Implements `ImageTower` with an image model of transformers, whose features are tokens or a feature map.

    Attributes:
        mean: Mean of the 8-bit pixel values, for each colour channel.
        std: Standard deviation of these values, for each colour channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Any,
        *,
        pixels: int,
        mean: Sequence[float],
        std: Sequence[float],
        pooling: ImagePooling | None = None,
    ) -> None:
        """Wraps a model in evaluation mode, and computes one black image to learn the sizes of its vectors.

        Args:
            backbone: The model with its weights.
            pixels: Side of the square images.
            mean: Mean of the 8-bit values.
            std: Standard deviation of these values.
            pooling: How the vector of an image is made: "pooler" takes the output of the model's own pooling, "class"
                the vector of the first token, and "mean" the mean over the patches. None takes the first of them that
                the model has.

        Raises:
            Exception: What the model raises if it cannot read images of this size; the classes of these errors differ.
        """
        super().__init__()
        self.backbone = backbone.eval()
        self.pixels = pixels
        self.prefix_tokens = _prefix_tokens(backbone)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self._inputs = self._further_inputs()
        self.pooling: ImagePooling = pooling or "pooler"
        with torch.no_grad():
            black = torch.zeros((1, 3, pixels, pixels), dtype=torch.uint8)
            if pooling is None and getattr(self._output(black), "pooler_output", None) is None:
                self.pooling = "class" if self.prefix_tokens else "mean"
            pooled, patches = self.encode_image(black)
        self.width: int = pooled.shape[-1]
        self.patch_width: int = patches.shape[-1]

    def encode_image(
        self, images: UInt8[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch patches patch_width"]]:
        output = self._output(images)
        hidden = output.last_hidden_state
        patches = hidden.flatten(2).mT if hidden.ndim == 4 else hidden[:, self.prefix_tokens :]
        if self.pooling == "pooler":  # Some convolutional models keep two axes of length 1.
            return output.pooler_output.flatten(1), patches
        return hidden[:, 0] if self.pooling == "class" else patches.mean(1), patches

    def _output(self, images: Tensor) -> Any:
        pixels = (images.to(self.mean.dtype) - self.mean) / self.std
        more = dict(self._inputs)
        if "noise" in more:  # Patches in this order are kept in their order.
            more["noise"] = torch.arange(more["noise"], device=images.device).expand(len(images), -1)
        return self.backbone(pixel_values=pixels, **more)

    def _further_inputs(self) -> dict[str, Any]:
        """Returns arguments of the model besides the images.

        Position embeddings for images of another size are interpolated as the model does it. A masked autoencoder draws
        random numbers for the order of its patches, unless it gets them.
        """
        config, known = self.backbone.config, inspect.signature(self.backbone.forward).parameters
        found: dict[str, Any] = {}
        if _INTERPOLATE in known and getattr(config, "image_size", self.pixels) != self.pixels:
            found[_INTERPOLATE] = True
        if config.model_type == "vit_mae":
            found["noise"] = (self.pixels // config.patch_size) ** 2
        return found

    def parameter_depths(self) -> dict[str, int]:
        return {f"backbone.{name}": 0 for name, _ in self.backbone.named_parameters()}

    def checkpoint_activations(self) -> None:
        """Does nothing, because the tower is not trained."""


class PooledTextTower(nn.Module):
    """Implements `TextTower` with a text encoder of transformers, for texts that are padded at the end.

    Attributes:
        positions: Largest number of tokens of a text.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, backbone: Any, *, width: int, positions: int, pad_id: int, pooling: TextPooling) -> None:
        """Wraps an encoder in evaluation mode.

        Args:
            backbone: The encoder with its weights.
            width: Size of a text's vector.
            positions: Largest number of tokens of a text.
            pad_id: The id with which texts are padded. Some encoders recognize the padding by it, too.
            pooling: How the vector of a text is made: "pooler" takes the output of the encoder's own pooling, "cls"
                the vector of the first token, and "mean" the mean over the tokens.
        """
        super().__init__()
        self.backbone = backbone.eval()
        self.width, self.positions, self.pad_id, self.pooling = width, positions, pad_id, pooling

    def encode_text(self, texts: Texts) -> Float[Tensor, "texts width"]:
        if texts.ids.shape[0] == 0:  # The mask code of transformers fails for an empty batch.
            return self.encode_text(Texts(texts.ids.new_zeros((1, 1)), texts.mask.new_ones((1, 1))))[:0]
        ids = texts.ids.masked_fill(~texts.mask, self.pad_id)
        output = self.backbone(input_ids=ids, attention_mask=texts.mask.long())
        if self.pooling == "pooler":
            return output.pooler_output
        return pool(output.last_hidden_state, texts.mask, self.pooling)

    def parameter_depths(self) -> dict[str, int]:
        return {f"backbone.{name}": 0 for name, _ in self.backbone.named_parameters()}

    def checkpoint_activations(self) -> None:
        """Does nothing, because the tower is not trained."""

    def recorded(self) -> None:
        return None


def _prefix_tokens(backbone: nn.Module) -> int:
    """Returns the number of tokens before the patches, from the parameters that hold their first vectors."""
    if type(backbone).__name__ == "DINOv3ConvNextModel":  # It puts its pooled vector before the cells.
        return 1
    tokens = 0
    for name, parameter in backbone.named_parameters():
        words = name.split(".")
        if words[-1] in _PREFIX and words[0] != "head":  # The token of an attention pooling is not in the sequence.
            tokens += 1 if parameter.ndim == 1 else parameter.shape[-2]
    return tokens
