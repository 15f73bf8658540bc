"""Computes the vectors of one batch of images or texts with a trained model.

An evaluation uses a model only through an `Embedder`: `evaluation/features.py` computes the vectors of images and
captions batch by batch, and the tasks compute the vectors of prompts. `EmotionModel` in `model.py` cuts any number of
images and texts into such batches.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self, TypeAlias

import numpy as np
import torch
from emocap_shards.sample import Sample
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import normalize

from emocap_pretrain.config.fields import ImageCrop
from emocap_pretrain.config.objective import ObjectiveConfig
from emocap_pretrain.data.batch import Texts
from emocap_pretrain.data.parts import Part
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.data.transform import BICUBIC, Resize, channels_first, cropped
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.inference.alignment import LocalAlignment
from emocap_pretrain.interop.restore import Restored
from emocap_pretrain.model.pair import TowerPair

Crop: TypeAlias = UInt8[np.ndarray, "pixels pixels 3"]
"""The square that the image tower reads, at its size: the central square of an image, or the whole image resized."""


@dataclass(frozen=True, slots=True)
class Embedder:
    """Holds a trained model in evaluation mode, on any device, and its tokenizer.

    All vectors are returned in float32 on the CPU, without an autograd graph. The size of a batch may change the last
    bits of its vectors. So the samples that an evaluation embeds together must not depend on the number of ranks
    (`evaluation/features.py`).

    Attributes:
        model: The towers with their projections.
        tokenizer: The tokenizer of the text tower; None for an image tower alone, which cannot read texts.
        local: How patches are compared with sentences; None for a run that was trained without the local loss, and for
            an image tower alone.
        lengths: The number of tokens to which the texts of a caption part are cut, by the name of the part. `length_of`
            says what holds for a part that is missing here.
        crop: The part of an image that the model was published to read: "center" or "whole". An evaluation may choose
            the other one.
        resize: How this part is resized.
        objective: What a run of this project was trained with; None for the model of another library.

    Example:
        Embedder.of(restore("runs/faces"), "cpu").texts(["a happy face"])
    """

    model: TowerPair
    tokenizer: Tokenizer | None
    local: LocalAlignment | None = None
    lengths: Mapping[str, int] = field(default_factory=dict[str, int])
    crop: ImageCrop = "center"
    resize: Resize = BICUBIC
    objective: ObjectiveConfig | None = None

    @classmethod
    def of(cls, restored: Restored, device: str) -> "Embedder":
        """Moves the model of a checkpoint to a device, and returns an embedder of this model, which is not copied."""
        settings = restored.config
        lengths = settings.model.text.lengths
        local = LocalAlignment.of(settings.objective, lengths.local)
        model = restored.model.to(device)
        return cls(model, restored.tokenizer, local, lengths.by_part, objective=settings.objective)

    def on(self, device: str) -> Self:
        """Moves the model itself to a device, and returns this embedder."""
        self.model.to(device)
        return self

    @property
    def has_texts(self) -> bool:
        """Returns whether the model can read texts; an image tower alone cannot."""
        return self.tokenizer is not None

    @property
    def has_maps(self) -> bool:
        """Returns whether the model was trained to compare local sentences with patches.

        For any other model, an attention map does not show which part of a face a sentence is about.
        """
        return self.local is not None and self.local.is_trained

    @property
    def reads(self) -> str:
        """Returns a text that says which part of an image the model reads, and how this part is resized.

        Other texts than "center" and "whole" belong to models that are not resized with the usual filter.
        """
        return self.crop if self.resize == BICUBIC else f"{self.crop} {self.resize}"

    def square(self, image: UInt8[np.ndarray, "height width 3"]) -> Crop:
        """Returns the square that the tower reads: the part of the image that `crop` names, resized."""
        return cropped(image, self.model.pixels, self.crop, self.resize)

    def cropped(self, sample: Sample) -> Sample:
        """Returns the sample with the square of its image that the tower reads."""
        return replace(sample, image=self.square(sample.image))

    def images(self, samples: Sequence[Sample]) -> Float[Tensor, "samples embedding"]:
        """Returns the unit vectors of the images of samples that `cropped` has returned, in one pass of the tower."""
        return self.crops([sample.image for sample in samples])

    def crops(self, crops: Sequence[Crop]) -> Float[Tensor, "crops embedding"]:
        """Returns the unit vectors of crops, such as `square` returns, in one pass of the tower."""
        with torch.inference_mode():
            return self.model.embed_images(self._on_device(crops)).float().cpu()

    def crops_and_pooled(
        self, crops: Sequence[Crop]
    ) -> tuple[Float[Tensor, "crops embedding"], Float[Tensor, "crops width"]]:
        """Returns the result of `crops`, and the vectors of the image tower before the projection, in one pass."""
        with torch.inference_mode():
            vectors, pooled = self.model.embed_images_and_pooled(self._on_device(crops))
            return vectors.float().cpu(), pooled.float().cpu()

    def crops_pooled_and_patches(
        self, crops: Sequence[Crop]
    ) -> tuple[
        Float[Tensor, "crops embedding"], Float[Tensor, "crops width"], Float[Tensor, "crops patches embedding"]
    ]:
        """Returns the unit vectors of crops, their pooled vectors, and the unit vectors of their patches, in one pass.

        The pooled vectors are the vectors of the image tower before the projection.
        """
        with torch.inference_mode():
            vectors, pooled, patches = self.model.embed_images_pooled_and_patches(self._on_device(crops))
            return vectors.float().cpu(), pooled.float().cpu(), patches.float().cpu()

    def projected(self, pooled: Float[Tensor, "vectors width"]) -> Float[Tensor, "vectors embedding"]:
        """Returns the unit vectors that belong to vectors of the image tower, such as the means over frames."""
        with torch.inference_mode():
            return normalize(self.model.to_image(pooled.to(self._device)), dim=-1).float().cpu()

    def head_outputs(self, pooled: Float[Tensor, "vectors width"]) -> dict[str, Float[Tensor, "vectors outputs"]]:
        """Returns the outputs of the model's head for pooled vectors before the projection, by the name of the label.

        The outputs for a label are the logits of its classes, or one number (`TowerPair.head_outputs`). If the model
        has no head, the result is empty.
        """
        with torch.inference_mode():
            found = self.model.head_outputs(pooled.to(self._device))
            return {name: each.float().cpu() for name, each in found.items()}

    def patches(self, crops: Sequence[Crop]) -> Float[Tensor, "crops patches embedding"]:
        """Returns the unit vectors of the patches of crops, in one pass of the tower."""
        with torch.inference_mode():
            return self.model.embed_patches(self._on_device(crops)).float().cpu()

    def crops_and_patches(
        self, crops: Sequence[Crop]
    ) -> tuple[Float[Tensor, "crops embedding"], Float[Tensor, "crops patches embedding"]]:
        """Returns the results of `crops` and `patches`, in one pass of the tower."""
        with torch.inference_mode():
            pooled, patches = self.model.embed_images_and_patches(self._on_device(crops))
            return pooled.float().cpu(), patches.float().cpu()

    def texts(self, texts: Sequence[str], length: int | None = None) -> Float[Tensor, "texts embedding"]:
        """Returns the unit vectors of texts, which are comparable with the unit vectors of images, in one pass.

        Args:
            texts: The texts.
            length: Number of tokens to which each text is cut; None takes the length of prompts
                (`TowerPair.prompt_length`).

        Raises:
            ConfigError: If the model cannot read texts.
        """
        tokens = self._encoded(texts, self.model.prompt_length if length is None else length)
        with torch.inference_mode():
            return self.model.embed_texts(tokens.to(self._device)).float().cpu()

    def sentences(self, texts: Sequence[str], length: int) -> Float[Tensor, "texts embedding"]:
        """Returns the unit vectors of local sentences, which are comparable with those of patches, in one pass.

        Each sentence is cut to `length` tokens.

        Raises:
            ConfigError: If the model cannot read texts.
        """
        tokens = self._encoded(texts, length)
        with torch.inference_mode():
            return self.model.embed_sentences(tokens.to(self._device)).float().cpu()

    def texts_of(self, part: Part, texts: Sequence[str]) -> Float[Tensor, "texts embedding"]:
        """Returns the unit vectors of texts of a caption part, in one pass of the tower.

        The result is comparable with the unit vectors of patches if the model was trained to compare this part with
        patches, and with the unit vectors of images otherwise. Each text is cut to the length of the part.

        Raises:
            ConfigError: If the model cannot read texts.
        """
        length = self.length_of(part)
        return self.sentences(texts, length) if self.is_compared_with_patches(part) else self.texts(texts, length)

    def is_compared_with_patches(self, part: Part) -> bool:
        """Returns whether the model was trained to compare the texts of this part with the patches of images."""
        return self.has_maps and part.aligned_with == "patches"

    def length_of(self, part: Part) -> int:
        """Returns the number of tokens to which the texts of a caption part are cut.

        If `lengths` lacks the part, it is the largest length in `lengths`, or the length of prompts if `lengths` is
        empty.
        """
        return self.lengths.get(part.name, max(self.lengths.values(), default=self.model.prompt_length))

    def read_colours_from_0_to_1(self) -> None:
        """Lets the model read colours as values from 0 to 1, without its mean and standard deviation.

        Some published scores were computed in this way. The digest of the model changes.

        Raises:
            ConfigError: If the image tower has no mean and standard deviation.
        """
        mean, std = (getattr(self.model.image, name, None) for name in ("mean", "std"))
        if not (isinstance(mean, Tensor) and isinstance(std, Tensor)):
            raise ConfigError("--no-normalize: this model has no mean and standard deviation of colours; leave it out.")
        mean.zero_()
        std.fill_(255.0)  # The tower reads bytes.

    def digest(self) -> str:
        """Returns a SHA-256 digest of the model: weights, structure, image size and tokenizer.

        `crop`, `resize`, `lengths` and `local` are not part of it, although they decide which vectors are computed.
        """
        tokenizer = json.loads(self.tokenizer.to_json()) if self.tokenizer else {}
        tokenizer.pop("truncation", None)  # That of the last text; every call sets its own.
        digest = hashlib.sha256(f"{self.model} {self.model.pixels} {json.dumps(tokenizer)}".encode())
        # The mean and standard deviation of the colours are not persistent buffers, so the state dict lacks them.
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        for name, tensor in sorted(tensors, key=lambda each: each[0]):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _encoded(self, texts: Sequence[str], length: int) -> Texts:
        if self.tokenizer is None:
            raise ConfigError("the model is an image tower alone, which cannot read texts.")
        return self.tokenizer.encode(texts, length)

    def _on_device(self, crops: Sequence[Crop]) -> UInt8[Tensor, "crops 3 pixels pixels"]:
        return channels_first(crops).to(self._device)

    @property
    def _device(self) -> str:
        return str(self.model.logit_scale.device)
