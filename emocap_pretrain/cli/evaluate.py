"""Defines `emocap evaluate`, which runs evaluation tasks on a checkpoint, or on a model of another library.

The checkpoint may come from a stranger. So the dataset that the checkpoint's config names is not read unless the user
gives `--stored-data`, and the tracking server in this config is never contacted. With `--config`, the user's own config
is used in place of the checkpoint's config. Settings on the command line take precedence over either config
(docs/security.md).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from emocap_pretrain.cli import evaluation_output as output
from emocap_pretrain.cli import tables
from emocap_pretrain.cli.compare import By, Html, Least, labels_of
from emocap_pretrain.cli.evaluated_model import EvaluationRequest, evaluated
from emocap_pretrain.cli.evaluated_on_ray import evaluated_on_ray
from emocap_pretrain.cli.options import (
    ChosenActivation,
    ChosenWeights,
    Debug,
    Device,
    OnRay,
    OwnConfig,
    Step,
    lines_of,
    parsed_classes,
)
from emocap_pretrain.config.fields import Ensemble, ImageCrop
from emocap_pretrain.config.schema import Config, EvaluationConfig, TrackingConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.settings import load_config
from emocap_pretrain.logs import show_logs
from emocap_pretrain.ranks.runtime import launched
from emocap_pretrain.run import leave
from emocap_pretrain.terminal import FAILED, console, errors_as_lines, say_json

if TYPE_CHECKING:
    from emocap_pretrain.evaluation.on_benchmarks import BenchmarkCopy

# Titles under which the help shows options.
DATA, PROMPTS = "Data", "Classes and prompts"

# The options of this command alone.
Data = Annotated[str | None, typer.Option(help="Dataset to evaluate on.", rich_help_panel=DATA)]
Benchmarks = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FOLDER",
        help="Copy of a benchmark (emocap benchmarks list); can be repeated.",
        rich_help_panel=DATA,
    ),
]
Train = Annotated[
    str | None, typer.Option(help="Dataset on which probes are trained.", metavar="URL", rich_help_panel=DATA)
]
Valid = Annotated[
    str | None, typer.Option(help="Dataset on which choices are made.", metavar="URL", rich_help_panel=DATA)
]
CacheUrl = Annotated[
    str | None,
    typer.Option(
        help="Folder or URL that keeps computed vectors between evaluations.", metavar="URL", rich_help_panel=DATA
    ),
]
FilterFileOption = Annotated[
    str | None,
    typer.Option(
        "--filter",
        help="Filter file of the dataset: the samples and sentences that it names are not scored.",
        metavar="FILE",
        rich_help_panel=DATA,
    ),
]
StoredData = Annotated[
    bool,
    typer.Option(
        "--stored-data", help="Evaluate on the dataset that the checkpoint's config names.", rich_help_panel=DATA
    ),
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
Label = Annotated[str | None, typer.Option(help="Name of the label that holds a sample's class.", rich_help_panel=DATA)]
ClassWords = Annotated[
    str | None,
    typer.Option(help="joy,fear or, with words for the prompts, {joy: delight, fear: panic}.", rich_help_panel=PROMPTS),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        metavar="SET|FILE",
        help="A set of prompts by name (--list), a file with one template on each line, or a YAML file with the "
        "prompts of each class.",
        rich_help_panel=PROMPTS,
    ),
]
EnsembleOption = Annotated[
    Ensemble | None,
    typer.Option(
        metavar="KIND",
        help="logits: average the cosines with the prompts of a class; embeddings: average the prompts' vectors, as "
        "CLIP does.",
        rich_help_panel=PROMPTS,
    ),
]
Compound = Annotated[
    Literal["words", "parts"] | None,
    typer.Option(
        metavar="KIND",
        help="Prompts of compound classes: with their own words, or those of their parts (the classes of which they "
        "consist).",
        rich_help_panel=PROMPTS,
    ),
]
EveryPromptSet = Annotated[
    bool,
    typer.Option(
        "--every-prompt-set", help="Also classify with every set of prompts of this package.", rich_help_panel=PROMPTS
    ),
]
TrainedOn = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|URL",
        help="A set from which the training captions came (emocap benchmarks list, or an own name), or a packed "
        "dataset, whose captions are read; can be repeated.",
        rich_help_panel=PROMPTS,
    ),
]
FacesFrom = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="A set from which the faces of --data are; can be repeated.", rich_help_panel=DATA
    ),
]
Crop = Annotated[
    ImageCrop | None,
    typer.Option(
        help="Resize the central square of an image, or the whole image; default as the model was published.",
        rich_help_panel=DATA,
    ),
]
NoNormalize = Annotated[
    bool,
    typer.Option(
        "--no-normalize",
        help="Read colours from 0 to 1, without the model's mean and deviation, as Exp-CLIP's code does.",
        rich_help_panel=DATA,
    ),
]
Tracking = Annotated[
    str | None, typer.Option(metavar="URI", help="Log the results to this MLflow server, as a child of the run.")
]
Picture = Annotated[
    Path | None, typer.Option(help="Write the confusion matrix, or with --curve the curve, to this PNG.")
]
GroupLabel = Annotated[
    str | None,
    typer.Option("--group", help="Label with the person or clip of a sample, for intervals.", rich_help_panel=DATA),
]
Save = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Write results and what was found for each sample to this JSON file (compare)."),
]
Thumbnails = Annotated[
    bool,
    typer.Option("--thumbnails", help="Put small images of examples into --save and --html. Faces are personal data."),
]
Ranks = Annotated[
    int | None,
    typer.Option(
        help="Ranks on Ray; default one for each GPU, or, without GPUs, one for each node and at least 2.", min=1
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


def command(  # noqa: PLR0913, PLR0917 - one argument for each option
    model: Annotated[
        str | None,
        typer.Argument(
            help="Folder or URL of a run, run:URL@STEP, an export, a folder, file or hub name of a model of "
            "transformers, open_clip or timm, package:NAME/PATH, or hog."
        ),
    ] = None,
    data: Data = None,
    benchmark: Benchmarks = None,
    train: Train = None,
    valid: Valid = None,
    cache: CacheUrl = None,
    filter_: FilterFileOption = None,
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
    no_normalize: NoNormalize = False,
    activation: ChosenActivation = None,
    device: Device = "auto",
    ray: OnRay = False,
    ranks: Ranks = None,
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
    """Evaluate a model of a run or of another library: on one device; with --ray, torchrun or srun on all ranks."""
    show_logs()
    with errors_as_lines(debug=debug):
        if list_tasks:
            _list_tasks(as_json=as_json)
            return
        if model is None:
            raise ConfigError("give the folder or URL of a run, a model of another library, or --list.")
        if ranks is not None and not ray:
            raise ConfigError("--ranks is the number of ranks on Ray: add --ray, or leave it out.")
        own = load_config(config) if config else None
        named = {
            "url": data,
            "train_url": train,
            "valid_url": valid,
            "cache": cache,
            "filter": filter_,
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
        logged = _tracking(tracking, own) if tracking else None
        wanted = output.Wanted(save, html, picture, logged, thumbnails, as_json, least_group)
        wanted.check()
        for_data = {
            "--data": data,
            "--stored-data": stored_data,
            "--train": train,
            "--valid": valid,
            "--filter": filter_,
            "--label": label,
            "--group": group,
            "--faces-from": faces_from,
            "--curve": curve,
            "--picture": picture,
            "--thumbnails": thumbnails,
        }
        copies = _copies(benchmark or (), [option for option, value in for_data.items() if value])
        _check_classes(copies, changes.get("classes"))
        shares, captions = _shares(curve), tuple(trained_on or ())
        request = EvaluationRequest(
            model,
            own,
            step,
            weights,
            interpolate,
            shares,
            changes,
            may_read,
            activation,
            copies,
            captions,
            needs_matrix=picture is not None and not shares,
            normalize=not no_normalize,
        )
        found = evaluated_on_ray(request, device, ranks) if ray else evaluated(request, device)
        if found:
            output.give(found, wanted)
        # The results of the other benchmarks are printed and saved.
        exit_code = FAILED if found and found.failures else 0
        if launched():  # Several ranks may have talked through gloo, whose threads can abort Python's shutdown.
            leave(exit_code)
        raise typer.Exit(exit_code)


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
        named: The settings that take the value of an option as it is, by name; None for an option that is not given.
        classes: The option `--classes`.
        prompts: The option `--prompts`.

    Raises:
        ConfigError: If the value of one of these two options cannot be read.
    """
    found = {name: value for name, value in named.items() if value is not None}
    if classes is not None:
        found["classes"] = parsed_classes(classes)
    return found if prompts is None else found | _prompts(prompts)


def _copies(texts: Sequence[str], for_data: Sequence[str]) -> "tuple[BenchmarkCopy, ...]":
    """Returns the copies that `--benchmark` names.

    Args:
        texts: The values of `--benchmark`.
        for_data: The given options that are only for packed datasets.

    Raises:
        ConfigError: If such an option is given beside `--benchmark`, or a value is not the name and folder of a copy.
    """
    if not texts:
        return ()
    if for_data:
        raise ConfigError(
            f"--benchmark has its own splits, labels and licence, so these options are not used: leave out "
            f"{', '.join(for_data)}."
        )
    from emocap_pretrain.evaluation.on_benchmarks import BenchmarkCopy

    return tuple(map(BenchmarkCopy.parsed, texts))


def _check_classes(copies: "Sequence[BenchmarkCopy]", classes: Mapping[str, Any] | None) -> None:
    """Checks that the classes of the command line are those of one of the benchmarks. Other classes would be ignored.

    Raises:
        ConfigError: If they are not.
    """
    from emocap_pretrain.benchmarks.card import ClassTarget

    targets = [copy.card.target for copy in copies if isinstance(copy.card.target, ClassTarget)]
    if classes is not None and targets and not any(set(classes) == set(target.classes) for target in targets):
        raise ConfigError(
            f"the given classes are {', '.join(classes)}, and none of these benchmarks has them; the first one has "
            f"{', '.join(targets[0].classes)}."
        )


def _prompts(prompts: str) -> dict[str, Any]:
    """Returns the settings for a set of prompts, for a file of templates, or for a file with the prompts of classes.

    Raises:
        ConfigError: If `prompts` is neither the name of a set nor a file that can be read.
    """
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


def _tracking(uri: str, own: Config | None) -> TrackingConfig:
    """Returns the tracking settings: `uri`, and the other settings from the user's config `own`, if there is one.

    The tracking settings in the checkpoint are not used, because with them the author of the checkpoint could choose
    where artifacts are written.
    """
    settings = own.tracking.model_dump() if own else {}
    return TrackingConfig.model_validate({**settings, "uri": uri})
