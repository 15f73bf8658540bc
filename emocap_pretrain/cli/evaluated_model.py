"""Opens the model that `emocap evaluate` names, and runs the tasks on it.

A checkpoint may come from a stranger. `with_settings` says which of its settings are used (docs/security.md).
"""

import logging
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emocap_shards.mask import MASK

from emocap_pretrain.cli.reach import need_answer
from emocap_pretrain.config.load import unresolved, with_section
from emocap_pretrain.config.location import INERT, RUN_PREFIX
from emocap_pretrain.config.schema import ClusterConfig, Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.ranks.runtime import EnvRuntime
from emocap_pretrain.run_folder.folder import RUN_FILE
from emocap_pretrain.run_folder.results import WEIGHTS_TITLES, OtherWeights, TaskResult, Weights, average_of

if TYPE_CHECKING:
    from torch import Tensor

    from emocap_pretrain.evaluation.domain import TrainingCaptions
    from emocap_pretrain.evaluation.on_benchmarks import BenchmarkCopy
    from emocap_pretrain.inference.embedder import Embedder
    from emocap_pretrain.inference.opened import Activation, OpenedModel
    from emocap_pretrain.interop.restore import Restored, StepChoice
    from emocap_pretrain.ranks.group import RankGroup

LARGEST_BATCH = 1024  # Limits the batch size that a stored config can request.

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """Holds which model is evaluated, and how.

    Attributes:
        model: The name of the model, as the user gave it.
        own: The user's own config; None takes the config in the checkpoint, which is not trusted.
        step: Step of the checkpoint, or "best"; None takes the newest one.
        weights: "raw" takes the weights of the step, and "ema" or "schedule_free" their average; None takes the average
            if the run keeps one.
        interpolate: If this share `a` is not None, the weights (1 - a) * start + a * trained are evaluated in place of
            the trained weights.
        shares: Shares of interpolations that are evaluated in addition to the trained weights.
        changes: The evaluation settings of the command line by their names.
        may_read: Whether the command may read the dataset that the config names.
        activation: The activation of the towers, for a file of another library that does not contain it.
        copies: Copies of benchmarks. If there are any, they are scored in place of the dataset of the settings.
        trained_on: The sets of faces and the packed datasets from which training captions came, as the user says.
            `names_and_datasets` says which entries are addresses of datasets.
        needs_matrix: Whether one of the tasks must give a confusion matrix, which is drawn.
        normalize: Whether the mean and standard deviation of colours are those of the model. Otherwise colours are
            values from 0 to 1.

    Raises:
        ConfigError: If both `shares` and `interpolate` are given, or `shares` without `normalize`.
    """

    model: str
    own: Config | None
    step: "StepChoice | None"
    weights: Weights | None
    interpolate: float | None
    shares: tuple[float, ...]
    changes: dict[str, Any]
    may_read: bool
    activation: "Activation | None" = None
    copies: "tuple[BenchmarkCopy, ...]" = ()
    trained_on: tuple[str, ...] = ()
    needs_matrix: bool = False
    normalize: bool = True

    def __post_init__(self) -> None:
        if self.shares and self.interpolate is not None:
            raise ConfigError("--curve evaluates interpolations with several shares, --interpolate with one: give one.")
        if self.shares and not self.normalize:
            raise ConfigError("--curve evaluates all weights with the model's own colours: leave --no-normalize out.")

    @property
    def cluster(self) -> ClusterConfig:
        """Returns the settings of the ranks: those of the user's own config, or else the default ones."""
        return self.own.cluster if self.own else ClusterConfig()

    @property
    def run_url(self) -> str:
        """Returns the folder or URL of the run that `model` names.

        For any other model this is `model`, with `~` replaced by the home folder in a path.
        """
        from emocap_pretrain.inference.opened import where_is
        from emocap_pretrain.interop.source import run_and_step

        return run_and_step(self.model)[0] if self.model.startswith(RUN_PREFIX) else where_is(self.model)

    @property
    def is_foreign(self) -> bool:
        """Returns whether the model is one of another library, and neither a run of this project nor its export."""
        from emocap_pretrain.inference.opened import is_of_another_library, where_is

        return is_of_another_library(where_is(self.model))


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """Holds a model that is ready for its evaluation.

    Attributes:
        model: The model.
        config: The config of the model's run, with the settings of this evaluation. For a model of another library,
            only its section `evaluation` means anything.
        start: The weights with which the run began, if interpolations are evaluated (`EvaluationRequest.shares`);
            otherwise empty.
        training: What is known about the training captions of the model.
    """

    model: "OpenedModel"
    config: Config
    start: "dict[str, Tensor]"
    training: "TrainingCaptions"

    @property
    def restored(self) -> "Restored | None":
        """Returns what was read from the checkpoint, with the settings of this evaluation."""
        restored = self.model.restored
        return replace(restored, config=self.config) if restored else None


@dataclass(frozen=True, slots=True)
class ComputedResults:
    """Holds what the ranks have computed together. It is small beside the model, so a rank can send it to the driver.

    Attributes:
        results: The results of the tasks.
        other_weights: The results of the interpolations; empty if none were asked for.
        failures: For each benchmark that could not be evaluated its name and the reason, in one line.
        without_task: For each benchmark that allows no task the reason, in one line with its name.
    """

    results: tuple[TaskResult, ...]
    other_weights: tuple[OtherWeights, ...]
    failures: tuple[str, ...]
    without_task: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Holds the results of a model, and the results of interpolations of its weights.

    Attributes:
        model: The name of the model, as the user gave it.
        config: The config with the settings of this evaluation.
        embedder: The model, which computes vectors.
        restored: What was read from the checkpoint or the export, for a model of this project; None for a model of
            another library and for `hog`.
        results: The results of the tasks.
        other_weights: The results of the interpolations; empty if none were asked for.
        has_copies: Whether copies of benchmarks were scored, and not the dataset of the settings.
        failures: For each benchmark that could not be evaluated its name and the reason, in one line.
        without_task: For each benchmark that allows no task the reason, in one line with its name.
        normalize: As in `EvaluationRequest`.
    """

    model: str
    config: Config
    embedder: "Embedder"
    restored: "Restored | None"
    results: tuple[TaskResult, ...]
    other_weights: tuple[OtherWeights, ...]
    has_copies: bool = False
    failures: tuple[str, ...] = ()
    without_task: tuple[str, ...] = ()
    normalize: bool = True

    @classmethod
    def of(cls, request: EvaluationRequest, prepared: PreparedModel, found: ComputedResults) -> "Evaluation":
        """Returns a prepared model with the results that were computed with it."""
        return cls(
            request.model,
            prepared.config,
            prepared.model.embedder,
            prepared.restored,
            found.results,
            found.other_weights,
            bool(request.copies),
            found.failures,
            found.without_task,
            request.normalize,
        )

    @property
    def weights(self) -> str:
        """Returns a text that says which weights were evaluated, such as "moving average of the weights".

        It is empty if there was no choice: the run keeps no average and nothing was interpolated, or the model is one
        of another library.
        """
        if self.restored is None:
            return ""
        share, average = self.restored.share, average_of(self.config.stored())
        named = [WEIGHTS_TITLES[self.restored.weights]] if average != "raw" else []
        return ", ".join(named if share is None else [*named, f"interpolated with share {share:g}"])

    def title(self, name: str) -> str:
        """Returns a title for readers: `name`, and for a checkpoint also its step and which weights were evaluated."""
        weights = f", {self.weights}" if self.weights else ""
        return f"Step {self.restored.step} of {name}{weights}" if self.restored else name


def evaluated(request: EvaluationRequest, device: str) -> Evaluation | None:
    """Opens the model, runs the tasks, and returns the model with its results on rank 0.

    If a launcher has started several ranks, this function is a collective. All other ranks get None, so that the
    results are printed only once.

    Raises:
        ConfigError: If `device` is "cuda" and there is no GPU, or the settings do not fit the model or the data.
        CheckpointError: If there is no such checkpoint, or if it is damaged.
        LostContact: If another rank has failed.
        ShardsError: If a store or a dataset cannot be read, on the rank that reads it.
        DataError: If no example can be read; or if an example of a packed dataset cannot be decoded. For a packed
            dataset, only the rank that finds this raises a `DataError`, and the others `LostContact`.
    """
    import torch

    from emocap_pretrain.ranks.join import joined

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no GPU on this host; leave the option out, or give cpu.")
    # An evaluation has nothing to save, so signals end it as usual.
    runtime = EnvRuntime.from_environment(device, listen=False)
    with joined(request.cluster, runtime) as world:
        everyone = world.patient("evaluation")
        # Only rank 0 reads the checkpoint. An error there, such as a wrong option, is raised on all ranks.
        prepared = everyone.run_on_main(partial(prepare, request))
        found = computed(prepared, request, everyone, world.device)
        return Evaluation.of(request, prepared, found) if world.is_main else None


def computed(
    prepared: PreparedModel, request: EvaluationRequest, everyone: "RankGroup", device: str
) -> ComputedResults:
    """Runs the tasks with a prepared model on all ranks, and returns the results on each of them.

    This is a collective.

    Args:
        prepared: The model, equal on all ranks. It is moved to `device`.
        request: What is evaluated.
        everyone: A group of all ranks from `RankGroup.patient`, whose timeout is longer than an evaluation.
        device: The device of this rank.

    Raises:
        DataError, LostContact, ShardsError: As `evaluated` does.
    """
    from emocap_pretrain.evaluation import on_benchmarks
    from emocap_pretrain.evaluation.domain import with_domains
    from emocap_pretrain.evaluation.other_weights import curve
    from emocap_pretrain.training.conclusion import evaluated as results_of

    config, embedder, restored = prepared.config, prepared.model.embedder.on(device), prepared.restored
    on_copies = on_benchmarks.BenchmarkResults(())
    if request.copies:
        on_copies = on_benchmarks.evaluate(request.copies, config.evaluation, embedder, everyone)
        results = with_domains(on_copies.results, prepared.training, config.evaluation, url=None)
    else:
        results = results_of(config, embedder, everyone, prepared.training)
    other_weights = curve(restored, prepared.start, request.shares, everyone) if restored else ()
    return ComputedResults(results, other_weights, on_copies.failures, on_copies.without_task)


def _training_captions(request: EvaluationRequest, restored: "Restored | None") -> "TrainingCaptions":
    """Returns what is known about the training captions of the model, from the run's config and from the user.

    The packed datasets that the user names are read for their words. The datasets that the config names are not read.

    Raises:
        ConfigError: If `--trained-on` has an empty name.
        ShardsError: If a dataset that the user names cannot be read.
    """
    from emocap_pretrain.benchmarks import catalogue
    from emocap_pretrain.config.explain import did_you_mean
    from emocap_pretrain.data.datasets import caption_words
    from emocap_pretrain.evaluation.domain import TrainingCaptions, names_and_datasets

    names, urls = names_and_datasets(request.trained_on)
    for name in names:
        if not name:
            raise ConfigError("--trained-on: give the name of a set of faces, or the folder or URL of a dataset.")
        hint = "" if name in catalogue.names() else did_you_mean(name, catalogue.names())
        if "did you mean" in hint:  # Other names are the user's own.
            log.warning("--trained-on %s: no benchmark has this name%s", name, hint)
    words = caption_words(urls) if urls else None
    of_run = TrainingCaptions.of_run(restored.config.stored()) if restored else TrainingCaptions()
    return of_run.also(names, urls, words)


def prepare(request: EvaluationRequest) -> PreparedModel:
    """Opens the model, and returns it with the settings of its evaluation. One process calls this function.

    The settings are compared with the data here, so that a wrong label or class is reported before the model reads the
    first image. Notes for the user are logged.

    Raises:
        CheckpointError: If there is no such checkpoint, or if it is damaged.
        ConfigError: If the model cannot be read, or an option or a setting does not fit the model or the data.
        ShardsError: If the dataset cannot be read, or a store cannot be reached.
    """
    from emocap_pretrain.evaluation import on_benchmarks, tasks
    from emocap_pretrain.inference.opened import open_model
    from emocap_pretrain.interop.restore import restore_start

    run_url, own = request.run_url, request.own
    if request.is_foreign and request.shares:
        raise ConfigError(f"--curve interpolates with the start of a run, and {request.model} is none: leave it out.")
    if not (request.is_foreign or ("://" not in run_url and Path(run_url).exists())):
        need_answer(run_url, RUN_FILE)
    model = open_model(
        request.model,
        step=request.step,
        config=own,
        weights=request.weights,
        interpolate=request.interpolate,
        activation=request.activation,
    )
    if not request.normalize:
        model.embedder.read_colours_from_0_to_1()
    config = model.restored.config if model.restored else own or _placeholder(request.model)
    start = restore_start(run_url, config=own).state_dict() if request.shares else {}
    # A stranger may have written the config in a checkpoint.
    stored_batch = config.evaluation.batch
    bounded = request.changes if own else {**request.changes, "batch": min(stored_batch, LARGEST_BATCH)}
    if request.copies:
        # Tasks and labels that a config names are for its own dataset, and a stranger may have named the cache.
        of_stranger = {} if request.may_read else {"cache": None}
        config = with_section(
            config, "evaluation", {"tasks": None, "by": (), "benchmarks": {}, **of_stranger, **bounded}
        )
        notes = on_benchmarks.prepare(request.copies, config.evaluation, has_texts=model.embedder.has_texts)
    else:
        config = with_settings(config, bounded, may_read=request.may_read)
        if request.needs_matrix:
            tasks.require_matrix(config.evaluation)
        tasks.require_texts(config.evaluation, has_texts=model.embedder.has_texts)
        has_local, crop = model.embedder.has_maps, model.embedder.crop
        head = model.embedder.model.labels
        notes = tasks.prepare(config.evaluation, has_local=has_local, crop=crop, head=head, seconds=tasks.PREPARE_S)
    for note in notes:
        log.warning("%s", note)
    return PreparedModel(model, config, start, _training_captions(request, model.restored))


def _placeholder(name: str) -> Config:
    """Returns a config for a model of another library. Only the section `evaluation` of this config is used."""
    short = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(name).name).lstrip("-_.") or "model"
    return Config.model_validate(
        {"name": short, "url": "not recorded", "steps": 0, "global_batch": 1, "data": {"url": "not recorded"}},
        context=INERT,
    )


def with_settings(config: Config, changes: dict[str, Any], *, may_read: bool) -> Config:
    """Returns the config with the evaluation settings from the command line (`changes`).

    If `changes` names a dataset, the settings `faces_from` and `filter` of `config` are dropped, because they describe
    the dataset of `config`.

    Args:
        config: The config.
        changes: The evaluation settings of the command line by their names.
        may_read: Whether the datasets and the cache that `config` names may be used. It is True if the user has allowed
            this, or has given the config. Otherwise `train_url`, `valid_url`, `cache` and `filter` are used only
            if `changes` has them.

    Raises:
        ConfigError: If a setting is wrong. If `changes` names no dataset, the dataset of `config` is needed. Then the
            error is also raised if `config` names none, if `may_read` is False, or if the URL of the dataset has a
            `${...}` or a masked secret.
    """
    settings = config.evaluation
    if not may_read:
        # These settings may name other stores. They are used only if the user has named them, or allowed all of them.
        changes = {"train_url": None, "valid_url": None, "cache": None, "filter": None, **changes}
    if not may_read or "url" in changes:
        changes = {"benchmarks": {}, **changes}  # Those of the config are scored beside its own dataset.
    if "url" in changes:
        changes = {"faces_from": None, "filter": None, **changes}  # Those of the config are for its own dataset.
    if "url" not in changes:
        if settings.url is None:
            raise ConfigError("the run has no evaluation.url: give a dataset with --data URL.")
        if not may_read:
            raise ConfigError(
                f"the checkpoint's config names the dataset {settings.url}, and its author may not be you: "
                "allow it with --stored-data, or name a dataset with --data URL."
            )
        # The config in a checkpoint has no secrets: what came from the environment is a text, and logins are masked.
        if unresolved(settings.url) or MASK in settings.url:
            raise ConfigError(
                f"the checkpoint's config takes its dataset from {settings.url}: name it with --data URL."
            )
    return with_section(config, "evaluation", changes)
