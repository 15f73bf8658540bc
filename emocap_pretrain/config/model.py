"""Defines the settings of the model: the two towers, their projections and the learned scales."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from emocap_pretrain.config.fields import (
    Count,
    Decay,
    Deviation,
    Fraction,
    Freeze,
    Length,
    ModuleName,
    Positive,
    Section,
)
from emocap_pretrain.config.location import FolderOrName, WeightsSource


class LoraConfig(Section):
    """Configures LoRA adapters, which are trained in place of the weights of a tower."""

    rank: Annotated[int, Field(ge=1, le=1024)] = Field(default=8, description="Rank r of the product of an adapter.")
    alpha: Positive = Field(
        default=16, description="The product is multiplied by alpha / rank before it is added to the layer's result."
    )
    dropout: Decay = Field(default=0.0, description="Dropout of the input of an adapter.")
    targets: Annotated[tuple[ModuleName, ...], Field(min_length=1, max_length=64)] | None = Field(
        default=None,
        description="Ends of the names of the linear layers that get an adapter, such as [attn.qkv]; default the "
        "layers of attention and MLP.",
    )


class TowerConfig(Section):
    """Configures which weights of a tower are trained. Both towers have these settings."""

    freeze: Freeze | None = Field(
        default=None,
        description="What is not trained: all is the whole tower, and a number N the embeddings and the first N blocks "
        "or layers; null trains everything.",
    )
    lora: LoraConfig | None = Field(
        default=None, description="Adapters that are trained while the tower's own weights are frozen."
    )

    @model_validator(mode="after")
    def _lora_freezes_the_rest(self) -> Self:
        if self.freeze is not None and self.lora is not None:
            raise ValueError("lora freezes the tower's own weights already: leave freeze out, or lora.")
        return self

    @property
    def is_partly_frozen(self) -> bool:
        """Returns whether a part of the tower is not trained."""
        return self.freeze is not None or self.lora is not None


class ImageTowerConfig(TowerConfig):
    """Configures the image tower, which is a timm model."""

    # The dotted key of this section, for messages. The teacher's tower has another one (`model/teacher.py`).
    key: ClassVar[str] = "model.image"

    name: str = Field(default="vit_base_patch16_224", description="Model name in timm.")
    pixels: Positive = Field(default=224, description="Side of the square input, in pixels.")
    options: dict[str, JsonValue] = Field(
        default={}, description="Further arguments of timm.create_model (depth, embed_dim, ...)."
    )
    pretrained: FolderOrName | None = Field(
        default=None, description="'hub' for timm's weights, or a file or folder; it gives settings that you leave out."
    )
    patch_dropout: Decay = Field(default=0.0, description="Share of the patches that are left out in training.")
    mean: tuple[Fraction, Fraction, Fraction] | None = Field(
        default=None, description="Mean of red, green and blue, in [0, 1], that the tower subtracts; default timm's."
    )
    std: tuple[Deviation, Deviation, Deviation] | None = Field(
        default=None, description="Standard deviations by which the tower divides; default timm's for the model."
    )


class TextArchitectureConfig(Section):
    """Configures the text transformer of a CLIP or SigLIP model."""

    family: Literal["clip", "siglip"] = Field(
        default="clip",
        description="clip: a token sees only the tokens before it. siglip: it sees all tokens, and a text is padded "
        "to the number of positions.",
    )
    width: Positive = Field(default=512, description="Size of the hidden states.")
    layers: Positive = Field(default=12, description="Number of transformer layers.")
    heads: Positive = Field(default=8, description="Number of attention heads of each layer.")
    mlp_width: Positive | None = Field(default=None, description="Hidden size of each MLP; default four times width.")
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] = Field(
        default="quick_gelu", description="Activation of the MLPs. Weights are right for one of them only."
    )
    positions: Positive | None = Field(
        default=None, description="Rows of the position embedding; default the longest length of a caption part."
    )
    tokens: Positive | None = Field(
        default=None, description="Rows of the token embedding; default as many as the tokenizer has tokens."
    )
    norm_eps: float = Field(default=1e-5, gt=0, description="Term that layer norms add to the variance.")


class PartLengthsConfig(Section):
    """Limits the number of tokens of each caption part, including the start and end tokens; longer texts are cut."""

    global_: Length = Field(default=48, alias="global", description="Most tokens of a global caption.")
    local: Length = Field(default=40, description="Most tokens of a local sentence.")
    summary: Length = Field(default=77, description="Most tokens of a summary.")
    model_config = ConfigDict(serialize_by_alias=True)

    @property
    def by_part(self) -> dict[str, int]:
        """Returns the largest number of tokens of each caption part, by the name of the part."""
        return self.model_dump(by_alias=True)


class TextTowerConfig(TowerConfig):
    """Configures the text tower: a new encoder (`architecture`) or one of Hugging Face transformers (`pretrained`)."""

    architecture: TextArchitectureConfig = Field(
        default=TextArchitectureConfig(), description="Sizes of an encoder from scratch; unused with pretrained."
    )
    pretrained: FolderOrName | None = Field(
        default=None, description="Local folder or hub name of a transformers encoder."
    )
    pooling: Literal["eos", "cls", "mean", "last"] = Field(
        default="eos",
        description="Token whose hidden state represents a text: the end, the first, the mean of all, or the last "
        "position with its padding (siglip).",
    )
    end_id: Count | None = Field(
        default=None, description="Token at which a text ends for pooling=eos, where it comes first; default its last."
    )
    pad_id: Count | None = Field(
        default=None, description="Token with which the family siglip pads texts; default the tokenizer's."
    )
    extend_positions: Literal["interpolate", "stretch"] = Field(
        default="interpolate",
        description="How the position embeddings of model.from become more: interpolate all, or keep the first 20 and "
        "stretch the others as Long-CLIP does.",
    )
    tokenizer: FolderOrName = Field(
        default="data",
        description="'data' trains a tokenizer on the captions, 'from' takes the one of model.from; else a folder or "
        "hub name.",
    )
    vocabulary: Positive = Field(default=8192, description="Vocabulary size of a tokenizer trained on the data.")
    lengths: PartLengthsConfig = Field(
        default_factory=lambda: PartLengthsConfig.model_validate({}),
        description="Longest token sequence of each caption part.",
    )

    @model_validator(mode="after")
    def _cls_needs_bidirectional_attention(self) -> Self:
        if self.pooling == "cls" and self.pretrained is None:
            raise ValueError("pooling=cls reads the first token, which sees no other in a CLIP tower: use eos or mean.")
        return self

    @model_validator(mode="after")
    def _last_position_is_that_of_a_padded_text(self) -> Self:
        is_padded = self.pretrained is None and self.architecture.family == "siglip"
        if (self.pooling == "last") != is_padded:
            raise ValueError("pooling=last and architecture.family=siglip belong together: set both or neither.")
        return self


ProjectionOrScale = Literal[
    "to_image", "to_patch", "to_text", "to_sentence", "logit_scale", "local_logit_scale", "logit_bias"
]


class ModelConfig(Section):
    """Configures the two towers, their projections and the learned scales."""

    from_: WeightsSource | None = Field(
        default=None,
        alias="from",
        description="Weights of a whole model to start from: folder, file or hub name of a CLIP, or run:URL[@step]. "
        "They also give each setting of `model` that you do not set.",
    )
    embedding: Positive = Field(default=512, description="Size of the embeddings of images and texts.")
    project_images: bool = Field(
        default=True, description="Whether a linear layer projects pooled image vectors; SigLIP has none."
    )
    text_bias: bool = Field(default=False, description="Whether the projection of texts has a bias, as in SigLIP.")
    image: ImageTowerConfig = ImageTowerConfig()
    text: TextTowerConfig = TextTowerConfig()
    initial_scale: float = Field(
        default=14.3, gt=0, le=100, description="First value of exp(logit_scale), for all losses."
    )
    initial_bias: float = Field(
        default=-10.0, description="First value of the bias that objective.kind=sigmoid adds to the scores."
    )
    checkpoint_activations: bool = Field(
        default=False, description="Recompute the activations of the towers in the backward pass, to save memory."
    )
    freeze: tuple[ProjectionOrScale, ...] = Field(
        default=(), description="Projections and scales that are not trained. The towers have settings of their own."
    )
    model_config = ConfigDict(serialize_by_alias=True)

    @model_validator(mode="after")
    def _a_tokenizer_from_weights_needs_weights(self) -> Self:
        if self.from_ is None and self.text.tokenizer == "from":
            raise ValueError("text.tokenizer=from takes the tokenizer of model.from, which is not set.")
        return self

    @property
    def is_partly_frozen(self) -> bool:
        """Returns whether a part of the model is not trained."""
        return bool(self.freeze) or self.image.is_partly_frozen or self.text.is_partly_frozen

    @property
    def has_adapters(self) -> bool:
        """Returns whether a tower has LoRA adapters."""
        return self.image.lora is not None or self.text.lora is not None

    def without_adapters(self) -> "ModelConfig":
        """Returns the settings of the same model after its adapters were merged into its weights."""
        towers = {"image": self.image, "text": self.text}
        return self.model_copy(update={name: each.model_copy(update={"lora": None}) for name, each in towers.items()})


def starts_from_weights(model: ModelConfig) -> bool:
    """Returns whether a new run begins with pretrained weights of the whole model, or in at least one of its towers."""
    return bool(model.from_ or model.image.pretrained or model.text.pretrained)
