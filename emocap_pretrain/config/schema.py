"""Defines `Config`, which holds every setting of a run, with its default and its bounds.

Each section is a class of its own, so that a part of the program takes only the section that it needs. The sections of
the data, the model, the objective and the optimizer are in `data.py`, `model.py`, `objective.py` and `optimizer.py`.
None of these modules imports torch or Ray. `load.py` makes a `Config` from a file, `explain.py` explains errors, and
`stored.py` converts a config to the form in which a run stores it. Editors show the descriptions of the settings (JSON
schema), and so do messages about missing keys.

A new setting must have a default with which a run behaves as it did before the setting existed, because a resumed run
compares its stored settings with the present ones (decision 20). A rule about several settings is checked by a
validator of the smallest section that contains all of them.
"""

import copy
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal, Self, cast

from emocap_shards.mask import holds_secret, masked_url
from pydantic import Field, PrivateAttr, model_validator

from emocap_pretrain.config.data import DataConfig
from emocap_pretrain.config.fields import (
    Classes,
    Count,
    Ensemble,
    Fraction,
    ImageCrop,
    Positive,
    Precision,
    Section,
    SetName,
    TagName,
    Template,
)
from emocap_pretrain.config.location import Location
from emocap_pretrain.config.model import ModelConfig, starts_from_weights
from emocap_pretrain.config.objective import ObjectiveConfig
from emocap_pretrain.config.optimizer import EmaConfig, OptimizerConfig

# The key of a value: the names of its sections and settings, and the numbers of list entries, from the outside inwards.
Keys = tuple[str | int, ...]


class EngineConfig(Section):
    """Configures how the towers compute (precision, compiler), and what ZeRO divides over the ranks."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=1,
        description="What is partitioned over the ranks: 0 nothing, 1 the optimizer's state, 2 the gradients too, "
        "3 the parameters too.",
    )
    precision: Precision = Field(
        default="fp32",
        description="bf16 and fp16 run the towers under autocast. fp16 is for GPUs without bf16, and scales the loss.",
    )
    compile: bool = Field(
        default=False, description="Whether torch.compile compiles the towers; not with engine.zero_stage=3."
    )
    offload_optimizer: bool = Field(
        default=False,
        description="Whether ZeRO keeps the optimizer's state and its copy of the weights in host memory, and updates "
        "the weights there; needs engine.zero_stage 1 to 3.",
    )

    @model_validator(mode="after")
    def _the_stage_fits(self) -> "EngineConfig":
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile=true cannot trace the hooks with which zero_stage=3 gathers weights: set zero_stage to 0, 1 "
                "or 2, or compile=false."
            )
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer=true is a part of ZeRO: set zero_stage to 1, 2 or 3.")
        return self


class ClusterConfig(Section):
    """Configures how many processes run on which devices, and how often they may fail."""

    ranks: Positive | Literal["auto"] = Field(
        default="auto",
        description="Number of processes; auto is one for each GPU, or without GPUs one for each node, and at least 2.",
    )
    min_ranks: Positive | None = Field(
        default=None,
        description="Least number of ranks with which the job continues after nodes are lost; default 1 with "
        "ranks=auto, else all of ranks.",
    )
    placement: Literal["pack", "spread"] = Field(
        default="pack", description="pack fills one node after the other; spread takes turns between nodes."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Device of the ranks; auto is cuda where there are GPUs."
    )
    threads_per_rank: Positive | None = Field(
        default=None, description="CPU threads of a rank; default its share of the cores."
    )
    timeout_s: Positive = Field(
        default=300,
        description="Longest wait in a collective, in seconds; then the missing rank is reported and the attempt ends.",
    )
    silence_s: Positive = Field(
        default=60, description="Seconds without a heartbeat after which a rank counts as lost."
    )
    max_restarts: Count = Field(
        default=10, description="Failures in a row, without a new checkpoint between them, before the job ends."
    )
    max_preemptions: Count | None = Field(
        default=None, description="Announced losses of nodes before the job ends; null is any number."
    )
    patience_s: Count = Field(
        default=30,
        description="Seconds to wait for a lost node to come back before the job continues with fewer ranks.",
    )

    @property
    def group_timeout_s(self) -> int:
        """Returns the timeout of the process group, in seconds.

        It is longer than `timeout_s`, so that the watchdog reports the missing rank before torch raises an error.
        """
        return self.timeout_s + 60


class HealthConfig(Section):
    """Configures the reaction to a loss that is not finite or far above the previous losses."""

    nonfinite: Literal["stop", "skip", "rollback"] = Field(
        default="stop",
        description="Action at a loss or gradient that is not finite: stop ends the run, skip leaves the update out, "
        "rollback also returns to the newest checkpoint.",
    )
    spike: Annotated[float, Field(gt=1)] | None = Field(
        default=None,
        description="A loss counts as a spike if it is this many robust standard deviations above the median of the "
        "last losses; null: no loss does.",
    )
    on_spike: Literal["log", "skip", "rollback"] = Field(
        default="log",
        description="Action at a spike: log warns, skip leaves the update out, rollback also returns to the newest "
        "checkpoint.",
    )
    max_skips: Count = Field(default=20, description="Updates that the run leaves out before it stops.")


class CheckpointConfig(Section):
    """Configures when checkpoints are saved, and which of them are kept."""

    every_steps: Positive = Field(default=1000, description="Steps between two checkpoints.")
    keep_last: Positive = Field(default=3, description="Number of newest intact checkpoints that are kept.")
    keep_every: Positive | None = Field(
        default=None, description="Checkpoints at multiples of this step are never deleted."
    )
    keep_best: Annotated[str, Field(pattern=r"^[a-z0-9_]+/[a-z0-9_]+(/[a-z0-9_]+)*$")] | None = Field(
        default=None,
        description="A score of an evaluation task as TASK/SCORE; the evaluated checkpoint with its best value is "
        "never deleted. Needs evaluation.every_checkpoints.",
    )


class TrackingConfig(Section):
    """Configures where MLflow is, which other tools record the run, and how often metrics are logged."""

    uri: Location = Field(default="sqlite:///runs/mlflow.db", validate_default=True, description="MLflow tracking URI.")
    artifacts: Location | None = Field(
        default="runs/artifacts",
        validate_default=True,
        description="Artifact root of a new experiment; null takes the server's.",
    )
    experiment: str = Field(default="emocap", description="Name of the MLflow experiment.")
    tags: dict[TagName, Annotated[str, Field(max_length=500)]] = Field(
        default={}, description="Tags of the run in MLflow, by name; `emocap sweep` marks its runs with one."
    )
    tensorboard: Location | None = Field(
        default=None, description="Folder in which files of TensorBoard are written too; null writes none."
    )
    wandb: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")] | None = Field(
        default=None, description="Project of Weights & Biases in which the run is recorded too; null records none."
    )
    every_steps: Positive = Field(default=10, description="Steps between two logged rows of metrics.")


class EvaluationConfig(Section):
    """Configures the evaluation of the trained model: the dataset, the tasks and their prompts."""

    url: Location | None = Field(default=None, description="Packed dataset; null skips the evaluation.")
    filter: Location | None = Field(
        default=None,
        description="Filter file of the dataset at url: the samples and sentences that it names are not scored.",
    )
    train_url: Location | None = Field(
        default=None, description="Packed dataset on which probes are trained; only tasks with a probe need it."
    )
    valid_url: Location | None = Field(
        default=None, description="Packed dataset on which choices are made, such as the regularization of a probe."
    )
    benchmarks: dict[str, Location] = Field(
        default={},
        description="Copies of benchmarks that are scored beside url, such as {raf_db: /data/RAF} (emocap benchmarks "
        "list). All ranks read them, with those of the tasks that they allow.",
    )
    cache: Location | None = Field(
        default=None, description="Folder or URL that keeps computed vectors between evaluations; null computes all."
    )
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None, description="Tasks by name (see `emocap evaluate --list`); null runs the default ones."
    )
    label: str = Field(default="emotion", description="Name of the label; samples whose label is empty are left out.")
    classes: Classes | None = Field(
        default=None,
        description="Words of each class in prompts, a text or a list, by its label; default each label of the "
        "dataset, by its own name.",
    )
    faces_from: tuple[SetName, ...] | None = Field(
        default=None,
        description="Sets from which the faces of url are, by the names of data.captions_from; null if unknown.",
    )
    numbers: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        default=("valence", "arousal"), description="Names of the labels with numbers that a probe predicts."
    )
    group: str | None = Field(
        default=None,
        description="Name of the label with the person or clip of a sample; confidence intervals draw whole ones.",
    )
    by: tuple[str, ...] = Field(
        default=(), description="Names of labels, such as age; `emocap evaluate` scores their values separately."
    )
    prompts: Annotated[str, Field(max_length=80)] | None = Field(
        default=None, description="A set of prompts by its name (see `emocap evaluate --list`), in place of templates."
    )
    templates: tuple[Template, ...] = Field(
        default=("a face with an expression of {}.", "a photo of a face showing {}.", "this person feels {}."),
        min_length=1,
        description="Prompts, in which {} is replaced by the words of a class.",
    )
    ensemble: Ensemble = Field(
        default="logits",
        description="How the prompts of a class are combined: logits averages the cosines of an image with them, and "
        "embeddings averages their unit vectors and scales the mean to unit length (CLIP, open_clip).",
    )
    compound: Literal["words", "parts"] = Field(
        default="words",
        description="Prompts of a compound class, such as happily surprised: those with its own words, or those of the "
        "simple classes that it consists of.",
    )
    parts: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(
        default={},
        description="Simple classes of which each compound class consists; the card of a benchmark replaces them.",
    )
    every_prompt_set: bool = Field(
        default=False,
        description="Also classify with each set of prompts that this package contains, from the same image vectors.",
    )
    crop: ImageCrop | None = Field(
        default=None,
        description="Part of an image that is resized to the input of the model: center is its central square, and "
        "whole changes its proportions; null takes what the model was published with (a run: center).",
    )
    batch: Positive = Field(default=256, description="Samples of one pass of the encoders.")
    loss_batch: Annotated[int, Field(ge=2)] = Field(
        default=256,
        description="Samples whose images and captions are compared with each other when the loss on this dataset is "
        "measured; the value of the loss depends on it.",
    )
    before_training: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Whether a new run also evaluates its model before the first step, so that the report shows what "
        "training has changed; auto does so if the run starts from pretrained weights.",
    )
    every_checkpoints: Positive | None = Field(
        default=None,
        description="During training, every n-th checkpoint is evaluated too: those at multiples of this number times "
        "checkpoint.every_steps. Training waits meanwhile; null evaluates the last one only.",
    )
    stop_after: Positive | None = Field(
        default=None,
        description="The run ends early once the score of checkpoint.keep_best has not improved at this number of "
        "evaluated checkpoints in a row; null trains all steps.",
    )
    min_improvement: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="An improvement by at most this number does not count for stop_after."
    )
    interpolate: tuple[Fraction, ...] = Field(
        default=(),
        description="Shares a of the trained weights, such as [0, 0.25, 0.5, 0.75, 1]. For each of them the run also "
        "evaluates the weights (1 - a) * start + a * trained, and the report shows the curve.",
    )

    @model_validator(mode="after")
    def _benchmarks_are_beside_a_dataset(self) -> "EvaluationConfig":
        if self.benchmarks and self.url is None:
            raise ValueError("benchmarks are scored beside a packed dataset: give url too, or use emocap evaluate.")
        return self

    @model_validator(mode="after")
    def _a_filter_has_its_dataset(self) -> "EvaluationConfig":
        if self.filter is not None and self.url is None:
            raise ValueError("filter names samples of the packed dataset at url: give url too, or leave filter out.")
        return self


class Config(Section):
    """Holds all settings of one run.

    `url` is the folder of the run, which contains its checkpoints and its report. Another attempt with the same `url`
    resumes the run (decision 6). Settings that decide what is learned must then be equal; `config/stored.py` lists the
    settings that may differ.

    A config is immutable. Only code that opens, runs or stores a whole run takes it; other parts take one section or
    plain values (docs/architecture.md). It contains secrets where the file had `${oc.env:...}`, so it must be stored
    and logged only as `stored` returns it.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Name of the run in MLflow and messages.")
    url: Location = Field(description="Folder or URL of the run.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        default=0, description="Seed of the weights, of the order of samples and of augmentation."
    )
    steps: Count = Field(description="Optimizer steps of the run; with 0 the model is evaluated and not trained.")
    global_batch: Positive = Field(description="Samples of one step over all ranks, whose embeddings enter one loss.")
    micro_batch: Positive | None = Field(
        default=None,
        description="Most samples of one encoder pass on a device. A rank with more samples caches their "
        "representations and runs the towers twice.",
    )
    data: DataConfig
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = Field(default_factory=lambda: ObjectiveConfig.model_validate({}))
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig | None = Field(
        default=None, description="Moving average of the weights; {} takes its defaults, and null keeps no average."
    )
    engine: EngineConfig = EngineConfig()
    cluster: ClusterConfig = ClusterConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    health: HealthConfig = HealthConfig()
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    evaluation: EvaluationConfig = EvaluationConfig()

    # The `${oc.env:NAME}` text that each key had in the file. Logs and stored settings show this text, not the value.
    # Pydantic leaves private attributes out of `model_dump`, and `model_copy` keeps them.
    _interpolations: dict[Keys, str] = PrivateAttr(default_factory=dict[Keys, str])
    _secrets: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _every_part_has_a_length(self) -> Self:
        missing = self.objective.weights.keys() - self.model.text.lengths.by_part.keys()
        if missing:
            raise ValueError(f"model.text.lengths: give {', '.join(sorted(missing))} a length.")
        return self

    @model_validator(mode="after")
    def _the_decay_has_room(self) -> Self:
        warmup, decay = self.optimizer.warmup_steps, self.optimizer.decay_steps
        if self.steps and decay is not None and warmup + decay > self.steps:
            raise ValueError(
                f"optimizer.warmup_steps={warmup} and optimizer.decay_steps={decay} are more than steps={self.steps}: "
                "set fewer of them, or more steps."
            )
        return self

    @model_validator(mode="after")
    def _a_stream_of_tars_suffices(self) -> Self:
        if self.data.webdataset is None:
            return self
        if names := [label.name for label in self.objective.labels if label.balance != "none"]:
            raise ValueError(
                f"objective.labels: the balance of {names[0]} needs the number of samples of each class, which "
                "data.webdataset does not have: set balance to none, or pack the tars (emocap pack)."
            )
        if "rollback" in (self.health.nonfinite, self.health.on_spike):
            raise ValueError(
                "health: rollback leaves out one batch when its step is made again, and data.webdataset does not give "
                "the same batch again: set skip or stop (on_spike: log or skip)."
            )
        return self

    @model_validator(mode="after")
    def _classes_are_balanced_once(self) -> Self:
        names = [label.name for label in self.objective.labels if label.balance != "none"]
        if self.data.balance is not None and names:
            raise ValueError(
                f"data.balance draws rare classes more often, and objective.labels gives those of {names[0]} a larger "
                "weight in the loss, so they would count twice: set one of the two."
            )
        return self

    @model_validator(mode="after")
    def _patch_mask_needs_all_patches(self) -> Self:
        if self.objective.patch_mask and self.model.image.patch_dropout:
            raise ValueError(
                "objective.patch_mask needs the position of each patch, and model.image.patch_dropout leaves patches "
                "out at random: set one of the two."
            )
        return self

    @model_validator(mode="after")
    def _what_is_recomputed_has_one_owner(self) -> Self:
        if self.engine.compile and self.model.checkpoint_activations:
            raise ValueError(
                "engine.compile=true decides itself which activations it recomputes: set "
                "model.checkpoint_activations=false."
            )
        return self

    @model_validator(mode="after")
    def _there_is_one_average(self) -> Self:
        if self.ema is not None and self.optimizer.name == "schedule_free":
            raise ValueError(
                "ema: optimizer.name=schedule_free averages the weights itself, and this average is evaluated and "
                "exported: leave ema out."
            )
        return self

    @model_validator(mode="after")
    def _the_average_can_guide(self) -> Self:
        if self.objective.mines_by_average:
            if self.ema is None:
                raise ValueError("objective.mining.features=ema needs the average of the weights: add `ema: {}`.")
            if self.engine.zero_stage == 3:
                raise ValueError(
                    "objective.mining.features=ema needs the whole average on every rank, and engine.zero_stage=3 "
                    "divides the weights: set engine.zero_stage to 0, 1 or 2."
                )
        return self

    @model_validator(mode="after")
    def _the_best_is_found_by_evaluations(self) -> Self:
        if self.checkpoint.keep_best is not None and (
            self.evaluation.url is None or self.evaluation.every_checkpoints is None
        ):
            raise ValueError(
                f"checkpoint.keep_best={self.checkpoint.keep_best} needs checkpoints that are evaluated during "
                "training: set evaluation.url and evaluation.every_checkpoints, or leave it out."
            )
        if self.evaluation.stop_after is not None and self.checkpoint.keep_best is None:
            raise ValueError(
                "evaluation.stop_after needs a score that has to improve: set checkpoint.keep_best to TASK/SCORE."
            )
        return self

    def stored(self) -> dict[str, Any]:
        """Returns the settings without secrets, as they may be logged and stored.

        An interpolated value is replaced by its `${oc.env:...}` text in the file. The user, password and query of a URL
        are masked.
        """
        # The copy makes the tree independent: `_put` writes into it.
        tree = _public(copy.deepcopy(self.model_dump(mode="json")))
        for keys, text in self._interpolations.items():
            _put(tree, keys, text)
        return tree

    @property
    def evaluates_before_training(self) -> bool:
        """Returns whether the model is evaluated at step 0. A run without steps is evaluated only there.

        A run that interpolates between its start and its end keeps the start as the checkpoint of step 0, so it
        evaluates the start too.
        """
        if self.evaluation.url is None:
            return False
        if self.evaluation.interpolate:
            return True
        wanted = self.evaluation.before_training
        return self.steps == 0 or wanted == "always" or (wanted == "auto" and starts_from_weights(self.model))

    def evaluates_checkpoint(self, step: int) -> bool:
        """Returns whether the checkpoint of this step is evaluated during training (`evaluation.every_checkpoints`).

        The result is False without `evaluation.url`. It is also False for step 0 and for the last step: other settings
        decide about an evaluation there.
        """
        every = self.evaluation.every_checkpoints
        if self.evaluation.url is None or every is None:
            return False
        return 0 < step < self.steps and step % (every * self.checkpoint.every_steps) == 0

    @property
    def secrets(self) -> tuple[str, ...]:
        """Returns the values of environment variables that messages must not show.

        A process that receives this config from another process must mask them in its own messages too.
        """
        return self._secrets

    def with_interpolations(self, texts: dict[Keys, str], secrets: Sequence[str] = ()) -> "Config":
        """Returns a copy of this config that also holds `texts`. The values of the settings do not change.

        `texts` maps the key of each value that came from a `${oc.env:...}` text to that text. `stored` returns the text
        in place of the value. `secrets` are the values of environment variables that messages must not show.
        """
        config = self.model_copy()
        config._interpolations, config._secrets = dict(texts), tuple(secrets)
        return config

    def replacing(self, name: str, section: Section, changed: Collection[str]) -> "Config":
        """Returns a copy of this config with `section` in place of its section `name`.

        The `changed` settings lose the `${oc.env:...}` texts that they had in the file, so `stored` shows their values.
        """
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
