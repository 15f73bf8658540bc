"""Settings of the losses."""

from typing import Literal, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from emocap_pretrain.config.fields import Count, PartWeight, Positive, Section, is_part_weight
from emocap_pretrain.config.location import FolderOrName

# The names of the objectives in emocap_kernels, which is not imported here because it needs torch.
Kind = Literal["infonce", "mil_nce", "sigmoid", "soft"]


class MiningRuleConfig(Section):
    """Says which candidates are mined, and what becomes of them."""

    threshold: float | None = Field(default=None, ge=-1, le=1, description="Least cosine of a mined pair.")
    top_k: Positive | None = None
    treatment: Literal["attract", "ignore"] = "attract"

    @model_validator(mode="after")
    def _has_a_rule(self) -> Self:
        if self.threshold is None and self.top_k is None:
            raise ValueError("give threshold, top_k or both; null mines nothing.")
        return self


class LocalMiningConfig(MiningRuleConfig):
    """Mining by sentence-sentence similarity."""


class MiningConfig(MiningRuleConfig):
    """Says which further pairs are positives; see docs/method.md."""

    guide: Literal["counterpart", "text", "image", "consensus", "joint"] = "counterpart"


class TeacherConfig(Section):
    """A frozen image tower that says which images are alike; it sees the pixels that the trained tower sees."""

    name: str = Field(description="Model name in timm.")
    pretrained: FolderOrName = Field(description="'hub' for timm's weights, or a local .safetensors file.")
    options: dict[str, JsonValue] = Field(default={}, description="Further arguments of timm.create_model.")
    scale: float = Field(default=20.0, gt=0, description="Inverse temperature of its shares, which kind=soft learns.")


class PatchMaskConfig(Section):
    """Says which patches take part in the local loss."""

    contrast: int = Field(
        default=8,
        ge=1,
        le=255,
        description="Least difference between values of one colour in a patch that takes part, in levels of 8 bits.",
    )


class ObjectiveConfig(Section):
    """Weights of the parts of a caption and the mining of positives; a weight of 0 switches a part off."""

    global_: PartWeight = Field(default=0.5, alias="global")
    summary: PartWeight = 0.5
    local: PartWeight = 1.0
    kind: Kind = Field(
        default="infonce",
        description="What is made of the scores of images and texts; the local loss is always infonce. "
        "sigmoid learns a bias too and begins well at model.initial_scale=10.",
    )
    kind_by_part: dict[str, Kind] = Field(
        default={}, description="Instead of kind, for single parts, such as {summary: mil_nce}."
    )
    teacher: TeacherConfig | None = Field(
        default=None,
        description="Frozen image tower from which kind=soft learns; mining that compares images uses it, not the "
        "trained tower.",
    )
    sharpness: float = Field(default=10.0, ge=0)
    scope: Literal["batch", "image"] = "batch"
    patch_mask: PatchMaskConfig | None = Field(
        default=None,
        description="Leaves patches of one colour, such as the borders of aligned faces, out of the local loss; "
        "null keeps all patches.",
    )
    mining: MiningConfig | None = None
    local_mining: LocalMiningConfig | None = None
    mining_warmup_steps: Count = Field(default=0, description="Steps of plain InfoNCE before any mining.")
    known_positives: bool = Field(default=True, description="Equal captions in a batch are always positives.")
    backend: Literal["auto", "reference", "chunked", "fused"] = Field(
        default="auto", description="Of all losses; auto is fused where its kernels can run, else chunked."
    )
    schedule: Literal["auto", "gather", "hierarchical", "ring"] = Field(
        default="auto",
        description="How texts reach all ranks; auto is hierarchical from two machines on, ring needs least memory.",
    )
    vectors: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="What the losses multiply and ranks exchange; auto is engine.precision."
    )
    model_config = ConfigDict(serialize_by_alias=True)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every part of a caption, by the part's name."""
        infos = type(self).model_fields.items()
        return {info.alias or name: getattr(self, name) for name, info in infos if is_part_weight(info)}

    def kind_of(self, part: str) -> Kind:
        """The kind of objective of a part that is aligned with whole images, by the part's name."""
        return self.kind_by_part.get(part, self.kind)

    @model_validator(mode="after")
    def _knows_the_parts(self) -> Self:
        unknown = sorted(self.kind_by_part.keys() - self.weights.keys())
        if unknown:
            raise ValueError(
                f"kind_by_part: {unknown[0]} is no part of a caption; the parts are {', '.join(self.weights)}."
            )
        return self

    @model_validator(mode="after")
    def _has_terms(self) -> Self:
        if not any(self.weights.values()):
            names = list(self.weights)
            raise ValueError(
                f"the weights of {', '.join(names[:-1])} and {names[-1]} are all 0, so there is nothing to train on."
            )
        if self.local_mining and self.scope == "image":
            raise ValueError("local_mining compares sentences of different images: set scope to batch or leave it out.")
        return self
