"""A trained model and its tokenizer, as the evaluation tasks use them: samples and texts in, unit vectors out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from emocap_shards.sample import Sample
from jaxtyping import Float
from torch import Tensor

from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.data.transform import centre
from emocap_pretrain.model.pair import TowerPair


@dataclass(frozen=True, slots=True)
class Embedder:
    """The model is in evaluation mode, on any device; the vectors come back in float32 on the CPU."""

    model: TowerPair
    tokenizer: Tokenizer

    def cropped(self, sample: Sample) -> Sample:
        """The sample with the central square of its image, at the size that the image tower reads."""
        return replace(sample, image=centre(sample.image, self.model.pixels))

    def images(self, samples: Sequence[Sample]) -> Float[Tensor, "samples embedding"]:
        """The unit vectors of the images of `cropped` samples, all in one pass."""
        images = np.stack([sample.image.transpose(2, 0, 1) for sample in samples])
        with torch.inference_mode():
            return self.model.embed_images(torch.from_numpy(images).to(self._device)).float().cpu()

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "texts embedding"]:
        """The unit vectors of texts, cut to the length of the global caption part, all in one pass."""
        tokens = self.tokenizer.encode(texts, self.model.prompt_length)
        with torch.inference_mode():
            return self.model.embed_texts(tokens.to(self._device)).float().cpu()

    @property
    def _device(self) -> str:
        return str(self.model.logit_scale.device)
