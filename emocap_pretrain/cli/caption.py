"""Defines `emocap caption`: trains a captioner on a frozen image tower, scores it, and writes captions of images.

The package `generation` does the work. The user names the model and the language model in each command, because nothing
that the folder of a captioner names is opened (docs/security.md). A command compares the digests of these two models
with the digests of the models with which the captioner was trained.

Under torchrun or srun, all ranks run a command together: each computes its share, and rank 0 prints and writes files.
"""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from emocap_pretrain.cli import caption_faces, tables
from emocap_pretrain.cli.bulk import (
    Batch,
    BulkBar,
    Force,
    Format,
    Image,
    ImageRoot,
    Model,
    Out,
    Output,
    PartImages,
    output_place,
)
from emocap_pretrain.cli.bulk import Source as Input
from emocap_pretrain.cli.files import check_writable, write_text
from emocap_pretrain.cli.options import ChosenWeights, Debug, Device, Step
from emocap_pretrain.config.schema import ClusterConfig, TrackingConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.logs import show_logs
from emocap_pretrain.ranks.runtime import EnvRuntime, launched
from emocap_pretrain.run import leave
from emocap_pretrain.terminal import Command, Group, console, errors_as_lines, say_json

if TYPE_CHECKING:
    from emocap_pretrain.bulk.compute import Work
    from emocap_pretrain.bulk.scorers import ModelSource
    from emocap_pretrain.config.optimizer import OptimizerConfig
    from emocap_pretrain.evaluation.result_file import ResultFile
    from emocap_pretrain.generation.folder import CaptionerDocument, CaptionerFolder
    from emocap_pretrain.generation.language_model import LanguageModel
    from emocap_pretrain.generation.scoring import CaptionScores, MetricResult
    from emocap_pretrain.inference.model import EmotionModel
    from emocap_pretrain.ranks.group import RankGroup

app = typer.Typer(
    cls=Group,
    help="Caption faces with the model of an endpoint; train, score and use a captioner of your own.",
    no_args_is_help=True,
)
Data = Annotated[str, typer.Argument(metavar="DATA", help="A packed dataset with captions.")]
Language = Annotated[
    str,
    typer.Option(
        "--lm", metavar="LM", help="Causal language model: a folder, a GGUF file (or package:NAME/FILE), a hub name."
    ),
]
Folder = Annotated[Path, typer.Option("--captioner", metavar="FOLDER", help="Folder of the trained captioner.")]
Tracking = Annotated[str | None, typer.Option(metavar="URI", help="Record this in the captioner's run on MLflow.")]


app.command("faces", cls=Command)(caption_faces.faces_command)


@app.command("train", cls=Command)
def train_command(  # noqa: PLR0913, PLR0917 - one argument for each option
    model: Model,
    data: Data,
    lm: Language,
    out: Annotated[Path, typer.Option(help="Folder of the captioner; the same command resumes in it.")],
    part: Annotated[str, typer.Option(help="Caption part that is written: global, summary or local.")] = "global",
    person: Annotated[
        str | None, typer.Option(help="Label that holds the person of an image; default each image is another person.")
    ] = None,
    image_tokens: Annotated[
        int,
        typer.Option(
            help="Largest number of tokens of an image, a square number such as 16; more patches are averaged."
        ),
    ] = 16,
    most_tokens: Annotated[int, typer.Option(help="Largest number of tokens of a caption.", min=2)] = 48,
    prompt: Annotated[
        str | None, typer.Option(help="Text before the caption, with <image> where the image is.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Number of updates of each training.")] = 1000,
    batch: Annotated[int, typer.Option(help="Images of an update, over all ranks.")] = 16,
    lr: Annotated[float | None, typer.Option(help="Largest learning rate; default 0.001.")] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Updates until the largest rate; default 30.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay of matrices; default 0.")] = None,
    optimizer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Another setting of the section optimizer of a run, such as name=lion or schedule=wsd; can be "
            "repeated.",
        ),
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        typer.Option(metavar="NAME", help="Precision of the products: fp32, bf16, fp16, or auto (bf16 on a GPU)."),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the first weights and of the order of the images.")] = 0,
    save_every_steps: Annotated[int, typer.Option(help="Updates between two saves.")] = 50,
    tracking: Tracking = None,
    step: Step = None,
    weights: ChosenWeights = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Train a projector from the patches of a frozen image tower to a frozen language model.

    A second training without the image follows, whose captions are a baseline (floor) of emocap caption score. If a
    training was interrupted, the same command resumes it. Under torchrun or srun, all ranks train together.
    """
    show_logs()
    with errors_as_lines(debug=debug):
        from emocap_pretrain.bulk.scorers import ModelSource
        from emocap_pretrain.generation.captioner import PROMPT
        from emocap_pretrain.generation.folder import CaptionerFolder
        from emocap_pretrain.generation.making import CaptionerSettings, make
        from emocap_pretrain.generation.patches import PatchSettings
        from emocap_pretrain.generation.training import ProjectorTrainingConfig

        settings = CaptionerSettings(
            images=PatchSettings(part, image_tokens, person),
            training=ProjectorTrainingConfig(
                steps, batch, _optimizer(lr, warmup_steps, weight_decay, optimizer or ()), seed, save_every_steps
            ),
            prompt=PROMPT if prompt is None else prompt,
            most_tokens=most_tokens,
            precision=precision,
        )
        with _ranks(device) as world:
            embedding, language = _loaded(ModelSource(model, step, weights, device), lm, world)
            folder, logged = CaptionerFolder(out), _tracking(tracking)
            make(folder, embedding.embedder, language, data, settings, world, tracking=logged, say=console.print)
            if world.is_main:
                console.print(f"the captioner is in {out}: emocap caption score and write use it.")


@app.command("score", cls=Command)
def score_command(
    model: Model,
    data: Data,
    lm: Language,
    captioner: Folder,
    captions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write references and all captions to this file of JSON lines.")
    ] = None,
    save: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the scores to this JSON file, for emocap compare beside other tasks."),
    ] = None,
    tracking: Tracking = None,
    step: Step = None,
    weights: ChosenWeights = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Score a captioner on persons who are not in its training data, beside three baselines (floors).

    The floors are the caption of a random training image, the caption of the nearest training image, and the caption
    that the language model writes after the same training without the image. The captioner's score minus the score of
    each floor is shown with its paired 95 % bootstrap interval over persons.
    """
    show_logs()
    with errors_as_lines(debug=debug):
        from emocap_pretrain.evaluation import result_file

        if captions:
            check_writable("--captions", captions)
        if save:
            result_file.check_place(save)
        from emocap_pretrain.bulk.scorers import ModelSource
        from emocap_pretrain.generation.metrics import need_libraries
        from emocap_pretrain.generation.patches import computed_patches, opened_patches
        from emocap_pretrain.generation.scoring import score
        from emocap_pretrain.generation.tracked import check

        need_libraries()
        with _ranks(device) as world:
            of = ModelSource(model, step, weights, device)
            folder, document, embedding, language = _trained(captioner, of, lm, world)
            everyone = world.patient("captions")
            check(folder, _tracking(tracking), everyone)
            test = computed_patches(embedding.embedder, data, document.images, folder.patches, world=everyone)
            found = score(
                folder.trained(document, language, "captioner"),
                folder.trained(document, language, "without_image"),
                opened_patches(folder.patches, document.data),
                test,
                world=everyone,
            )
            if found is None:
                return
            _show(found, as_json=as_json)
            if save:
                result_file.save(save, _saved(found, model, data, captioner, document))
            if captions:
                lines = (json.dumps(each, ensure_ascii=False) for each in found.captions)
                write_text("--captions", captions, "".join(f"{line}\n" for line in lines))
            _track(found, folder, document, data, tracking)


@app.command("write", cls=Command)
def write_command(  # noqa: PLR0913, PLR0917 - one argument for each option
    model: Model,
    source: Input,
    lm: Language,
    captioner: Folder,
    out: Out,
    kind: Format = None,
    step: Step = None,
    weights: ChosenWeights = None,
    device: Device = "auto",
    batch: Batch = 32,
    image: Image = "image",
    image_root: ImageRoot = None,
    part_images: PartImages = 1024,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Write a caption of each image, and of one frame per second of each video.

    The same command resumes an interrupted one.
    """
    show_logs()
    with errors_as_lines(debug=debug):
        from emocap_pretrain.bulk import joining
        from emocap_pretrain.bulk.compute import Computation
        from emocap_pretrain.bulk.inputs import open_input
        from emocap_pretrain.bulk.scorers import ModelSource
        from emocap_pretrain.data.videos import need_av
        from emocap_pretrain.generation.folder import CAPTIONER
        from emocap_pretrain.generation.writing import CaptionScorer

        place = output_place(out)
        output = Output(out, joining.format_of(place, kind), part_images, force=force)
        found = open_input(source, image=image, image_root=image_root)
        if found.has_videos:
            need_av()
        of = ModelSource(model, step, weights, device)
        with _ranks(device) as world:
            folder, document, embedding, language = _trained(captioner, of, lm, world)
            scorer = CaptionScorer(embedding.embedder, folder.trained(document, language, "captioner"), document.images)
            computation = Computation(
                model=of,
                digest=document.model,
                prompts=None,
                folder=str(place.with_name(f"{place.name}.parts")),
                has_videos=found.has_videos,
                batch_size=batch,
            )
            about = json.loads(CAPTIONER.dump(document))
            state = {"captioner": about, "input": found.digest, "batch": batch, "part_images": part_images}
            everyone = world.patient("captions")

            def compute(works: "Iterator[Work]", bar: BulkBar) -> None:
                computation.compute(works, scorer, bar.show)

            output.write(found, "captioning", state, state, compute, world=everyone)


@contextmanager
def _ranks(device: Literal["auto", "cpu", "cuda"]) -> "Generator[RankGroup]":
    """Makes this process a rank for the block, and yields the group of all ranks, or of this process alone.

    A process that a launcher has started ends after the block, if the block has raised no error.

    Raises:
        ConfigError: If `device` is "cuda" and there is no GPU.
    """
    from emocap_pretrain.inference.model import chosen_device
    from emocap_pretrain.ranks.join import joined

    chosen_device(device)
    # Signals end the command as usual. The same command resumes it.
    with joined(ClusterConfig(), EnvRuntime.from_environment(device, listen=False)) as world:
        yield world
    if launched():  # Several ranks may have talked through gloo, whose threads can abort Python's shutdown.
        leave(0)


def _optimizer(
    lr: float | None, warmup_steps: int | None, weight_decay: float | None, others: Sequence[str]
) -> "OptimizerConfig":
    from emocap_pretrain.config.load import section_of
    from emocap_pretrain.generation.training import PROJECTOR_OPTIMIZER

    named = {"lr": lr, "warmup_steps": warmup_steps, "weight_decay": weight_decay}
    given = [f"{name}={value}" for name, value in named.items() if value is not None]
    return section_of("optimizer", PROJECTOR_OPTIMIZER, [*given, *others])


def _tracking(uri: str | None) -> TrackingConfig | None:
    return None if uri is None else TrackingConfig.model_validate({"uri": uri})


def _loaded(source: "ModelSource", lm: str, world: "RankGroup") -> "tuple[EmotionModel, LanguageModel]":
    """Returns the model and the language model, on the device of this rank. Each rank reads both.

    The language model is opened first, so that a wrong name of it is reported before the other model is loaded.

    Raises:
        ConfigError: If the language model cannot be read, or the device does not exist. Further errors are those of
            `emocap_pretrain.load`.
    """
    from emocap_pretrain.generation.language_model import load_language_model

    language = load_language_model(lm, device=world.device)
    return source.load(), language


def _trained(
    captioner: Path, source: "ModelSource", lm: str, world: "RankGroup"
) -> "tuple[CaptionerFolder, CaptionerDocument, EmotionModel, LanguageModel]":
    """Returns the folder of a captioner, its document, and the two models with which it was trained.

    Raises:
        ConfigError: If the folder or a model cannot be read, or if the captioner was trained with another model.
    """
    from emocap_pretrain.generation.folder import CaptionerFolder

    folder = CaptionerFolder(captioner)
    document = folder.document()
    model, language = _loaded(source, lm, world)
    if model.embedder.digest() != document.model:
        raise ConfigError(f"{captioner} was trained with another model or step: give the same MODEL and --step.")
    return folder, document, model, language


def _saved(
    found: "CaptionScores", model: str, data: str, captioner: Path, document: "CaptionerDocument"
) -> "ResultFile":
    from emocap_shards.mask import masked_url

    from emocap_pretrain.evaluation.result_file import EvaluatedModel, ResultFile
    from emocap_pretrain.generation.report import task_result

    # Several captioners may use one model, and are compared with each other.
    name = f"{Path(model).name[:90]}, captioner {captioner.name[:90]}"
    of = EvaluatedModel(name, masked_url(model), digest=document.model)
    return ResultFile.of(of, [task_result(found, masked_url(data))], {})


def _track(
    found: "CaptionScores", folder: "CaptionerFolder", document: "CaptionerDocument", data: str, uri: str | None
) -> None:
    """Adds the scores to the captioner's run in MLflow, at the last step of its training. Only rank 0 calls this.

    Raises:
        TrackingError: If MLflow is unreachable and the run is new, or if it does not take the scores.
    """
    settings = _tracking(uri)
    if settings is None:
        return
    from emocap_shards.mask import masked_url

    from emocap_pretrain.data.datasets import dataset_use
    from emocap_pretrain.errors import TrackingError
    from emocap_pretrain.generation.report import task_result
    from emocap_pretrain.generation.tracked import tracked
    from emocap_pretrain.ranks.group import ALONE
    from emocap_pretrain.run_folder.attempts import newest

    with tracked(folder, document, settings, ALONE, newest(folder.store)) as tracker:
        assert tracker is not None, "this is rank 0, with settings"
        tracker.log_datasets([dataset_use(data, masked_url(data), "evaluation")])
        tracker.replace_scores(task_result(found, masked_url(data)).metrics(), document.training.steps)
    if tracker.unsent():
        raise TrackingError(f"--tracking {settings.uri}: MLflow did not take the scores; run the command again.")


def _show(found: "CaptionScores", *, as_json: bool) -> None:
    from emocap_pretrain.generation.scoring import FLOORS

    if as_json:
        tree: dict[str, Any] = asdict(replace(found, captions=()))
        say_json({name: value for name, value in tree.items() if name not in {"captions", "outcomes", "samples"}})
        return
    columns = ("metric", "captioner", "95 % interval", *FLOORS.values())
    rows = [
        (each.title, _number(each.value), _interval(each.interval), *(_number(each.floors[name]) for name in FLOORS))
        for each in found.metrics
    ]
    console.print(tables.grid("Captions of unseen persons", columns, rows, left=1))
    above = [(each.title, *(_difference(each, name) for name in FLOORS)) for each in found.metrics]
    columns = ("metric", *(f"over {title}" for title in FLOORS.values()))
    console.print(tables.grid("Differences, with paired 95 % intervals over persons", columns, above, left=1))
    console.print(f"{found.images:,} images of {found.persons:,} persons.")
    _say_left_out(found.known, found.left_out)


def _say_left_out(known: int, left_out: Mapping[str, int]) -> None:
    if known:
        console.print(f"left out: {known:,} x the person is in the training data")
    for kind, count in left_out.items():
        console.print(f"left out: {count:,} x {kind}")


def _difference(result: "MetricResult", floor: str) -> str:
    return f"{result.differences[floor]:+.3f} {_interval(result.intervals[floor])}"


def _interval(bounds: tuple[float, float]) -> str:
    return "[{:.3f}, {:.3f}]".format(*bounds)


def _number(value: float) -> str:
    return f"{value:.3f}"
