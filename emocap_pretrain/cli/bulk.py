"""Defines `emocap embed` and `emocap predict`, which compute the vectors or the scores of many images.

The package `bulk` does the work. This module converts the options, chooses between this process and a Ray cluster, and
shows progress and results.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from emocap_shards.inspecting.wording import counted
from emocap_shards.writing.packing import described
from tqdm import tqdm

from emocap_pretrain import run
from emocap_pretrain.cli.options import (
    ChosenActivation,
    ChosenWeights,
    Debug,
    Device,
    OnRay,
    PromptFile,
    Step,
    lines_of,
    parsed_classes,
)
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.logs import show_logs
from emocap_pretrain.terminal import console, errors_as_lines

if TYPE_CHECKING:
    from emocap_pretrain.bulk.compute import Advance, Computation, Work
    from emocap_pretrain.bulk.inputs import BulkInput
    from emocap_pretrain.bulk.joining import RowCounts
    from emocap_pretrain.bulk.parts import OutputPart
    from emocap_pretrain.bulk.scorers import ModelSource, Prompts, Scorer
    from emocap_pretrain.data.videos import Sampling
    from emocap_pretrain.faces.detection import FaceComputation
    from emocap_pretrain.faces.landmarks import LandmarkComputation
    from emocap_pretrain.inference.model import EmotionModel
    from emocap_pretrain.ranks.group import RankGroup

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A run, an export, or a model of another library.")]
Source = Annotated[
    str,
    typer.Argument(metavar="INPUT", help="A packed dataset, a folder of images and videos, a table, or a video."),
]
Out = Annotated[Path, typer.Option(help="The new file: .parquet, .csv or .npz.")]
Format = Annotated[
    Literal["parquet", "csv", "npz"] | None, typer.Option("--format", help="Format; default by the suffix of --out.")
]
Batch = Annotated[int, typer.Option(help="Images of one pass of the tower.", min=1)]
Image = Annotated[str, typer.Option(help="Column of a table with the paths of images or videos.")]
ImageRoot = Annotated[
    Path | None, typer.Option(help="Folder to which paths of a table are relative, and which they must not leave.")
]
Fps = Annotated[float | None, typer.Option(help="Frames per second that are read of a video; default 1.")]
Every = Annotated[int | None, typer.Option(help="Read every nth frame of a video instead.", min=1)]
PartImages = Annotated[int, typer.Option(help="Images of one part, which is the unit of resuming.", min=1)]
Workers = Annotated[
    int | None, typer.Option(help="Workers on Ray; default one for each GPU, or for every 4 cores.", min=1)
]
Force = Annotated[bool, typer.Option("--force", help="Start anew, and replace the output.")]


@dataclass(frozen=True, slots=True)
class _Request:
    """The options that both commands have."""

    model: "ModelSource"
    source: str
    out: Path
    kind: Literal["parquet", "csv", "npz"] | None
    batch: int
    image: str
    image_root: Path | None
    fps: float | None
    every: int | None
    part_images: int
    ray: bool
    workers: int | None
    force: bool


def embed_command(  # noqa: PLR0913, PLR0917 - one argument for each option
    model: Model,
    source: Source,
    out: Out,
    kind: Format = None,
    step: Step = None,
    weights: ChosenWeights = None,
    activation: ChosenActivation = None,
    device: Device = "auto",
    batch: Batch = 64,
    image: Image = "image",
    image_root: ImageRoot = None,
    fps: Fps = None,
    every: Every = None,
    part_images: PartImages = 1024,
    ray: OnRay = False,
    workers: Workers = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Write the vectors of many images or frames of videos.

    No face is detected: the model reads the central square of an image or, if it was published so, the whole image. The
    same command resumes an interrupted one.
    """
    from emocap_pretrain.bulk.scorers import ModelSource

    show_logs()
    with errors_as_lines(debug=debug):
        of = ModelSource(model, step, weights, device, activation)
        asked = _Request(of, source, out, kind, batch, image, image_root, fps, every, part_images, ray, workers, force)
        _run(asked, "embedding", None)


def predict_command(  # noqa: PLR0913, PLR0917 - one argument for each option
    model: Model,
    source: Source,
    out: Out,
    classes: Annotated[
        str | None,
        typer.Option(help="joy,fear or, with words for the prompts, {joy: delight, fear: panic}; default FER+'s."),
    ] = None,
    prompts: PromptFile = None,
    sentences: Annotated[
        str | None, typer.Option(metavar="FILE", help="YAML file of sentences to score; none; default those of FACS.")
    ] = None,
    kind: Format = None,
    step: Step = None,
    weights: ChosenWeights = None,
    activation: ChosenActivation = None,
    device: Device = "auto",
    batch: Batch = 64,
    image: Image = "image",
    image_root: ImageRoot = None,
    fps: Fps = None,
    every: Every = None,
    part_images: PartImages = 1024,
    ray: OnRay = False,
    workers: Workers = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Write the scores of classes and of sentences for many images or frames of videos.

    No face is detected: the model reads the central square of an image or, if it was published so, the whole image. The
    scores are not calibrated probabilities. If the model was trained on labels, its head predicts them, unless classes,
    prompts or sentences are given. The same command resumes an interrupted one.
    """
    from emocap_pretrain.bulk.scorers import ModelSource

    show_logs()
    with errors_as_lines(debug=debug):
        of = ModelSource(model, step, weights, device, activation)
        asked = _Request(of, source, out, kind, batch, image, image_root, fps, every, part_images, ray, workers, force)
        named = (classes, prompts, sentences) != (None, None, None)
        _run(asked, "predicting", _prompts(classes, prompts, sentences or "facs"), prefer_head=not named)


def _prompts(classes: str | None, prompts: Path | None, sentences: str) -> "Prompts":
    from emocap_pretrain.bulk.scorers import Prompts
    from emocap_pretrain.bulk.sentences import read_sentences
    from emocap_pretrain.captions.grammar.emotions import EMOTIONS
    from emocap_pretrain.inference.classes import checked_templates, words_of_classes
    from emocap_pretrain.inference.facs import FACS

    templates = EvaluationConfig().templates if prompts is None else lines_of(prompts)
    file = FACS if sentences == "facs" else Path(sentences)
    return Prompts(
        checked_templates(templates),
        words_of_classes(EMOTIONS if classes is None else parsed_classes(classes)),
        {} if sentences == "none" else read_sentences(file),
    )


def _run(request: _Request, verb: str, prompts: "Prompts | None", *, prefer_head: bool = False) -> None:
    """Opens the input and the model, and writes the output: scores if there are prompts, and vectors otherwise.

    With `prefer_head`, the head of a model that was trained on labels takes the place of the prompts.
    """
    from emocap_pretrain.bulk import joining
    from emocap_pretrain.bulk.compute import Computation
    from emocap_pretrain.bulk.inputs import open_input
    from emocap_pretrain.bulk.scorers import HeadOutputs, digest_of
    from emocap_pretrain.data.videos import need_av

    out = output_place(request.out)
    kind = joining.format_of(out, request.kind)
    sampling = sampling_of(request.fps, request.every)
    if request.workers is not None and not request.ray:
        raise ConfigError("--workers is the number of workers on Ray: add --ray, or leave it out.")
    found = open_input(request.source, image=request.image, image_root=request.image_root)
    if found.has_videos:
        need_av()
    # On Ray the workers compute, and this process may have no GPU.
    model = (replace(request.model, device="cpu") if request.ray else request.model).load()
    computation = Computation(
        model=request.model,
        digest=digest_of(model),
        prompts=HeadOutputs() if prefer_head and model.embedder.model.labels else prompts,
        folder=str(out.with_name(f"{out.name}.parts")),
        has_videos=found.has_videos,
        batch_size=request.batch,
        sampling=sampling,
    )
    scorer = computation.scorer(model)
    state = _state(request, computation, model, found.digest)
    output = Output(request.out, kind, request.part_images, force=request.force)

    def compute(works: "Iterator[Work]", bar: BulkBar) -> None:
        if request.ray:
            use_gpus = request.model.device != "cpu"
            on_ray(computation.started, works, request.workers, bar, use_gpus=use_gpus)
        else:
            computation.compute(works, scorer, bar.show)

    output.write(found, verb, state, _about(state, scorer), compute)


@dataclass(frozen=True, slots=True)
class Output:
    """Holds where the rows of many pictures are written, and how.

    Attributes:
        out: The file of the output.
        kind: The format of the file.
        part_images: Number of images of one part, which is the unit of resuming.
        force: Whether parts of an earlier start are deleted, and an existing output is replaced.
    """

    out: Path
    kind: Literal["parquet", "csv", "npz"]
    part_images: int
    force: bool

    def write(
        self,
        found: "BulkInput",
        verb: str,
        state: dict[str, Any],
        about: dict[str, Any],
        compute: "Callable[[Iterator[Work], BulkBar], None]",
        world: "RankGroup | None" = None,
    ) -> None:
        """Computes all parts that are missing, joins all parts to the output, and prints a summary.

        This is a collective. Each rank computes every `world_size`-th part that is missing, and rank 0 does the rest.

        Args:
            found: The input.
            verb: The word before the bar of progress, such as "embedding".
            state: Everything that decides what the parts contain. Parts of an earlier start are used only if the
                earlier state was equal.
            about: Facts that are stored in the output.
            compute: Computes the given parts, and reports each of them to the bar of progress.
            world: All ranks, in a group from `RankGroup.patient`; None if this process is alone.

        Raises:
            ConfigError: If the output exists, another process is writing it, earlier parts have another state, or the
                ranks have different states.
            StoreError: If a file cannot be written, or the file of a part is damaged.
            LostContact: If another rank has failed.
        """
        from emocap_pretrain.bulk import joining, part_folder
        from emocap_pretrain.bulk.compute import Work
        from emocap_pretrain.bulk.parts import cut
        from emocap_pretrain.ranks.group import ALONE

        world = world or ALONE
        place = output_place(self.out)
        parts = list(cut(found.weights(), self.part_images))
        if any(each != state for each in world.gather(state)):
            raise ConfigError("the ranks read different models or inputs: give all of them the same ones.")
        with ExitStack() as stack:
            folders: list[part_folder.PartFolder] = []  # Only rank 0 adds one: it holds the lock of the output.

            def begin() -> "list[OutputPart]":
                folders.append(stack.enter_context(part_folder.opened(place, state, force=self.force)))
                return folders[0].missing(parts)

            missing = world.run_on_main(begin)
            mine = missing[world.rank :: world.world_size]
            works = (Work(part, found.slice(part.start, part.stop)) for part in mine)
            done, own = (sum(part.weight for part in each) for each in (set(parts) - set(missing), mine))
            with BulkBar(verb, done + own, done, shown=world.is_main) as bar:  # It shows the share of rank 0.
                computed = sum(world.run_on_all(lambda: _pictures(compute, works, bar)))

            def end() -> "RowCounts":
                tables = joining.PartTables([folders[0].file(part) for part in parts])
                joining.join(tables, place, self.kind, about)
                counts = tables.counts()
                folders[0].delete()
                return counts

            counts = world.run_on_main(end)
        if world.is_main:
            _summarise(self.out, counts, bar, computed, resumed=len(missing) < len(parts))
            if found.left_out:
                console.print(f"Other files were not read: {described(found.left_out)}.")


def _pictures(compute: "Callable[[Iterator[Work], BulkBar], None]", works: "Iterator[Work]", bar: "BulkBar") -> int:
    """Computes parts, and returns the number of their pictures."""
    compute(works, bar)
    return bar.pictures


def output_place(out: Path) -> Path:
    """Returns the absolute path of the output, after a check that the option names a file on a disk.

    Raises:
        ConfigError: If the option is a URL or names a folder.
    """
    if re.match(r"[a-z][a-z0-9+]*:/", str(out)):
        raise ConfigError(f"--out {out}: the output is a file on a disk; write it there, and copy it to the URL.")
    path = out.expanduser().absolute()
    if path.is_dir():
        raise ConfigError(f"--out {out} is a folder: name a file in it.")
    return path


def on_ray(
    start: "Callable[[], Callable[[Work], Advance]]",
    works: "Iterator[Work]",
    workers: int | None,
    bar: "BulkBar",
    *,
    use_gpus: bool,
) -> None:
    """Computes the parts on the workers of a Ray cluster, which write their files into the same folder.

    Each worker calls `start` once, which returns the function that computes a part.
    """
    from emocap_cluster.cluster import connected
    from emocap_cluster.mapping import WorkerResources, map_items

    with connected(run.RANK_ENVIRONMENT | run.chosen(run.OPEN)) as cluster:
        resources = WorkerResources.of(cluster.nodes(), workers=workers, use_gpus=use_gpus)
        for advance in map_items(start, works, resources, env=run.chosen(run.SECRET)):
            bar.show(advance)


def write_from_processes(
    output: Output,
    found: "BulkInput",
    computation: "LandmarkComputation | FaceComputation",
    state: dict[str, Any],
    *,
    ray: bool,
    workers: int | None,
) -> None:
    """Writes what the processes of MediaPipe find, computed by this process or on a Ray cluster.

    `state` holds the options that decide the output; the program, the input and the size of the parts are added.

    Raises:
        ConfigError: If the environment of MediaPipe cannot be made, or `Output.write` refuses the output.
        DataError: If a process ends.
        StoreError: If a file cannot be written.
    """
    from emocap_pretrain.faces.processes import MEDIAPIPE, program_digest

    if not ray:
        MEDIAPIPE.python(console.print)  # Before the bar, whose rate would count the installation.
    state = {**state, "program": program_digest(), "input": found.digest, "part_images": output.part_images}

    def compute(works: "Iterator[Work]", bar: BulkBar) -> None:
        if ray:
            on_ray(computation.started, works, workers, bar, use_gpus=False)
        else:
            with computation.scorer() as scorer:
                computation.compute(works, scorer, bar.show)

    output.write(found, "finding", state, state, compute)


def sampling_of(fps: float | None, every: int | None) -> "Sampling":
    """Returns which frames of videos are read.

    Raises:
        ConfigError: If both options are given.
    """
    from emocap_pretrain.data.videos import Sampling

    if fps is not None and every is not None:
        raise ConfigError("--fps and --every both choose the frames of a video: give one of them.")
    return Sampling(1.0 if fps is None else fps, every)


def _state(request: _Request, computation: "Computation", model: "EmotionModel", digest: str) -> dict[str, Any]:
    """Returns everything that decides what the parts contain.

    A command uses the parts of an interrupted one only if both have equal states.
    """
    from pydantic_core import to_jsonable_python

    from emocap_pretrain.bulk.scorers import HeadOutputs

    return {
        "command": "embed" if computation.prompts is None else "predict",
        "step": model.step,
        "model": computation.digest,
        "input": digest,
        "batch": request.batch,
        "part_images": request.part_images,
        "sampling": to_jsonable_python(computation.sampling) if computation.has_videos else None,
        "prompts": "head" if isinstance(computation.prompts, HeadOutputs) else to_jsonable_python(computation.prompts),
    }


def _about(state: dict[str, Any], scorer: "Scorer") -> dict[str, Any]:
    """Returns what is stored with the output: the state, and what each column of sentences is compared with."""
    from emocap_pretrain.bulk.scorers import PredictionScorer

    return {**state, **({"aligned_with": scorer.aligned_with} if isinstance(scorer, PredictionScorer) else {})}


class BulkBar(AbstractContextManager["BulkBar"]):
    """Shows the share of the input that is done, the remaining time, and the numbers of images and errors."""

    def __init__(self, verb: str, total: float, done: float, *, shown: bool = True) -> None:
        """Shows the bar.

        Args:
            verb: The word before the bar.
            total: The weight of all items.
            done: The weight of the items that an earlier process has computed.
            shown: Whether there is a bar. The numbers of images and errors are counted in any case.
        """
        self._bar: tqdm[NoReturn] = tqdm(
            total=total,
            initial=done,
            desc=verb,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            disable=None if shown else True,
            smoothing=0.1,
            dynamic_ncols=True,
            leave=False,
        )
        self._begun = time.monotonic()
        self.pictures = self.errors = 0

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def rate(self, pictures: int) -> float:
        """Returns the images per second if `pictures` images were computed since the bar was shown."""
        return pictures / max(time.monotonic() - self._begun, 1e-3)

    def show(self, advance: "Advance") -> None:
        self.pictures += advance.pictures
        self.errors += advance.errors
        failed = f", {counted(self.errors, 'error')}" if self.errors else ""
        self._bar.set_postfix_str(f"{counted(self.pictures, 'image')}{failed}", refresh=False)
        self._bar.update(advance.weight)


def _summarise(out: Path, counts: "RowCounts", bar: BulkBar, computed: int, *, resumed: bool) -> None:
    parts = [counted(counts.rows, "row")]
    if resumed:
        parts.append(f"{counts.rows - computed:,} of them from an earlier start")
    if counts.errors:
        parts.append(f"{counts.errors:,} with an error")
    if computed > 100:  # The rate of fewer images says little.
        parts.append(f"{bar.rate(computed):,.0f} images/s")
    console.print(f"{out}: {', '.join(parts)}.")
    for name, error in counts.examples:
        console.print(f"  {name}: {error}")
    if counts.errors > len(counts.examples):
        console.print(f"  The column error names the other {counts.errors - len(counts.examples):,}.")
