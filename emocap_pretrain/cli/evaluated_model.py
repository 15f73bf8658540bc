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
from emocap_pretrain.run_folder.results import WEIGHTS_TITLES, OtherWeights, TaskResult, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from emocap_pretrain.evaluation.domain import TrainingCaptions
    from emocap_pretrain.evaluation.on_benchmarks import BenchmarkCopy
    from emocap_pretrain.inference.embedder import Embedder
    from emocap_pretrain.inference.opened import Activation, OpenedModel
    from emocap_pretrain.interop.restore import Restored

LARGEST_BATCH = 1024  # Limits the batch size that a stored config can request.

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """Holds what is evaluated.

    Attributes:
        model: The name of the model, as the user gave it.
        own: The config of the user; None takes that of the checkpoint, which is not trusted.
        step: Step of the checkpoint; None is the newest one.
        weights: The weights of the step, or their moving average; None is the average if the run has it.
        interpolate: The share of an interpolation that is evaluated in place of the trained weights.
        shares: The shares of further interpolations, which are evaluated as well.
        changes: The evaluation settings of the command line by their names.
        may_read: Whether the command may read the dataset that the config names.
        activation: The activation of the towers, for a file of another library that does not contain it.
        copies: Copies of benchmarks. If there are any, no other dataset is read.
        trained_on: Names of sets, and packed datasets, from which the captions of the model came.
    """

    model: str
    own: Config | None
    step: int | None
    weights: Weights | None
    interpolate: float | None
    shares: tuple[float, ...]
    changes: dict[str, Any]
    may_read: bool
    activation: "Activation | None" = None
    copies: "tuple[BenchmarkCopy, ...]" = ()
    trained_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.shares and self.interpolate is not None:
            raise ConfigError("--curve evaluates interpolations with several shares, --interpolate with one: give one.")

    @property
    def run_url(self) -> str:
        """Returns the URL of the run, if the model is one."""
        from emocap_pretrain.inference.opened import where_is
        from emocap_pretrain.interop.source import run_and_step

        return run_and_step(self.model)[0] if self.model.startswith(RUN_PREFIX) else where_is(self.model)

    @property
    def is_foreign(self) -> bool:
        """Returns whether the model is one of another library."""
        from emocap_pretrain.inference.opened import is_of_another_library, where_is

        return is_of_another_library(where_is(self.model))


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """Holds a model before its evaluation.

    Attributes:
        model: The model.
        config: The config of its run with the evaluation settings; for a model of another library, only these count.
        start: The weights with which the run began, if they are needed; otherwise empty.
    """

    model: "OpenedModel"
    config: Config
    start: "dict[str, Tensor]"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Holds the results of a model, and those of interpolations of its weights.

    Attributes:
        model: The name that the user gave.
        config: The config with the evaluation settings.
        embedder: The model.
        restored: The checkpoint, if the model is one of this project.
        results: The results.
        other_weights: The results of interpolations.
    """

    model: str
    config: Config
    embedder: "Embedder"
    restored: "Restored | None"
    results: tuple[TaskResult, ...]
    other_weights: tuple[OtherWeights, ...]
    has_copies: bool = False

    @property
    def weights(self) -> str:
        """Returns which weights were evaluated; empty if the model has only one kind."""
        if self.restored is None:
            return ""
        share, average = self.restored.share, self.config.ema
        named = [WEIGHTS_TITLES[self.restored.weights]] if average else []
        return ", ".join(named if share is None else [*named, f"interpolated with share {share:g}"])

    def title(self, name: str) -> str:
        """Returns the name with the step and the weights of the checkpoint, if there is one."""
        weights = f", {self.weights}" if self.weights else ""
        return f"Step {self.restored.step} of {name}{weights}" if self.restored else name


def evaluated(request: EvaluationRequest, device: str) -> Evaluation | None:
    """Restores the model, runs the tasks, and returns the model and the results.

    If a launcher has started several ranks, this function is a collective. Ranks other than 0 get None, so that the
    results are printed once.
    """
    import torch

    from emocap_pretrain.evaluation import on_benchmarks
    from emocap_pretrain.evaluation.domain import with_domains
    from emocap_pretrain.evaluation.other_weights import curve
    from emocap_pretrain.ranks.join import joined
    from emocap_pretrain.training.conclusion import evaluated as results_of

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no GPU on this host; leave the option out, or give cpu.")
    # An evaluation has nothing to save, so signals end it as usual.
    runtime = EnvRuntime.from_environment(device, listen=False)
    with joined(request.own.cluster if request.own else ClusterConfig(), runtime) as world:
        everyone = world.patient("evaluation")
        # Only rank 0 reads the checkpoint. An error there, such as a wrong option, is raised on all ranks.
        found = everyone.run_on_main(partial(_prepare, request))
        config, embedder, restored = found.config, found.model.embedder.on(world.device), found.model.restored
        training = everyone.run_on_main(partial(_training_captions, request, restored))
        if request.copies:
            results = on_benchmarks.evaluate(request.copies, config.evaluation, embedder, everyone)
            results = with_domains(results, training, config.evaluation, url=None)
        else:
            results = results_of(config, embedder, everyone, training)
        other_weights: tuple[OtherWeights, ...] = ()
        if restored:
            restored = replace(restored, config=config)
            other_weights = curve(restored, found.start, request.shares, everyone)
        if not world.is_main:
            return None
        return Evaluation(
            request.model, config, embedder, restored, results, other_weights, has_copies=bool(request.copies)
        )


def _training_captions(request: EvaluationRequest, restored: "Restored | None") -> "TrainingCaptions":
    """Returns what the run's config and the user say about the captions of the model.

    The packed datasets that the user names are read. Those that the config names are not.
    """
    from emocap_pretrain.benchmarks import catalogue
    from emocap_pretrain.config.explain import did_you_mean
    from emocap_pretrain.data.datasets import caption_words
    from emocap_pretrain.evaluation.domain import TrainingCaptions

    urls = tuple(each for each in request.trained_on if "/" in each)
    names = tuple(each for each in request.trained_on if "/" not in each)
    for name in names:
        if not name:
            raise ConfigError("--trained-on: give the name of a set of faces, or the folder or URL of a dataset.")
        hint = "" if name in catalogue.names() else did_you_mean(name, catalogue.names())
        if "did you mean" in hint:  # Other names are the user's own.
            log.warning("--trained-on %s: no benchmark has this name%s", name, hint)
    words = caption_words(urls) if urls else None
    of_run = TrainingCaptions.of_run(restored.config.stored()) if restored else TrainingCaptions()
    return of_run.also(names, urls, words)


def _prepare(request: EvaluationRequest) -> PreparedModel:
    """Returns the model with the settings of its evaluation, and the weights of its start if they are needed.

    A wrong label or class is reported here, before the model reads the first image.
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
    config = model.restored.config if model.restored else own or _placeholder(request.model)
    start = restore_start(run_url, config=own).state_dict() if request.shares else {}
    # A stranger may have written the config in a checkpoint.
    stored_batch = config.evaluation.batch
    bounded = request.changes if own else {**request.changes, "batch": min(stored_batch, LARGEST_BATCH)}
    if request.copies:
        # Tasks that a config names are for its own dataset, and a stranger may have named the cache.
        of_stranger = {} if request.may_read else {"cache": None}
        config = with_section(config, "evaluation", {"tasks": None, **of_stranger, **bounded})
        notes = on_benchmarks.prepare(request.copies, config.evaluation, has_texts=model.embedder.has_texts)
    else:
        config = with_settings(config, bounded, may_read=request.may_read)
        tasks.require_texts(config.evaluation, has_texts=model.embedder.has_texts)
        has_local = model.embedder.local is not None
        notes = tasks.prepare(config.evaluation, has_local=has_local, seconds=tasks.PREPARE_S)
    for note in notes:
        log.warning("%s", note)
    return PreparedModel(model, config, start)


def _placeholder(name: str) -> Config:
    """Returns a config for a model of another library, of which only the section `evaluation` is used."""
    short = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(name).name).lstrip("-_.") or "model"
    return Config.model_validate(
        {"name": short, "url": "not recorded", "steps": 0, "global_batch": 1, "data": {"url": "not recorded"}},
        context=INERT,
    )


def with_settings(config: Config, changes: dict[str, Any], *, may_read: bool) -> Config:
    """Returns the config with the evaluation settings from the command line (`changes`).

    `may_read` says whether the dataset that `config` names may be read. It is True if the user has allowed this, or has
    given the config.

    Raises:
        ConfigError: If a setting is wrong. If `changes` names no dataset, the dataset of `config` is needed. Then the
            error is also raised if `config` names none, if `may_read` is False, or if the URL of the dataset has a
            `${...}` or a masked secret.
    """
    settings = config.evaluation
    if not may_read:
        # These settings may name other stores. They are used only if the user has named them, or allowed all of them.
        changes = {"train_url": None, "valid_url": None, "cache": None, **changes}
    if "url" in changes:
        changes = {"faces_from": None, **changes}  # That of the config is for its own dataset.
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
