"""Embeds images and texts with a trained model, for the evaluation tasks.

A task uses the model only through an `Embedder`. `Embedder.cropped` is called for each sample as soon as the sample is
decoded. When a batch is complete, the task computes its vectors with `Embedder.images` and `Embedder.texts`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from emocap_shards.sample import Sample
from jaxtyping import Float
from torch import Tensor

from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.data.transform import center_crop
from emocap_pretrain.model.pair import TowerPair


@dataclass(frozen=True, slots=True)
class Embedder:
    """Holds a trained model in evaluation mode, on any device, and its tokenizer.

    All vectors are returned in float32 on the CPU, without an autograd graph. The last bits of a vector may depend on
    the size of its batch. So the samples that a task embeds together must not depend on the number of ranks
    (`Share.batches`).

    Example:
        restored = restore("runs/faces")
        Embedder(restored.model, restored.tokenizer).texts(["a happy face"])
    """

    model: TowerPair
    tokenizer: Tokenizer

    def cropped(self, sample: Sample) -> Sample:
        """Returns the sample with the central square of its image, at the size that the image tower reads."""
        return replace(sample, image=center_crop(sample.image, self.model.pixels))

    def images(self, samples: Sequence[Sample]) -> Float[Tensor, "samples embedding"]:
        """Returns the unit vectors of the images of samples that `cropped` has returned, in one pass of the tower."""
        images = np.stack([sample.image.transpose(2, 0, 1) for sample in samples])
        with torch.inference_mode():
            return self.model.embed_images(torch.from_numpy(images).to(self._device)).float().cpu()

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "texts embedding"]:
        """Returns the unit vectors of texts, in one pass of the tower.

        Each text is cut to `model.prompt_length` tokens.
        """
        tokens = self.tokenizer.encode(texts, self.model.prompt_length)
        with torch.inference_mode():
            return self.model.embed_texts(tokens.to(self._device)).float().cpu()

    @property
    def _device(self) -> str:
        return str(self.model.logit_scale.device)
