"""The text tower: a transformers encoder and the pooling that makes one vector of a text."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emocap_pretrain.batch import Tokens
from emocap_pretrain.config.schema import TextTower as Settings
from emocap_pretrain.encoders import torchvision_ops
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.tokenizer import Vocabulary

torchvision_ops.install()
from transformers import AutoConfig, AutoModel, CLIPTextConfig, CLIPTextModel  # noqa: E402 - after torchvision_ops


class TextTower(nn.Module):
    """Tokens -> one vector a text, of the tower's own width."""

    def __init__(self, settings: Settings, vocabulary: Vocabulary, *, weights: bool = True) -> None:
        """Build the tower.

        Args:
            settings: `pretrained` wins over `architecture`.
            vocabulary: The tokenizer's.
            weights: False leaves a pretrained architecture at random values (a checkpoint overwrites them).
        """
        super().__init__()
        self.pooling = settings.pooling
        self.backbone: Any = (
            _pretrained(settings.pretrained, weights) if settings.pretrained else _from_scratch(settings, vocabulary)
        )
        self.width: int = self.backbone.config.hidden_size
        _check(settings, self.backbone.config, vocabulary.size)

    def forward(self, tokens: Tokens) -> Float[Tensor, "texts width"]:
        if tokens.ids.shape[0] == 0:  # transformers' mask code refuses an empty batch.
            return self._of_nothing(tokens)
        hidden = self.backbone(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
        return pool(hidden, tokens.mask, self.pooling)

    def _of_nothing(self, tokens: Tokens) -> Float[Tensor, "0 width"]:
        """No rows, yet every parameter takes part, so that all ranks' gradients exist and hooks fire alike."""
        one = Tokens(tokens.ids.new_zeros((1, 1)), tokens.mask.new_ones((1, 1)))
        # Not through the hooks of ZeRO stage 3, which must see the same modules on all ranks.
        return self.forward(one)[:0]


def pool(hidden: Float[Tensor, "texts length width"], mask: Tensor, how: str) -> Float[Tensor, "texts width"]:
    """One vector a text: its last real token (`eos`), its first (`cls`), or the mean over real tokens (`mean`)."""
    if how == "cls":
        return hidden[:, 0]
    if how == "eos":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)


def _from_scratch(settings: Settings, vocabulary: Vocabulary) -> nn.Module:
    shape = settings.architecture
    lengths = settings.lengths
    if shape.width % shape.heads:
        raise ConfigError(
            f"model.text.architecture: width={shape.width} does not divide into {shape.heads} heads; "
            f"the nearest that does is {max(1, round(shape.width / shape.heads)) * shape.heads}."
        )
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary.size,
            hidden_size=shape.width,
            intermediate_size=4 * shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            max_position_embeddings=max(lengths.whole, lengths.local, lengths.summary),
            pad_token_id=vocabulary.pad_id,
            bos_token_id=None,
            eos_token_id=vocabulary.pad_id,  # For its own pooling, which is not used here.
        )
    )


def _pretrained(name: str, weights: bool) -> nn.Module:
    loading: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32}
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type == "clip":
            return CLIPTextModel.from_pretrained(name, **loading) if weights else CLIPTextModel(config.text_config)
        return AutoModel.from_pretrained(name, **loading) if weights else AutoModel.from_config(config)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.text.pretrained={name}: no encoder with safetensors weights in that folder or under that hub name "
            f"({str(error).splitlines()[0]})."
        ) from error


def _check(settings: Settings, config: Any, vocabulary: int) -> None:
    """Refuses texts longer, or token ids larger, than the tower has embeddings for."""
    longest = max(settings.lengths.whole, settings.lengths.local, settings.lengths.summary)
    if longest > config.max_position_embeddings:
        raise ConfigError(
            f"model.text.lengths: {longest} tokens, but the encoder reads at most {config.max_position_embeddings}."
        )
    if vocabulary > config.vocab_size:
        raise ConfigError(
            f"model.text.tokenizer knows {vocabulary} tokens, but the encoder has embeddings for {config.vocab_size}; "
            "use the tokenizer of the same folder."
        )
