"""Builds text towers from encoders of transformers, and pools the vectors of a text's tokens into one vector.

There are three ways to build an encoder, and `_backbone` chooses one of them: from the settings alone
(`_from_scratch`), from a folder or hub with pretrained weights (`_pretrained`), or from the description in a checkpoint
(`_recorded`). A stranger may have written the checkpoint. So `_recorded` opens no file or hub that the description
names, and runs no code that is not in transformers (docs/security.md).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

import emocap_torchvision
from emocap_pretrain.config.location import located
from emocap_pretrain.config.model import TextTowerConfig
from emocap_pretrain.data.batch import Texts
from emocap_pretrain.data.tokenizer import Vocabulary
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.transformers_loading import TRUST, WRONG_NUMBERS, check_attention, loaded, no_encoder
from emocap_pretrain.model.weights import Header, listed

emocap_torchvision.install()
from transformers import (  # noqa: E402 - after emocap_torchvision
    AutoConfig,
    AutoModel,
    CLIPTextConfig,
    CLIPTextModel,
    SiglipTextConfig,
    SiglipTextModel,
)

# The pooler of an encoder turns the last hidden states into one vector. It is not used, because `pool` does that here.
_UNUSED = ("pooler.",)
# Finds the number of the layer in the name of a parameter, as all encoders of transformers name their layers.
_LAYER = re.compile(r"(?:^|\.)(?:layers?|albert_layers)\.(\d+)\.")
# Encoders whose config names no other model, file or hub. Only these are built from the config of a checkpoint.
KINDS = (
    "albert",
    "bert",
    "camembert",
    "clip_text_model",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "ernie",
    "eurobert",
    "modernbert",
    "mpnet",
    "nomic_bert",
    "roberta",
    "xlm-roberta",
)
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


class TransformersTextTower(nn.Module):
    """Implements `TextTower` with an encoder of transformers, and pools the vectors of a text's tokens into one."""

    def __init__(
        self,
        settings: TextTowerConfig,
        vocabulary: Vocabulary,
        *,
        weights: bool = True,
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        """Builds the tower.

        Args:
            settings: The encoder and the pooling. If `settings.pretrained` is set, `settings.architecture` is ignored.
            vocabulary: Size and padding id of the tokenizer.
            weights: Whether pretrained weights are loaded. False is for a tower that takes its weights from a
                checkpoint.
            architecture: The result of `recorded` that is stored in a checkpoint. If it is given for a pretrained
                encoder, `settings.pretrained` is not opened, and the weights are random.

        Raises:
            ConfigError: If there is no such encoder, if it needs code that is not in transformers, if the weights do
                not match it, or if it has too few embeddings for the longest text or the largest token id.
        """
        super().__init__()
        self.pooling, self.end_id = settings.pooling, settings.end_id
        self.pad_id = vocabulary.pad_id if settings.pad_id is None else settings.pad_id
        self._is_pretrained = settings.pretrained is not None
        self.backbone: Any
        self.notes: tuple[str, ...]
        self.backbone, self.notes = _backbone(settings, vocabulary, weights, architecture)
        self.width: int = self.backbone.config.hidden_size
        self.positions: int = self.backbone.config.max_position_embeddings
        _check(settings, self.backbone.config, vocabulary.size)
        self.notes += _note_on_tokenizer(settings, self.backbone.config, vocabulary.size)

    def recorded(self) -> dict[str, Any] | None:
        """Returns the config of a pretrained encoder as a JSON value; None for an encoder that was not pretrained.

        An evaluation of a checkpoint builds the encoder from this value, and does not need the folder or hub from which
        the run took the pretrained weights.
        """
        if not self._is_pretrained:
            return None
        # All values are stored, also those that equal the defaults, which another release of transformers may change.
        # The two keys that are left out name the folder of the user and code of a hub.
        stored: dict[str, Any] = json.loads(self.backbone.config.to_json_string(use_diff=False))
        return {key: value for key, value in stored.items() if key not in {"_name_or_path", "auto_map"}}

    def encode_text(self, texts: Texts) -> Float[Tensor, "texts width"]:
        if texts.ids.shape[0] == 0:  # The mask code of transformers fails for an empty batch.
            return self._empty(texts)
        if self.pooling == "last":
            return self.backbone(input_ids=self._padded(texts)).last_hidden_state[:, -1]
        hidden = self.backbone(input_ids=texts.ids, attention_mask=texts.mask.long()).last_hidden_state
        mask = texts.mask if self.end_id is None else _until(texts, self.end_id)
        return pool(hidden, mask, self.pooling)

    def _padded(self, texts: Texts) -> Int64[Tensor, "texts positions"]:
        """Returns the token ids, padded to the number of positions.

        SigLIP sees the padding and was trained with texts that are padded in this way. So the vector of a text depends
        on the padding, but never on the other texts.
        """
        ids = texts.ids.masked_fill(~texts.mask, self.pad_id)
        return functional.pad(ids, (0, self.positions - ids.shape[1]), value=self.pad_id)

    def _empty(self, texts: Texts) -> Float[Tensor, "0 width"]:
        """Returns an empty result that depends on every parameter.

        So a rank without texts also gets a gradient for every parameter, and runs the hooks of DeepSpeed. The function
        encodes one token and drops its vector.
        """
        one = Texts(texts.ids.new_zeros((1, 1)), texts.mask.new_ones((1, 1)))
        return self.encode_text(one)[:0]

    def parameter_depths(self) -> dict[str, int]:
        # Embeddings have depth 0, layer n has depth n + 1, and what follows the last layer has the largest depth.
        names = [name for name, _ in self.backbone.named_parameters()]
        layers = {name: int(found[1]) for name in names if (found := _LAYER.search(name))}
        last = max(layers.values(), default=-1) + 2
        return {
            f"backbone.{name}": layers[name] + 1 if name in layers else 0 if "embed" in name else last for name in names
        }

    def checkpoint_activations(self) -> None:
        self.backbone.activation_checkpointing_enable()


def pool(hidden: Float[Tensor, "texts length width"], mask: Tensor, how: str) -> Float[Tensor, "texts width"]:
    """Returns one vector for each text, computed from the vectors `hidden` of its tokens.

    `how` selects the vector of the last token ("eos"), that of the first token ("cls"), or the mean over all tokens
    ("mean"). `mask` is False at the padding, which is ignored. The padding must follow the tokens, as in the result of
    `Tokenizer.encode`, and every text must have at least one token.
    """
    if how == "cls":
        return hidden[:, 0]
    if how == "eos":
        # A text of n tokens ends at place n - 1. Its id is not searched for, so it may be that of any tokenizer.
        # `shape[0]` rather than `len`, which torch.export would take for a constant.
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), mask.sum(1) - 1]
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)


def _until(texts: Texts, end_id: int) -> Bool[Tensor, "texts length"]:
    """Returns the mask of each text up to its first end token; the whole mask of a text without one.

    The text itself may contain the name of the end token. CLIP takes the vector of the first one.
    """
    ends = (texts.ids == end_id) & texts.mask
    before = ends.cumsum(1) - ends.long()  # The number of end tokens before each place.
    return texts.mask & (before == 0)


def _backbone(
    settings: TextTowerConfig, vocabulary: Vocabulary, weights: bool, architecture: Mapping[str, Any] | None
) -> tuple[nn.Module, tuple[str, ...]]:
    """Builds the encoder, and returns it with remarks for the user on its weights.

    It is built from scratch, from the recorded config of a pretrained encoder, or with its pretrained weights.
    """
    if settings.pretrained is None:
        return _from_scratch(settings, vocabulary), ()
    if architecture is not None:
        return _recorded(architecture), ()
    return _pretrained(settings.pretrained, weights)


def _from_scratch(settings: TextTowerConfig, vocabulary: Vocabulary) -> nn.Module:
    shape = settings.architecture
    lengths = settings.lengths
    if shape.width % shape.heads:
        raise ConfigError(
            f"model.text.architecture: width={shape.width} does not divide into {shape.heads} heads; "
            f"the nearest that does is {max(1, round(shape.width / shape.heads)) * shape.heads}."
        )
    sizes: dict[str, Any] = {
        "vocab_size": shape.tokens or vocabulary.size,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width or 4 * shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        # The longest length of any part, also of one with weight 0, so that weights do not change the shapes.
        "max_position_embeddings": shape.positions or max(lengths.by_part.values()),
        "hidden_act": _ACTIVATIONS[shape.activation],
        "layer_norm_eps": shape.norm_eps,
        "pad_token_id": vocabulary.pad_id,
        "bos_token_id": None,
        "eos_token_id": vocabulary.pad_id,  # Only the encoder's own pooler reads this, and it is not used.
    }
    if shape.family == "clip":
        return CLIPTextModel(CLIPTextConfig(**sizes))
    encoder: Any = SiglipTextModel(SiglipTextConfig(**sizes))
    encoder.head = nn.Identity()  # Its projection of the pooled vector; `TowerPair.to_text` is in its place.
    return encoder


def check_text_weights(settings: TextTowerConfig) -> tuple[str, ...]:
    """Compares the weights in `settings.pretrained` with the tower, by names and shapes. It reads no values of weights.

    Weights on a hub are not downloaded here; they are compared when the run starts.

    Returns:
        Remarks for the user on the weights, one line each. A remark lists the modules in the file that the tower does
        not have, such as a head for pretraining.

    Raises:
        ConfigError: If a parameter of the tower has no weights or weights of another shape, or if a module of the tower
            lacks a parameter for which there are weights.
    """
    name = settings.pretrained
    if name is None:
        return ()
    source = located(name, "model.text.pretrained")
    if not Path(source).is_dir():
        return (f"model.text.pretrained={name}: the weights are compared with the tower when the run starts",)
    config, kind = _described(name, source)
    header = Header.of_folder(Path(source), f"model.text.pretrained={name}")
    return _with_weights(kind, name, None, config=config, state_dict=header.tensors(device="cpu"))[1]


def _pretrained(name: str, weights: bool) -> tuple[nn.Module, tuple[str, ...]]:
    source = located(name, "model.text.pretrained")
    config, kind = _described(name, source)
    if weights:
        return _with_weights(kind, name, source, config=config, use_safetensors=True)
    return kind(config), ()


def _described(name: str, source: str) -> tuple[Any, Any]:
    """Returns the config of a pretrained encoder, and the class of transformers that loads its weights.

    `name` is the value of the setting, for messages, and `source` the folder or the name on the hub.
    """
    try:
        config = AutoConfig.from_pretrained(source, **TRUST)
        check_attention(config, f"model.text.pretrained={name}")
        if config.model_type == "clip":
            return config.text_config, CLIPTextModel
        # The class is known only after an encoder is built. On the device "meta" this allocates no memory.
        with torch.device("meta"):
            return config, type(AutoModel.from_config(config, **TRUST))
    except (OSError, ValueError, StrictDataclassError) as error:
        raise no_encoder(f"model.text.pretrained={name}", error) from error


def _with_weights(kind: Any, name: str, *source: str | None, **loading: Any) -> tuple[nn.Module, tuple[str, ...]]:
    """Loads an encoder with `loaded`, and returns it with remarks for the user on weights that are left out."""
    model, others = loaded(kind, f"model.text.pretrained={name}", *source, unused=_UNUSED, **loading)
    return model, (
        f"model.text.pretrained: {listed(others)} in {name} are left out: they are not a part of the text tower",
    ) if others else ()


def _recorded(architecture: Mapping[str, Any]) -> nn.Module:
    """Returns the encoder that a checkpoint describes, with random weights.

    Raises:
        ConfigError: If the type of the encoder is not in `KINDS`, or the encoder cannot be built.
    """
    kind = architecture.get("model_type")
    if kind not in KINDS:
        raise ConfigError(
            f"the checkpoint's text encoder is of the kind {kind!r}; only these are built from a checkpoint: "
            f"{', '.join(KINDS)}. Give the run's own config file, which names the encoder's folder."
        )
    try:
        config: Any = AutoConfig.for_model(**architecture)
        check_attention(config, "the checkpoint's text encoder")
        is_clip = kind == "clip_text_model"
        return CLIPTextModel(config) if is_clip else AutoModel.from_config(config, **TRUST)
    except (*WRONG_NUMBERS, StrictDataclassError) as error:
        first = (str(error) or repr(error)).splitlines()[0]
        raise ConfigError(f"the checkpoint's text encoder ({kind}) cannot be built: {first}") from error


def _check(settings: TextTowerConfig, config: Any, vocabulary: int) -> None:
    """Checks that the encoder has embeddings for all positions of the longest text, and for the largest token id.

    Raises:
        ConfigError: If a length in `model.text.lengths` exceeds the number of tokens that the encoder can read, or if
            the tokenizer has more tokens than the encoder has token embeddings.
    """
    longest = max(settings.lengths.by_part.values())
    if longest > config.max_position_embeddings:
        more = "" if settings.pretrained else f"; shorten them, or set model.text.architecture.positions={longest}"
        raise ConfigError(
            f"model.text.lengths: {longest} tokens, but the encoder reads at most {config.max_position_embeddings}"
            f"{more}."
        )
    if vocabulary > config.vocab_size:
        raise ConfigError(
            f"model.text.tokenizer knows {vocabulary} tokens, but the encoder has embeddings for {config.vocab_size}; "
            "use the tokenizer of the same folder."
        )


def _note_on_tokenizer(settings: TextTowerConfig, config: Any, vocabulary: int) -> tuple[str, ...]:
    """Returns a remark if a tokenizer that the user has named leaves most of the token embeddings unused.

    Some models have a few more embeddings than tokens, so that their number is a multiple of 64. If more than half are
    unused, the tokenizer is probably that of another model. A tokenizer that is trained on the data always has its own
    numbers (`dry_run/preflight.py` has a remark on it).
    """
    if settings.tokenizer == "data" or 2 * vocabulary >= config.vocab_size:
        return ()
    note = (
        f"model.text.tokenizer={settings.tokenizer} knows {vocabulary} tokens, and the encoder has embeddings for "
        f"{config.vocab_size}: is it the tokenizer of these weights?"
    )
    return (note,)
