"""Settings of the losses."""

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from emocap_pretrain.config.fields import Count, Positive, Section, Weight


class Rule(Section):
    """Which candidates are mined, and what becomes of them."""

    threshold: float | None = Field(default=None, ge=-1, le=1, description="Least cosine of a mined pair.")
    top_k: Positive | None = None
    treatment: Literal["attract", "ignore"] = "attract"

    @model_validator(mode="after")
    def _has_a_rule(self) -> Self:
        if self.threshold is None and self.top_k is None:
            raise ValueError("give threshold, top_k or both; null mines nothing.")
        return self


class LocalMining(Rule):
    """Mining by sentence-sentence similarity."""


class Mining(Rule):
    """Which further pairs are positives; see docs/method.md."""

    guide: Literal["counterpart", "text", "image", "consensus", "joint"] = "counterpart"


class Objective(Section):
    """Weights of the three alignments and the mining of positives; a weight of 0 switches a term off."""

    whole: Weight = Field(default=0.5, alias="global")
    summary: Weight = 0.5
    local: Weight = 1.0
    sharpness: float = Field(default=10.0, ge=0)
    scope: Literal["batch", "image"] = "batch"
    mining: Mining | None = None
    local_mining: LocalMining | None = None
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

    @model_validator(mode="after")
    def _has_terms(self) -> "Objective":
        if not (self.whole or self.summary or self.local):
            raise ValueError("the weights of global, summary and local are all 0, so there is nothing to train on.")
        if self.local_mining and self.scope == "image":
            raise ValueError("local_mining compares sentences of different images: set scope to batch or leave it out.")
        return self
