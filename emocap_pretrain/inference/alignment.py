"""Defines how a model compares the patches of an image with a sentence: which patches count, and with which weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from emocap_kernels import region_attention
from emocap_kernels.region.pooling import pooling_weights
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from emocap_pretrain.config.objective import ObjectiveConfig
from emocap_pretrain.data.patch_mask import patches_with_contrast

Square = UInt8[np.ndarray, "pixels pixels 3"]


@dataclass(frozen=True, slots=True)
class LocalAlignment:
    """Holds how a model compares patches with sentences.

    Attributes:
        sharpness: Inverse temperature of the softmax over the patches.
        length: Largest number of tokens of a sentence.
        contrast: A patch is ignored if in each colour channel its largest and its smallest 8-bit value differ by less
            than this number; None keeps all patches.
        is_trained: Whether the model was trained to compare patches with sentences.
    """

    sharpness: float
    length: int
    contrast: int | None = None
    is_trained: bool = True

    @classmethod
    def of(cls, objective: ObjectiveConfig, length: int) -> "LocalAlignment | None":
        """Returns how the model of a run compares patches with sentences; None if the run had no local loss.

        Args:
            objective: The objective of the run.
            length: Largest number of tokens of a sentence.
        """
        if not objective.local:
            return None
        mask = objective.patch_mask
        return cls(objective.sharpness, length, mask.contrast if mask else None)

    def kept(self, crops: Sequence[Square], patches: int) -> Bool[Tensor, "crops patches"] | None:
        """Returns a mask that is True for each patch that takes part in the comparison; None if all patches do.

        Args:
            crops: The images.
            patches: Number of patches of an image.

        Raises:
            ConfigError: If `contrast` is set, and the patches do not divide an image into equal squares.
        """
        if self.contrast is None:
            return None
        channels = torch.from_numpy(np.stack([crop.transpose(2, 0, 1) for crop in crops]))
        return patches_with_contrast(channels, patches, self.contrast)

    def scores(
        self,
        crops: Sequence[Square],
        patches: Float[Tensor, "crops patches embedding"],
        sentences: Float[Tensor, "sentences embedding"],
    ) -> Float[Tensor, "crops sentences"]:
        """Returns how well each sentence fits each image: the weighted mean of the cosines of patches and sentence.

        The weights are those of `attention`. The local loss with `scope=batch` computes the same scores and multiplies
        them by the learned scale (docs/method.md, section 2). An image has the score 0 with every sentence if
        `contrast` ignores all of its patches.

        Args:
            crops: The images.
            patches: The unit vectors of the patches of these images.
            sentences: The unit vectors of the sentences.

        Raises:
            ConfigError: As `kept` does.
        """
        similarity = torch.einsum("ipd,nd->nip", patches, sentences)
        weights = pooling_weights(similarity, self.sharpness, self.kept(crops, patches.shape[1]))
        return (weights * similarity).sum(-1).T.contiguous()

    def attention(
        self,
        crops: Sequence[Square],
        patches: Float[Tensor, "crops patches embedding"],
        sentences: Float[Tensor, "sentences embedding"],
        image: Int[Tensor, " sentences"],
    ) -> Float[Tensor, "sentences patches"]:
        """Returns one attention map for each sentence: the weights of the patches of the image with this sentence.

        The weights are a softmax over the patches of the image. They sum to 1, or to 0 if `contrast` ignores all
        patches of the image.

        Args:
            crops: The images.
            patches: The unit vectors of the patches of these images.
            sentences: The unit vectors of the sentences.
            image: For each sentence, the index in `crops` of the image to which the sentence belongs.

        Raises:
            ConfigError: As `kept` does.
        """
        kept = self.kept(crops, patches.shape[1])
        return region_attention(patches, sentences, image, sharpness=self.sharpness, patch_mask=kept)
