"""Defines the settings of the losses, of the mining of positives, and of the labels that a head predicts.

docs/method.md defines what these settings mean. `training/objective.py` builds the terms (the addends) of the loss from
them. `training/objective.py` also checks the rules that need torch or `emocap_kernels`, such as the rule that a teacher
may be set only if some term uses it.
"""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from emocap_pretrain.config.fields import (
    Count,
    Decay,
    Fraction,
    LabelName,
    PartWeight,
    Positive,
    Section,
    TextsOfYaml,
    is_part_weight,
)
from emocap_pretrain.config.location import FolderOrName

# The names of the objectives in emocap_kernels, which is not imported here because it needs torch. Tests compare both.
Kind = Literal["infonce", "mil_nce", "sigmoid", "soft"]


class MiningRuleConfig(Section):
    """Configures which pairs are mined, and whether they become positives or are only left out of the negatives.

    Besides an image and its own text, mining finds further pairs in a batch that count as positives, because they are
    similar enough.
    """

    threshold: float | None = Field(
        default=None, ge=-1, le=1, description="Least cosine similarity of a pair that is mined; null sets no limit."
    )
    top_k: Positive | None = Field(
        default=None, description="Number of most similar candidates that are mined for each sample; null: no limit."
    )
    treatment: Literal["attract", "ignore"] = Field(
        default="attract",
        description="attract makes mined pairs positives; ignore only keeps them from being negatives.",
    )

    @model_validator(mode="after")
    def _has_a_rule(self) -> Self:
        if self.threshold is None and self.top_k is None:
            raise ValueError("give threshold, top_k or both; null mines nothing.")
        return self


class LocalMiningConfig(MiningRuleConfig):
    """Configures the mining of pairs of an image and a sentence for the local loss.

    Such a pair is mined if the sentence is similar to one of the image's own sentences. Images are not compared.
    """


class MiningConfig(MiningRuleConfig):
    """Configures the mining of further positives for the global and summary parts; see docs/method.md."""

    guide: Literal["counterpart", "text", "image", "consensus", "joint"] = Field(
        default="counterpart", description="Which similarities decide what is mined; see docs/method.md."
    )
    features: Literal["own", "ema"] = Field(
        default="own",
        description="Vectors that the guide compares: own are those of the trained model (of images, those of "
        "objective.teacher if there is one); ema are those of the model with the moving average of its weights.",
    )


class TeacherConfig(Section):
    """Configures the teacher: a frozen image tower that encodes the images of each batch.

    The loss or the mining of positives uses the similarities between its vectors to find out which images are alike.
    """

    name: str = Field(description="Model name in timm.")
    pretrained: FolderOrName = Field(description="'hub' for timm's weights, or a file or folder.")
    options: dict[str, JsonValue] = Field(default={}, description="Further arguments of timm.create_model.")
    scale: float = Field(default=20.0, gt=0, description="Inverse temperature of its targets for kind=soft.")


class PatchMaskConfig(Section):
    """Configures which patches take part in the local loss."""

    contrast: int = Field(
        default=8,
        ge=1,
        le=255,
        description="A patch takes part if the values of one of its colour channels differ by at least this much, of "
        "255.",
    )


class LabelConfig(Section):
    """Configures the loss of one label of the samples, which a linear head on the image tower predicts.

    With `classes` the head has one output for each class, and without it one output for the number.
    """

    name: LabelName = Field(description="Name of the label in the dataset, such as emotion or valence.")
    classes: Annotated[TextsOfYaml, Field(min_length=2, max_length=10_000)] | None = Field(
        default=None, description="Names of the classes, in the order of the outputs; null for a label with numbers."
    )
    weight: Annotated[float, Field(gt=0)] = Field(default=1.0, description="Weight of the loss in the total loss.")
    loss: Literal["cross_entropy", "ccc", "mse"] | None = Field(
        default=None,
        description="Loss: cross_entropy of classes; ccc (1 - CCC over the global batch) or mse of numbers. Null is "
        "cross_entropy with classes, else ccc.",
    )
    balance: Literal["none", "inverse", "effective"] = Field(
        default="none",
        description="Weights of the classes: none; inverse to their numbers of training samples; or inverse to their "
        "effective numbers (Cui et al. 2019).",
    )
    beta: Decay = Field(default=0.999, description="Beta of the effective number (1 - beta^n) / (1 - beta).")
    smoothing: Fraction = Field(
        default=0.0, description="Share of the target that label smoothing spreads over all classes."
    )

    @property
    def chosen_loss(self) -> Literal["cross_entropy", "ccc", "mse"]:
        """Returns the setting `loss`; if it is null, cross_entropy for a label with classes, and ccc otherwise."""
        return self.loss or ("cross_entropy" if self.classes else "ccc")

    @property
    def outputs(self) -> int:
        """Returns the number of outputs of the head for this label."""
        return len(self.classes) if self.classes else 1

    @model_validator(mode="after")
    def _loss_fits(self) -> Self:
        if (self.chosen_loss == "cross_entropy") != bool(self.classes):
            kind = (
                "has classes: its loss is cross_entropy" if self.classes else "has no classes: its loss is ccc or mse"
            )
            raise ValueError(f"the label {self.name} {kind}.")
        if self.classes and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"the label {self.name} has a class twice in {', '.join(self.classes)}.")
        if not self.classes and (self.balance != "none" or self.smoothing):
            raise ValueError(f"the label {self.name} has no classes: leave balance and smoothing out.")
        return self


class ObjectiveConfig(Section):
    """Configures the losses, the weights of the caption parts (0 switches a part off), and the mining of positives."""

    global_: PartWeight = Field(
        default=0.5, alias="global", description="Weight of the loss of whole images and global captions."
    )
    summary: PartWeight = Field(default=0.5, description="Weight of the loss of whole images and summaries.")
    local: PartWeight = Field(default=1.0, description="Weight of the loss of patches and local sentences.")
    labels: tuple[LabelConfig, ...] = Field(
        default=(),
        max_length=64,
        description="Labels that a linear head on the image tower is trained to predict, beside the caption parts or "
        "in place of them.",
    )
    kind: Kind = Field(
        default="infonce",
        description="Loss of the global and summary parts; the local loss is always infonce. "
        "sigmoid learns a bias too and begins well at model.initial_scale=10.",
    )
    kind_by_part: dict[str, Kind] = Field(
        default={}, description="Loss of single parts in place of kind, such as {summary: mil_nce}."
    )
    teacher: TeacherConfig | None = Field(
        default=None,
        description="Frozen image tower from which kind=soft learns; mining that compares images uses it in place of "
        "the trained tower.",
    )
    sharpness: float = Field(
        default=10.0,
        ge=0,
        description="Inverse temperature with which the local loss pools patches for a sentence; 0 averages all "
        "patches.",
    )
    scope: Literal["batch", "image"] = Field(
        default="batch",
        description="What a sentence is compared with in the local loss: the images of the whole batch, or the patches "
        "of its own image alone.",
    )
    patch_mask: PatchMaskConfig | None = Field(
        default=None,
        description="Leaves patches of one colour, such as the borders of aligned faces, out of the local loss; "
        "null keeps all patches.",
    )
    mining: MiningConfig | None = Field(
        default=None, description="Mining of further positives for the global and summary parts; null mines none."
    )
    local_mining: LocalMiningConfig | None = Field(
        default=None, description="Mining of further positives for the local part; null mines none."
    )
    mining_warmup_steps: Count = Field(default=0, description="Steps at the beginning that mine nothing.")
    known_positives: bool = Field(default=True, description="Equal captions in a batch are always positives.")
    backend: Literal["auto", "reference", "chunked", "fused"] = Field(
        default="auto",
        description="Implementation of all losses; auto is fused where its kernels can run, else chunked.",
    )
    schedule: Literal["auto", "gather", "hierarchical", "ring"] = Field(
        default="auto",
        description="How ranks exchange the embeddings of texts; auto is hierarchical from two machines on, and ring "
        "needs least memory.",
    )
    vectors: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="Precision of the embeddings that the losses multiply and ranks exchange; auto is "
        "engine.precision, and fp32 with fp16.",
    )
    model_config = ConfigDict(serialize_by_alias=True)

    @property
    def weights(self) -> dict[str, float]:
        """Returns the weight of each caption part, by the name of the part.

        The name is the key in a config: "global" and not `global_`.
        """
        infos = type(self).model_fields.items()
        return {info.alias or name: getattr(self, name) for name, info in infos if is_part_weight(info)}

    @property
    def mines_by_average(self) -> bool:
        """Returns whether positives are mined by the vectors of the moving average of the model."""
        return self.mining is not None and self.mining.features == "ema"

    def kind_of(self, part: str) -> Kind:
        """Returns the kind of loss, such as "infonce", of a caption part that is aligned with whole images.

        `part` is the name of the part.
        """
        return self.kind_by_part.get(part, self.kind)

    @model_validator(mode="after")
    def _knows_the_parts(self) -> Self:
        unknown = sorted(self.kind_by_part.keys() - self.weights.keys())
        if unknown:
            raise ValueError(
                f"kind_by_part: {unknown[0]} is not a part of a caption; the parts are {', '.join(self.weights)}."
            )
        return self

    @model_validator(mode="after")
    def _labels_have_names_of_their_own(self) -> Self:
        names = [label.name for label in self.labels]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise ValueError(f"labels: {name} comes twice; name each label once.")
            if name in self.weights:
                raise ValueError(f"labels: {name} is the name of a caption part, which its metrics would replace.")
        return self

    @model_validator(mode="after")
    def _has_terms(self) -> Self:
        if not any(self.weights.values()) and not self.labels:
            names = list(self.weights)
            raise ValueError(
                f"the weights of {', '.join(names[:-1])} and {names[-1]} are all 0 and labels is empty, so there is "
                "nothing to train on."
            )
        if self.local_mining and self.scope == "image":
            raise ValueError("local_mining compares sentences of different images: set scope to batch or leave it out.")
        return self
