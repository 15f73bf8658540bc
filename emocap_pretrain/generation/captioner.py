"""Writes captions: a projector turns the patches of an image into tokens that a frozen language model continues.

The language model reads the prompt, in which the tokens of the image replace `IMAGE`, and then the caption. These
tokens are vectors of the width of the language model's embeddings. Only the projector has gradients. All prompts of a
batch have the same length, so a batch needs no padding before its captions, and in float32 each image gets the same
caption in a batch as alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from emocap_pretrain.config.fields import Precision
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.generation.language_model import LanguageModel
from emocap_pretrain.generation.projector import Projector
from emocap_pretrain.model.pair import autocast

IMAGE = "<image>"
PROMPT = f"{IMAGE}\nThe expression of this face in one sentence:\n"
_IGNORED = -100  # The label of padding, which `cross_entropy` leaves out.


class EncodedCaptions(NamedTuple):
    """Holds the tokens of captions, padded at the end.

    Attributes:
        ids: The tokens of each caption, padded with the end token.
        labels: The same tokens, with `_IGNORED` in place of the padding.
        cut: Number of captions that were too long and were cut.
    """

    ids: Int64[Tensor, "captions length"]
    labels: Int64[Tensor, "captions length"]
    cut: int


@dataclass(frozen=True, slots=True, eq=False)
class Captioner:
    """Holds a projector and a frozen language model on the same device.

    Attributes:
        projector: Turns the patch vectors of an image into tokens.
        language: The language model and its tokenizer.
        prompt: The text before the caption. It contains `IMAGE` exactly once.
        most_tokens: Largest number of tokens of a caption, including its end token.
        precision: The precision of the matrix multiplications in the projector and the language model: bf16 and fp16
            by autocast. Weights stay float32.

    Raises:
        ConfigError: If the prompt does not contain `IMAGE` exactly once.
    """

    projector: Projector
    language: LanguageModel
    prompt: str = PROMPT
    most_tokens: int = 48
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if self.prompt.count(IMAGE) != 1:
            raise ConfigError(f"--prompt {self.prompt!r}: it must have {IMAGE} once, where the image is.")

    def image_tokens(self, patches: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens token_width"]:
        """Returns the tokens of images, which the projector makes of their patch vectors."""
        weights = next(self.projector.parameters())
        with self._autocast():
            return self.projector(patches.to(weights.device, weights.dtype))

    def summed_loss(
        self, image_tokens: Float[Tensor, "batch tokens token_width"], captions: Sequence[str]
    ) -> tuple[Float[Tensor, ""], int]:
        """Returns the sum of the cross-entropy over the tokens of all captions, and the number of these tokens.

        A caption is predicted from the tokens of its image and from the prompt. End tokens count, padding does not.
        """
        encoded = self.encoded(captions)
        with self._autocast():
            before = self._before(image_tokens)
            after = self.language.embedded(encoded.ids)
            # Padding at the end needs no mask: no token looks ahead, and the labels leave the padding out.
            length = encoded.ids.shape[1]
            logits = self.language.model(
                inputs_embeds=torch.cat([before, after.to(before.dtype)], dim=1),
                use_cache=False,
                logits_to_keep=length + 1,
            ).logits
        # The logits at a place predict the next token, so those of the last token predict nothing.
        predicted = logits[:, -length - 1 : -1].flatten(0, 1)
        predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
        total = cross_entropy(predicted, encoded.labels.flatten(), ignore_index=_IGNORED, reduction="sum")
        return total, int((encoded.labels != _IGNORED).sum())

    def written(self, patches: Float[Tensor, "batch tokens width"]) -> list[str]:
        """Returns the caption that the language model writes for each image, by greedy decoding.

        Each token is the most probable one. A caption ends before the first end token, or after `most_tokens` tokens.
        """
        if not len(patches):
            return []
        with torch.inference_mode(), self._autocast():
            before = self._before(self.image_tokens(patches))
            ids = self.language.model.generate(
                inputs_embeds=before,
                attention_mask=torch.ones(before.shape[:2], dtype=torch.int64, device=before.device),
                generation_config=self._greedy(),
            )
        return [self.language.text(row) for row in ids.tolist()]

    def encoded(self, captions: Sequence[str]) -> EncodedCaptions:
        """Returns the tokens of captions, on the device of the language model.

        An end token follows each caption, if both fit into `most_tokens` tokens. A longer caption is cut and gets no
        end token, so that the projector is not trained to end captions at that place.
        """
        rows = [[*self.language.ids(caption), self.language.end_id] for caption in captions]
        cut = sum(len(row) > self.most_tokens for row in rows)
        rows = [row[: self.most_tokens] for row in rows]
        longest = max(map(len, rows))
        padded = [row + [_IGNORED] * (longest - len(row)) for row in rows]
        labels = torch.tensor(padded, device=self.language.device)
        return EncodedCaptions(labels.where(labels != _IGNORED, self.language.end_id), labels, cut)

    def _before(self, image: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch length width"]:
        """Returns the embeddings of the prompt for each image, in which the tokens of the image replace `IMAGE`."""
        first, last = (
            self.language.embedded(torch.tensor(self.language.ids(text), dtype=torch.int64, device=image.device))
            .to(image.dtype)
            .expand(len(image), -1, -1)
            for text in self.prompt.split(IMAGE)
        )
        return torch.cat([first, image, last], dim=1)

    def _greedy(self) -> object:
        from transformers import GenerationConfig

        # What is left out here is also left out in the config of the model (`load_language_model`).
        return GenerationConfig(
            max_new_tokens=self.most_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=self.language.end_id,
            pad_token_id=self.language.end_id,
        )

    def _autocast(self) -> torch.autocast:
        return autocast(torch.device(self.language.device), self.precision)
