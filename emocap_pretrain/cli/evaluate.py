"""Defines `emocap evaluate`, which runs evaluation tasks on a checkpoint, or on a model of another library.

The checkpoint may come from a stranger. So the dataset that the checkpoint's config names is not read unless the user
gives `--stored-data`, and the tracking server in this config is never contacted. With `--config`, the user's own config
is used in place of the checkpoint's config. Settings on the command line take precedence over either config
(docs/security.md).
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from emocap_shards.mask import MASK, masked_url

from emocap_pretrain.cli import tables
from emocap_pretrain.cli.compare import By, Html, Least, labels_of, show_groups
from emocap_pretrain.cli.files import check_writable, write_text
from emocap_pretrain.cli.options import (
    ChosenWeights,
    Debug,
    Device,
    OwnConfig,
    Step,
    lines_of,
    parsed_classes,
)
from emocap_pretrain.cli.reach import need_answer
from emocap_pretrain.config.fields import Ensemble, ImageCrop
from emocap_pretrain.config.load import unresolved, with_section
from emocap_pretrain.config.location import INERT, RUN_PREFIX
from emocap_pretrain.config.schema import ClusterConfig, Config, EvaluationConfig, TrackingConfig
from emocap_pretrain.errors import ConfigError, TrackingError
from emocap_pretrain.interop.settings import load_config
from emocap_pretrain.logs import show_logs
from emocap_pretrain.ranks.runtime import EnvRuntime, launched
from emocap_pretrain.run import leave
from emocap_pretrain.run_folder.folder import RUN_FILE
from emocap_pretrain.run_folder.results import (
    WEIGHTS_TITLES,
    OtherWeights,
    TaskResult,
    Weights,
    curves,
    other_weights_rows,
)
from emocap_pretrain.terminal import console, errors_as_lines, say_json

if TYPE_CHECKING:
    from torch import Tensor

    from emocap_pretrain.evaluation.domain import TrainingCaptions
    from emocap_pretrain.evaluation.on_benchmarks import BenchmarkCopy
    from emocap_pretrain.evaluation.result_file import ResultFile
    from emocap_pretrain.evaluation.subgroups import Subgroups
    from emocap_pretrain.inference.embedder import Embedder
    from emocap_pretrain.inference.opened import Activation, OpenedModel
    from emocap_pretrain.interop.restore import Restored

LARGEST_BATCH = 1024  # Limits the batch size that a stored config can request.
RESULTS_FILE, PAGE_FILE = "results.json", "report.html"

log = logging.getLogger(__name__)

# The options of this command alone.
Data = Annotated[str | None, typer.Option(help="Dataset to evaluate on.")]
Benchmarks = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=FOLDER", help="Copy of a benchmark (emocap benchmarks list); can be repeated."),
]
Train = Annotated[str | None, typer.Option(help="Dataset on which probes are trained.", metavar="URL")]
Valid = Annotated[str | None, typer.Option(help="Dataset on which choices are made.", metavar="URL")]
CacheUrl = Annotated[
    str | None, typer.Option(help="Folder or URL that keeps computed vectors between evaluations.", metavar="URL")
]
StoredData = Annotated[
    bool, typer.Option("--stored-data", help="Evaluate on the dataset that the checkpoint's config names.")
]
Interpolate = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Evaluate (1 - A) * start + A * trained weights.", metavar="A"),
]
CurveShares = Annotated[
    str | None,
    typer.Option(metavar="A,A,...", help="Also show the main scores of interpolations with these shares."),
]
TaskNames = Annotated[
    list[str] | None, typer.Option(help="A task to run; can be repeated; default those of the config.")
]
ListTasks = Annotated[bool, typer.Option("--list", help="List the tasks and sets of prompts; run none.")]
Label = Annotated[str | None, typer.Option(help="Name of the label that holds a sample's class.")]
ClassWords = Annotated[
    str | None, typer.Option(help="joy,fear or, with words for the prompts, {joy: delight, fear: panic}.")
]
Prompts = Annotated[
    str | None,
    typer.Option(
        metavar="SET|FILE",
        help="A set of prompts by name (--list), a file with one template on each line, or a YAML file with the "
        "prompts of each class.",
    ),
]
EnsembleOption = Annotated[
    Ensemble | None,
    typer.Option(help="Average the cosines with the prompts of a class (logits), or their vectors, as CLIP does."),
]
Compound = Annotated[
    Literal["words", "parts"] | None,
    typer.Option(help="Prompts of compound classes: their own words, or those of the classes they consist of."),
]
EveryPromptSet = Annotated[
    bool, typer.Option("--every-prompt-set", help="Also classify with every set of prompts of this package.")
]
TrainedOn = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|URL",
        help="A set from which the training captions came (emocap benchmarks list, or an own name), or a packed "
        "dataset, whose captions are read; can be repeated.",
    ),
]
FacesFrom = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="A set from which the faces of --data are; can be repeated.")
]
Crop = Annotated[
    ImageCrop | None,
    typer.Option(help="Resize the central square of an image, or the whole image; default as the model was published."),
]
ActivationName = Annotated[
    Literal["quick_gelu", "gelu", "gelu_tanh"] | None,
    typer.Option("--activation", help="Activation, for a file of another library that does not contain it."),
]
Tracking = Annotated[
    str | None, typer.Option(metavar="URI", help="Log the results to this MLflow server, as a child of the run.")
]
Picture = Annotated[
    Path | None, typer.Option(help="Write the confusion matrix, or with --curve the curve, to this PNG.")
]
GroupLabel = Annotated[
    str | None, typer.Option("--group", help="Label with the person or clip of a sample, for intervals.")
]
Save = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Write results and what was found for each sample to this JSON file (compare)."),
]
Thumbnails = Annotated[
    bool,
    typer.Option("--thumbnails", help="Put small images of examples into --save and --html. Faces are personal data."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


@dataclass(frozen=True, slots=True)
class _Request:
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
class _Prepared:
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
class _Evaluated:
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


def command(  # noqa: PLR0913, PLR0917 - one argument for each option
    model: Annotated[
        str | None,
        typer.Argument(
            help="Folder or URL of a run, run:URL@STEP, an export, or a folder, file or hub name of a CLIP, SigLIP or "
            "timm model."
        ),
    ] = None,
    data: Data = None,
    benchmark: Benchmarks = None,
    train: Train = None,
    valid: Valid = None,
    cache: CacheUrl = None,
    stored_data: StoredData = False,
    config: OwnConfig = None,
    step: Step = None,
    weights: ChosenWeights = None,
    interpolate: Interpolate = None,
    curve: CurveShares = None,
    task: TaskNames = None,
    list_tasks: ListTasks = False,
    label: Label = None,
    classes: ClassWords = None,
    prompts: Prompts = None,
    ensemble: EnsembleOption = None,
    compound: Compound = None,
    every_prompt_set: EveryPromptSet = False,
    trained_on: TrainedOn = None,
    faces_from: FacesFrom = None,
    crop: Crop = None,
    activation: ActivationName = None,
    device: Device = "auto",
    tracking: Tracking = None,
    picture: Picture = None,
    group: GroupLabel = None,
    by: By = None,
    least_group: Least = 20,
    save: Save = None,
    html: Html = None,
    thumbnails: Thumbnails = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Evaluate a model of a run or of another library, on one device or, under torchrun or srun, on all ranks."""
    show_logs()
    with errors_as_lines(debug=debug):
        if list_tasks:
            _list_tasks(as_json=as_json)
            return
        if model is None:
            raise ConfigError("give the folder or URL of a run, a model of another library, or --list.")
        own = load_config(config) if config else None
        named = {
            "url": data,
            "train_url": train,
            "valid_url": valid,
            "cache": cache,
            "tasks": task or None,
            "label": label,
            "ensemble": ensemble,
            "compound": compound,
            "every_prompt_set": every_prompt_set or None,
            "faces_from": faces_from or None,
            "group": group,
            "by": labels_of(by) if by else None,
            "crop": crop,
        }
        changes = _changes(named, classes, prompts)
        may_read = stored_data or own is not None
        if html:
            check_writable("--html", html)
        copies = _copies(
            benchmark or (), alone=not (group or by or data or stored_data or train or valid or curve or picture)
        )
        shares, captions = _shares(curve), tuple(trained_on or ())
        request = _Request(
            model, own, step, weights, interpolate, shares, changes, may_read, activation, copies, captions
        )
        if evaluated := _evaluated(request, device):
            _show(evaluated, as_json=as_json, least=least_group)
            if picture:
                _draw(evaluated, picture)
            if save or html or tracking:
                page = _report(evaluated, save, html, thumbnails=thumbnails, least=least_group)
                if tracking:
                    _track(evaluated, _tracking(tracking, own), page)
        if launched():  # Several ranks may have talked through gloo, whose threads can abort Python's shutdown.
            leave(0)


def _list_tasks(*, as_json: bool) -> None:
    from emocap_pretrain.evaluation import prompt_set
    from emocap_pretrain.evaluation.tasks import DEFAULT, TASKS

    if as_json:
        say_json([{"name": task.name, "about": task.about, "default": task in DEFAULT} for task in TASKS])
        return
    rows = [(task.name, "default" if task in DEFAULT else "", task.about) for task in TASKS]
    console.print(tables.grid("Evaluation tasks", ("name", "runs by", "what it does"), rows, left=3))
    sets = [(name, prompt_set.shipped(name).about) for name in prompt_set.names()]
    console.print(tables.grid("Sets of prompts", ("name", "what it has"), sets, left=2))


def _changes(named: dict[str, Any], classes: str | None, prompts: str | None) -> dict[str, Any]:
    """Returns the evaluation settings that the command line sets, as a mapping from their names to their values.

    Args:
        named: The settings whose options have their values; one that is not given is None.
        classes: The option `--classes`.
        prompts: The option `--prompts`.
    """
    found = {name: value for name, value in named.items() if value is not None}
    if classes is not None:
        found["classes"] = parsed_classes(classes)
    return found if prompts is None else found | _prompts(prompts)


def _copies(texts: Sequence[str], *, alone: bool) -> "tuple[BenchmarkCopy, ...]":
    """Returns the copies that `--benchmark` names. `alone` says that no option chooses another dataset or a picture."""
    if not texts:
        return ()
    if not alone:
        raise ConfigError(
            "--benchmark has its own splits: leave out --data, --train, --valid, --group, --by, --curve, --picture."
        )
    from emocap_pretrain.evaluation.on_benchmarks import BenchmarkCopy

    return tuple(map(BenchmarkCopy.parsed, texts))


def _prompts(prompts: str) -> dict[str, Any]:
    """Returns the settings for a set of prompts, for a file of templates, or for a file with the prompts of classes."""
    from emocap_pretrain.evaluation import prompt_set

    if prompts in prompt_set.names():
        return {"prompts": prompts}
    if prompts.endswith((".yaml", ".yml")):
        return {"prompts": None, "classes": prompt_set.own_prompts(Path(prompts)), "templates": ["{}"]}
    if not Path(prompts).exists():
        raise ConfigError(f"--prompts {prompts}: there is no such file, and no set of prompts of this name.")
    return {"prompts": None, "templates": lines_of(Path(prompts))}


def _shares(text: str | None) -> tuple[float, ...]:
    try:
        return EvaluationConfig.model_validate({"interpolate": text.split(",") if text else ()}).interpolate
    except ValueError as error:
        raise ConfigError(f"--curve {text}: give numbers from 0 to 1 with commas between them.") from error


def _evaluated(request: _Request, device: str) -> _Evaluated | None:
    """Restores the model, runs the tasks, and returns the model and the results.

    If a launcher has started several ranks, this function is a collective. Ranks other than 0 get None, so that the
    results are printed once.
    """
    import torch

    from emocap_pretrain.evaluation import on_benchmarks
    from emocap_pretrain.evaluation.domain import with_domains
    from emocap_pretrain.evaluation.other_weights import curve
    from emocap_pretrain.ranks.join import joined
    from emocap_pretrain.training.conclusion import evaluated

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no GPU on this host; leave the option out, or give cpu.")
    # An evaluation has nothing to save, so signals end it as usual.
    runtime = EnvRuntime.from_environment(device, listen=False)
    with joined(request.own.cluster if request.own else ClusterConfig(), runtime) as world:
        everyone = world.patient("evaluation")
        # Only rank 0 reads the checkpoint. An error there, such as a wrong option, is raised on all ranks.
        found = everyone.run_on_main(partial(_prepared, request))
        config, embedder, restored = found.config, found.model.embedder.on(world.device), found.model.restored
        training = everyone.run_on_main(partial(_training_captions, request, restored))
        if request.copies:
            results = on_benchmarks.evaluate(request.copies, config.evaluation, embedder, everyone)
            results = with_domains(results, training, config.evaluation, url=None)
        else:
            results = evaluated(config, embedder, everyone, training)
        other_weights: tuple[OtherWeights, ...] = ()
        if restored:
            restored = replace(restored, config=config)
            other_weights = curve(restored, found.start, request.shares, everyone)
        if not world.is_main:
            return None
        return _Evaluated(
            request.model, config, embedder, restored, results, other_weights, has_copies=bool(request.copies)
        )


def _training_captions(request: _Request, restored: "Restored | None") -> "TrainingCaptions":
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


def _prepared(request: _Request) -> _Prepared:
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
        config = _with_settings(config, bounded, may_read=request.may_read)
        tasks.require_texts(config.evaluation, has_texts=model.embedder.has_texts)
        has_local = model.embedder.local is not None
        notes = tasks.prepare(config.evaluation, has_local=has_local, seconds=tasks.PREPARE_S)
    for note in notes:
        log.warning("%s", note)
    return _Prepared(model, config, start)


def _placeholder(name: str) -> Config:
    """Returns a config for a model of another library, of which only the section `evaluation` is used."""
    short = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(name).name).lstrip("-_.") or "model"
    return Config.model_validate(
        {"name": short, "url": "not recorded", "steps": 0, "global_batch": 1, "data": {"url": "not recorded"}},
        context=INERT,
    )


def _with_settings(config: Config, changes: dict[str, Any], *, may_read: bool) -> Config:
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


def _tracking(uri: str, own: Config | None) -> TrackingConfig:
    """Returns the tracking settings: `uri`, and the other settings from the user's config `own`, if there is one.

    The tracking settings in the checkpoint are not used, because with them the author of the checkpoint could choose
    where artifacts are written.
    """
    settings = own.tracking.model_dump() if own else {}
    return TrackingConfig.model_validate({**settings, "uri": uri})


def _report(evaluated: _Evaluated, save: str | None, html: Path | None, *, thumbnails: bool, least: int) -> str:
    """Writes the file of results and the HTML page, as far as the user wants them, and returns the page."""
    from emocap_pretrain.evaluation import result_file
    from emocap_pretrain.evaluation.comparison import ModelResults, compare
    from emocap_pretrain.evaluation.page import page

    file = _result_file(evaluated, thumbnails=thumbnails)
    if save:
        result_file.save(save, file)
    text = page(compare([ModelResults.of(file)], least=least))
    if html:
        write_text("--html", html, text)
    return text


def _result_file(evaluated: _Evaluated, *, thumbnails: bool) -> "ResultFile":
    from emocap_pretrain.evaluation import thumbnails as small
    from emocap_pretrain.evaluation.examples import PackedSource
    from emocap_pretrain.evaluation.result_file import EvaluatedModel, ResultFile

    restored, config = evaluated.restored, evaluated.config
    settings, stored = config.evaluation, config.stored()["evaluation"]
    images: dict[str, str] = {}
    if thumbnails and settings.url and not evaluated.has_copies:
        images = small.thumbnails(PackedSource(settings.url), small.shown_samples(evaluated.results))
    model = EvaluatedModel(
        config.name,
        masked_url(evaluated.model),
        restored.step if restored else None,
        (evaluated.weights or restored.weights) if restored else "",
        evaluated.embedder.digest(),
        restored.run_id if restored else "",
    )
    return ResultFile.of(model, evaluated.results, stored, images)


def _show(evaluated: _Evaluated, *, as_json: bool, least: int) -> None:
    from emocap_pretrain.evaluation.comparison import groups_by

    groups = [(result, groups_by(result, least=least)) for result in evaluated.results]
    if as_json:
        say_json(_tree(evaluated) | _groups_tree(groups))
        return
    title = evaluated.title(evaluated.model)
    # One table for each dataset: a packed one, or each benchmark.
    for url in dict.fromkeys(result.url for result in evaluated.results):
        of_url = [result for result in evaluated.results if result.url == url]
        rows = [*(row for result in of_url for row in result.rows()), *other_weights_rows(evaluated.other_weights)]
        console.print(tables.table(title, rows))
    by_class = [(result, each) for result in evaluated.results for each in result.class_values]
    for result, values in by_class:
        where = f", {result.benchmark}" if result.benchmark else ""
        rows = zip(values.classes, values.samples, values.values, strict=True)
        cells = [
            (name, f"{samples:,}", "" if value is None else f"{value:.1%}", tables.bar(value or 0.0))
            for name, samples, value in rows
        ]
        console.print(tables.grid(f"{values.title} by class{where}", ("class", "samples", values.name, ""), cells))
    for result, found in groups:
        show_groups(found, result.task)


def _groups_tree(groups: "Sequence[tuple[TaskResult, tuple[Subgroups, ...]]]") -> dict[str, Any]:
    from pydantic_core import to_jsonable_python

    found = {result.task: each for result, each in groups if each}
    return {"groups": to_jsonable_python(found)} if found else {}


def _tree(evaluated: _Evaluated) -> dict[str, Any]:
    from pydantic_core import to_jsonable_python

    restored = evaluated.restored
    # A model of another library has no step and only one kind of weights.
    facts = (restored.step, restored.weights, restored.share) if restored else (None, None, None)
    about = {"run": evaluated.model, **dict(zip(("step", "weights", "share"), facts, strict=True))}
    results = [result.scores_alone() for result in evaluated.results]
    return about | to_jsonable_python({"results": results, "other_weights": evaluated.other_weights})


def _draw(evaluated: _Evaluated, path: Path) -> None:
    from emocap_pretrain.data.datasets import evaluation_data
    from emocap_pretrain.tracking import pictures

    config = evaluated.config
    data = evaluation_data(config.evaluation, config.stored()["evaluation"])
    subject = pictures.subject(config.name, data, step=evaluated.restored.step if evaluated.restored else None)
    if evaluated.other_weights:
        pictures.interpolation(curves(evaluated.other_weights), path, of=subject)
        return
    matrices = [matrix for result in evaluated.results for matrix in result.confusion_matrices]
    if not matrices:
        names = ", ".join(result.task for result in evaluated.results)
        raise ConfigError(f"--picture {path}: {names} gives no confusion matrix to draw.")
    pictures.confusion(matrices[0], path, of=subject)


def _track(evaluated: _Evaluated, tracking: TrackingConfig, page: str) -> None:
    """Logs the results as a run in MLflow, below the trained run, whose scores they do not replace."""
    import json

    from emocap_pretrain.tracking.mlflow_tracker import MlflowTracker
    from emocap_pretrain.training.build import tracked_run
    from emocap_pretrain.training.conclusion import track, track_other_weights

    config, restored = evaluated.config, evaluated.restored
    step, name = (restored.step, f"{config.name}-step-{restored.step}") if restored else (0, config.name)
    run = tracked_run(config.model_copy(update={"tracking": tracking, "name": name}))
    if restored is None:  # The other settings are placeholders.
        run = replace(run, params={"model": evaluated.model, "evaluation": run.params["evaluation"]})
    # `parent` makes the new run a child of the trained one, whose id the checkpoint contains.
    tracker = MlflowTracker.start(run, None, parent=restored.run_id if restored else "")
    track(tracker, config, evaluated.results, step)
    track_other_weights(tracker, config, evaluated.other_weights, step)
    stated = replace(evaluated, model=config.url) if restored else evaluated
    tracker.log_text(RESULTS_FILE, json.dumps(_tree(stated), indent=1))
    tracker.log_text(PAGE_FILE, page)
    tracker.set_description("\n".join(f"| {name} | {text} |" for name, text in _markdown_rows(evaluated)))
    tracker.finish("FINISHED")
    if tracker.unsent():
        raise TrackingError(f"--tracking {tracking.uri}: MLflow did not take all results; run the command again.")


def _markdown_rows(evaluated: _Evaluated) -> list[tuple[str, str]]:
    head = [("", evaluated.title(evaluated.config.name)), ("---", "---")]
    rows = (row for result in evaluated.results for row in result.rows())
    return [*head, *rows, *other_weights_rows(evaluated.other_weights)]
