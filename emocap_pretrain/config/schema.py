"""The run as a value: every setting, its default and its bounds. Imports neither torch nor any framework."""

import copy
from collections.abc import Collection, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from emocap_shards.mask import holds_secret, masked_url
from pydantic import ConfigDict, Field, JsonValue, PrivateAttr, model_validator

from emocap_pretrain.config.fields import Classes, Count, Decay, Fraction, Length, Positive, Section, Template, Weight
from emocap_pretrain.config.location import FolderOrName, Location
from emocap_pretrain.config.objective import ObjectiveConfig

Keys = tuple[str | int, ...]


class SourceConfig(Section):
    """One dataset of a mixture."""

    url: Location = Field(description="Folder or URL of a packed dataset")
    weight: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Its share beside the other weights; default its number of samples."
    )


class DataConfig(Section):
    """Which samples, in which order."""

    url: Location | None = Field(
        default=None, description="Folder or URL of a packed dataset (the one that holds manifest.json)."
    )
    mix: tuple[SourceConfig, ...] = Field(
        default=(), description="Several datasets instead of url, each with its share of the samples."
    )
    shuffle_window: Positive | None = Field(
        default=None, description="Samples that are shuffled together; default 8 global batches, 16,384 at least."
    )
    cache: Location = Field(
        default="~/.cache/emocap/shards",
        validate_default=True,
        description="Folder on the node's own disk for what comes from object storage.",
    )
    cache_gb: Weight = Field(default=32, description="Most that the cache holds, in GB; 0 is no cache.")
    drop_last: bool = Field(default=False, description="Drop the remainder of an epoch instead of a smaller last step.")
    workers: Count = Field(default=1, description="Loader processes of each rank; 0 loads in the training process.")
    prefetch: Positive = Field(default=4, description="Batches that each loader process holds ready.")
    error_budget: Count = Field(
        default=0, description="Damaged samples that the run leaves out before it stops, over all ranks."
    )
    crop: Fraction = Field(
        default=0.8, description="Smallest share of the image side that a random crop keeps; 1 is no crop."
    )
    flip: Fraction = Field(
        default=0.5,
        description="Probability of a mirror image. English captions that name a side follow it (left becomes right), "
        "or their image is not mirrored where the words are ambiguous; with sides in another language set 0.",
    )

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The datasets, one or more."""
        return self.mix or (SourceConfig(url=str(self.url)),)

    def window_samples(self, global_batch: int) -> int:
        """Returns how many samples are shuffled together; by default so many that few of a batch are from one shard."""
        return self.shuffle_window or max(8 * global_batch, 1 << 14)

    @model_validator(mode="after")
    def _one_of_both(self) -> "DataConfig":
        if (self.url is None) == (not self.mix):
            raise ValueError("give either url, the one dataset, or mix, a list of {url, weight}.")
        return self


class ImageTowerConfig(Section):
    """The image encoder, by its timm name."""

    key: ClassVar[str] = "model.image"  # Where messages say that the settings are.

    name: str = Field(default="vit_base_patch16_224", description="Model name in timm.")
    pixels: Positive = Field(default=224, description="Side of the square input.")
    options: dict[str, JsonValue] = Field(
        default={}, description="Further arguments of timm.create_model (depth, embed_dim, ...)."
    )
    pretrained: FolderOrName | None = Field(
        default=None, description="'hub' for timm's weights, or a local .safetensors file."
    )
    patch_dropout: Decay = Field(default=0.0, description="Share of the patches left out while training.")


class TextArchitectureConfig(Section):
    """A CLIP text transformer from scratch."""

    width: Positive = 512
    layers: Positive = 12
    heads: Positive = 8


class PartLengthsConfig(Section):
    """Longest token sequence of each caption part; longer text is cut."""

    global_: Length = Field(default=48, alias="global")
    local: Length = 40
    summary: Length = 77
    model_config = ConfigDict(serialize_by_alias=True)

    @property
    def by_part(self) -> dict[str, int]:
        """The length of every part of a caption, by the part's name."""
        return self.model_dump(by_alias=True)


class TextTowerConfig(Section):
    """The text encoder: from scratch (`architecture`) or a pretrained transformers encoder (`pretrained`)."""

    architecture: TextArchitectureConfig = TextArchitectureConfig()
    pretrained: FolderOrName | None = Field(
        default=None, description="Local folder or hub name of a transformers encoder."
    )
    pooling: Literal["eos", "cls", "mean"] = "eos"
    tokenizer: FolderOrName = Field(
        default="data", description="'data' trains one on the captions; else a folder or hub name."
    )
    vocabulary: Positive = Field(default=8192, description="Vocabulary size of a tokenizer trained on the data.")
    lengths: PartLengthsConfig = Field(default_factory=lambda: PartLengthsConfig.model_validate({}))

    @model_validator(mode="after")
    def _pools_what_saw_the_text(self) -> Self:
        if self.pooling == "cls" and self.pretrained is None:
            raise ValueError("pooling=cls reads the first token, which sees no other in a CLIP tower: use eos or mean.")
        return self


class ModelConfig(Section):
    """Two towers, their projections and the learned scales."""

    embedding: Positive = Field(default=512, description="Size D of the shared space.")
    image: ImageTowerConfig = ImageTowerConfig()
    text: TextTowerConfig = TextTowerConfig()
    initial_scale: float = Field(
        default=14.3, gt=0, le=100, description="First value of exp(logit_scale), both scales."
    )
    initial_bias: float = Field(
        default=-10.0, description="First value of the bias that objective.kind=sigmoid adds to the scores."
    )
    checkpoint_activations: bool = Field(default=False, description="Recompute tower activations in backward.")


class SgdConfig(Section):
    """These settings belong to `sgd` alone."""

    momentum: Decay = Field(default=0.9, description="Share of the last update that the next one keeps; 0 keeps none.")
    nesterov: bool = Field(default=False, description="Nesterov's form of the momentum.")

    @model_validator(mode="after")
    def _looks_ahead_with_momentum(self) -> "SgdConfig":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=true needs a momentum above 0.")
        return self


class AdafactorConfig(Section):
    """These settings belong to `adafactor` alone."""

    beta2_decay: Annotated[float, Field(le=0)] = Field(
        default=-0.8, description="Power of the step by which the memory of squared gradients grows."
    )
    clip_threshold: Annotated[float, Field(ge=1)] = Field(
        default=1.0, description="Largest root mean square of the update of one parameter, before the learning rate."
    )


class OptimizerConfig(Section):
    """The optimizer, its parameter groups, and a linear warm-up with a cosine decay."""

    name: Literal["adamw", "sgd", "adafactor"] = Field(
        default="adamw", description="adafactor works on whole parameters and needs engine.zero_stage=0."
    )
    lr: float = Field(default=5e-4, gt=0)
    lr_scales: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="Multiples of lr for parts of the model, such as {image.backbone: 0.1}; of a part within a part "
        "the inner one counts.",
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="Multiple of lr from each layer of a tower to the one before it; below 1, the layers next to the "
        "pixels and tokens learn most slowly.",
    )
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.98), description="Of adamw.")
    eps: float = Field(default=1e-6, gt=0, description="Of adamw.")
    sgd: SgdConfig = SgdConfig()
    adafactor: AdafactorConfig = AdafactorConfig()
    weight_decay: Weight = Field(
        default=0.2,
        description="On matrices only. adamw and adafactor shrink the weights by it; sgd adds it to the gradient.",
    )
    decay_embeddings: bool = Field(
        default=True, description="False leaves the embeddings of tokens and positions without weight decay too."
    )
    warmup_steps: Count = 500
    final_share: Fraction = Field(default=0.0, description="Learning rate of the last step as a share of `lr`.")
    clip_norm: Weight = Field(default=1.0, description="Largest norm of the whole gradient; 0 never clips.")

    @model_validator(mode="after")
    def _has_no_settings_of_another_optimizer(self) -> "OptimizerConfig":
        for key, owner in _OWNERS.items():
            if owner != self.name and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} belongs to name={owner}, and name is {self.name}: leave it out.")
        return self


# Settings that one optimizer alone has.
_OWNERS = {"betas": "adamw", "eps": "adamw", "sgd": "sgd", "adafactor": "adafactor"}


class EngineConfig(Section):
    """How DeepSpeed holds the model."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16 runs the towers under autocast.")


class ClusterConfig(Section):
    """How many processes, on what, and how often they may fail."""

    ranks: Positive | Literal["auto"] = Field(
        default="auto", description="Processes of the job; auto is every GPU, or without any one a node and 2 at least."
    )
    min_ranks: Positive | None = Field(
        default=None,
        description="Fewest to go on with where nodes are lost; default 1 with ranks=auto, else all of ranks.",
    )
    placement: Literal["pack", "spread"] = Field(
        default="pack", description="Fill node after node, or take turns between nodes."
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads_per_rank: Positive | None = Field(
        default=None, description="CPU threads of a rank; default its share of the cores."
    )
    timeout_s: Positive = Field(
        default=300, description="Longest wait in a collective before the rank that is missing is named and all end."
    )
    silence_s: Positive = Field(default=60, description="A rank whose heartbeat is not seen for so long is lost.")
    max_restarts: Count = Field(
        default=10, description="Failures in a row, without a new checkpoint between them, before the job ends."
    )
    max_preemptions: Count | None = Field(
        default=None, description="Announced losses of nodes before the job ends; null is any number."
    )
    patience_s: Count = Field(
        default=30, description="How long a lost node may take to come back before the job goes on with fewer ranks."
    )

    @property
    def group_timeout_s(self) -> int:
        """Of the process group: it gives up once the watchdog has had the time to name the rank that is missing."""
        return self.timeout_s + 60


class HealthConfig(Section):
    """What is done about a loss that is no number, or far above those before it."""

    nonfinite: Literal["stop", "skip", "rollback"] = Field(
        default="stop", description="skip leaves the update out; rollback also returns to the newest checkpoint."
    )
    spike: Annotated[float, Field(gt=1)] | None = Field(
        default=None, description="A loss so many robust deviations above the median is a spike; null looks for none."
    )
    on_spike: Literal["log", "skip", "rollback"] = "log"
    max_skips: Count = Field(default=20, description="Updates that the run may leave out before it stops.")


class CheckpointConfig(Section):
    """When state is saved and what is kept."""

    every_steps: Positive = 1000
    keep_last: Positive = 3
    keep_every: Positive | None = Field(default=None, description="Steps whose multiples are never deleted.")


class TrackingConfig(Section):
    """Where MLflow listens."""

    uri: Location = Field(default="sqlite:///runs/mlflow.db", validate_default=True, description="MLflow tracking URI.")
    artifacts: Location | None = Field(
        default="runs/artifacts",
        validate_default=True,
        description="Artifact root of a new experiment; null: the server's.",
    )
    experiment: str = "emocap"
    every_steps: Positive = 10


class EvaluationConfig(Section):
    """Names the dataset that the trained model is evaluated on, and the tasks that do it."""

    url: Location | None = Field(default=None, description="Packed dataset; null skips the evaluation.")
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None, description="Tasks by name (see `emocap evaluate --list`); null runs the default ones."
    )
    label: str = Field(default="emotion", description="Name of the label; samples whose label is empty are left out.")
    classes: Classes | None = Field(
        default=None,
        description="Label to its words in prompts, a text or a list; default each label found, by its own name.",
    )
    templates: tuple[Template, ...] = Field(
        default=("a face with an expression of {}.", "a photo of a face showing {}.", "this person feels {}."),
        min_length=1,
    )
    batch: Positive = 256


class Config(Section):
    """One run. `url` is its folder: checkpoints and the report lie under it, and a second start resumes from it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    url: Location = Field(description="Folder or URL of the run.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    steps: Positive
    global_batch: Positive = Field(description="Samples whose embeddings meet in one loss, over all ranks.")
    micro_batch: Positive | None = Field(
        default=None,
        description="Most samples of one encoder pass on a device; a rank that has more caches representations.",
    )
    data: DataConfig
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = Field(default_factory=lambda: ObjectiveConfig.model_validate({}))
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
    cluster: ClusterConfig = ClusterConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    health: HealthConfig = HealthConfig()
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    evaluation: EvaluationConfig = EvaluationConfig()

    # Keys -> the `${oc.env:NAME}` text that stood there; what is logged and stored shows the text.
    _interpolations: dict[Keys, str] = PrivateAttr(default_factory=dict[Keys, str])
    _secrets: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _every_part_has_a_length(self) -> Self:
        missing = self.objective.weights.keys() - self.model.text.lengths.by_part.keys()
        if missing:
            raise ValueError(f"model.text.lengths: give {', '.join(sorted(missing))} a length.")
        return self

    @model_validator(mode="after")
    def _a_masked_patch_has_a_place(self) -> Self:
        if self.objective.patch_mask and self.model.image.patch_dropout:
            raise ValueError(
                "objective.patch_mask looks at where a patch lies, and model.image.patch_dropout leaves patches out "
                "at random: set one of the two."
            )
        return self

    def stored(self) -> dict[str, Any]:
        """The settings as they may be logged: interpolated values appear as the text that stood in the file.

        Of a URL that was written with a user, a password or a query these are left out.
        """
        tree = _public(copy.deepcopy(self.model_dump(mode="json")))
        for keys, text in self._interpolations.items():
            _put(tree, keys, text)
        return tree

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values of the environment that went into this config; another process masks them too."""
        return self._secrets

    def with_interpolations(self, texts: dict[Keys, str], secrets: Sequence[str] = ()) -> "Config":
        """This config, remembering that the values at these keys came from `${oc.env:...}` texts, and which."""
        config = self.model_copy()
        config._interpolations, config._secrets = dict(texts), tuple(secrets)
        return config

    def replacing(self, name: str, section: Section, changed: Collection[str]) -> "Config":
        """This config with another section of this name, of which the `changed` settings come from no `${...}` text."""
        config = self.model_copy(update={name: section})
        gone = {(name, setting) for setting in changed}
        config._interpolations = {keys: text for keys, text in self._interpolations.items() if keys[:2] not in gone}
        return config


def _public(node: Any) -> Any:
    if isinstance(node, str):
        return masked_url(node) if "://" in node and holds_secret(node) else node
    if isinstance(node, dict):
        return {key: _public(value) for key, value in cast("dict[str, Any]", node).items()}
    return [_public(each) for each in cast("list[Any]", node)] if isinstance(node, list) else node


def _put(tree: Any, keys: Keys, value: str) -> None:
    for key in keys[:-1]:
        tree = tree[key]
    tree[keys[-1]] = value
