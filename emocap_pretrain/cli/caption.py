"""Defines `emocap caption`: trains a captioner on a frozen image tower, scores it, and writes captions of images.

The package `generation` does the work. The user names the model and the language model in each command, because nothing
that the folder of a captioner names is opened (docs/security.md). A command compares the digests of these two models
with the digests of the models with which the captioner was trained.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from emocap_pretrain.cli import tables
from emocap_pretrain.cli.bulk import (
    Batch,
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
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.logs import show_logs
from emocap_pretrain.terminal import Command, Group, console, errors_as_lines, say_json

if TYPE_CHECKING:
    from emocap_pretrain.bulk.scorers import ModelSource
    from emocap_pretrain.evaluation.result_file import ResultFile
    from emocap_pretrain.generation.folder import CaptionerDocument, CaptionerFolder
    from emocap_pretrain.generation.language_model import LanguageModel
    from emocap_pretrain.generation.scoring import CaptionScores, MetricResult
    from emocap_pretrain.inference.model import EmotionModel

app = typer.Typer(cls=Group, help="Train, score and use a model that writes captions of images.", no_args_is_help=True)
Data = Annotated[str, typer.Argument(metavar="DATA", help="A packed dataset with captions.")]
Language = Annotated[
    str,
    typer.Option(
        "--lm", metavar="LM", help="Causal language model: a folder, a GGUF file (or package:NAME/FILE), a hub name."
    ),
]
Folder = Annotated[Path, typer.Option("--captioner", metavar="FOLDER", help="Folder of the trained captioner.")]


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
    image_tokens: Annotated[int, typer.Option(help="Largest number of tokens of an image: a square.")] = 16,
    most_tokens: Annotated[int, typer.Option(help="Largest number of tokens of a caption.", min=2)] = 48,
    prompt: Annotated[
        str | None, typer.Option(help="Text before the caption, with <image> where the image is.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Number of updates of each training.")] = 1000,
    batch: Annotated[int, typer.Option(help="Images of an update.")] = 16,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = 1e-3,
    warmup_steps: Annotated[int, typer.Option(help="Updates until the largest learning rate.")] = 30,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.0,
    precision: Annotated[
        Literal["auto", "float32", "bf16"], typer.Option(help="Precision of the products; auto is bf16 on a GPU.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the first weights and of the order of the images.")] = 0,
    save_every_steps: Annotated[int, typer.Option(help="Updates between two saves.")] = 50,
    step: Step = None,
    weights: ChosenWeights = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Train a projector from the patches of a frozen image tower to a frozen language model.

    A second training without the image follows, whose captions are a baseline (floor) of emocap caption score. If a
    training was interrupted, the same command resumes it.
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
            training=ProjectorTrainingConfig(steps, batch, lr, warmup_steps, weight_decay, seed, save_every_steps),
            prompt=PROMPT if prompt is None else prompt,
            most_tokens=most_tokens,
            precision=precision,
        )
        embedding, language = _loaded(ModelSource(model, step, weights, device), lm)
        make(CaptionerFolder(out), embedding.embedder, language, data, settings, say=console.print)
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

        need_libraries()
        folder, document, embedding, language = _trained(captioner, ModelSource(model, step, weights, device), lm)
        found = score(
            folder.trained(document, language, "captioner"),
            folder.trained(document, language, "without_image"),
            opened_patches(folder.patches, document.data),
            computed_patches(embedding.embedder, data, document.images, folder.patches),
        )
        _show(found, as_json=as_json)
        if save:
            result_file.save(save, _saved(found, model, data, document))
        if captions:
            lines = (json.dumps(each, ensure_ascii=False) for each in found.captions)
            write_text("--captions", captions, "".join(f"{line}\n" for line in lines))


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
        folder, document, embedding, language = _trained(captioner, of, lm)
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
        output.write(found, "captioning", state, state, lambda works, bar: computation.compute(works, scorer, bar.show))


def _loaded(source: "ModelSource", lm: str) -> "tuple[EmotionModel, LanguageModel]":
    """Returns the model and the language model, on the same device.

    The language model is opened first, so that a wrong name of it is reported before the other model is loaded.

    Raises:
        ConfigError: If the language model cannot be read, or the device does not exist. Further errors are those of
            `emocap_pretrain.load`.
    """
    from emocap_pretrain.generation.language_model import load_language_model
    from emocap_pretrain.inference.model import chosen_device

    language = load_language_model(lm, device=chosen_device(source.device))
    return source.load(), language


def _trained(
    captioner: Path, source: "ModelSource", lm: str
) -> "tuple[CaptionerFolder, CaptionerDocument, EmotionModel, LanguageModel]":
    """Returns the folder of a captioner, its document, and the two models with which it was trained.

    Raises:
        ConfigError: If the folder or a model cannot be read, or if the captioner was trained with another model.
    """
    from emocap_pretrain.generation.folder import CaptionerFolder

    folder = CaptionerFolder(captioner)
    document = folder.document()
    model, language = _loaded(source, lm)
    if model.embedder.digest() != document.model:
        raise ConfigError(f"{captioner} was trained with another model or step: give the same MODEL and --step.")
    return folder, document, model, language


def _saved(found: "CaptionScores", model: str, data: str, document: "CaptionerDocument") -> "ResultFile":
    from emocap_shards.mask import masked_url

    from emocap_pretrain.evaluation.result_file import EvaluatedModel, ResultFile
    from emocap_pretrain.generation.report import task_result

    of = EvaluatedModel(Path(model).name[:200], masked_url(model), digest=document.model)
    return ResultFile.of(of, [task_result(found, masked_url(data))], {})


def _show(found: "CaptionScores", *, as_json: bool) -> None:
    from emocap_pretrain.generation.scoring import FLOORS

    if as_json:
        tree: dict[str, Any] = asdict(found)
        say_json({name: value for name, value in tree.items() if name != "captions"})
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
