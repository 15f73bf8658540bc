"""Trains a captioner from a model, a packed dataset and a language model on all ranks, as `emocap caption train` does.

Two projectors are trained in the same way: that of the captioner, and one that sees the same mean patch vectors in
place of every image. The second gives a baseline (floor) when the captioner is scored (`scoring.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from emocap_shards.inspecting.wording import counted
from emocap_shards.mask import masked_url

from emocap_pretrain.config.fields import Precision
from emocap_pretrain.config.schema import TrackingConfig
from emocap_pretrain.data.datasets import dataset_use
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.generation.captioner import PROMPT
from emocap_pretrain.generation.folder import CAPTIONER, CaptionerDocument, CaptionerFolder, Kind, new_captioner
from emocap_pretrain.generation.language_model import LanguageModel
from emocap_pretrain.generation.patches import PatchFiles, PatchSettings, computed_patches
from emocap_pretrain.generation.tracked import check, tracked
from emocap_pretrain.generation.training import ProjectorTrainingConfig, Report, train
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.tracking.tracker import Tracker

SAID_EVERY_STEPS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionerSettings:
    """Holds what the user chooses about a captioner, besides the model, the language model and the dataset.

    Attributes:
        images: Which texts, patches and persons are read from the dataset.
        training: How the projector is trained.
        prompt: The text before the caption. It contains `IMAGE` exactly once.
        most_tokens: Largest number of tokens of a caption, including its end token.
        precision: The precision of the matrix multiplications (`Captioner.precision`), or "auto" (`precision_on`).
    """

    images: PatchSettings = PatchSettings()  # noqa: RUF009 - a frozen value
    training: ProjectorTrainingConfig = ProjectorTrainingConfig()  # noqa: RUF009 - a frozen value
    prompt: str = PROMPT
    most_tokens: int = 48
    precision: Precision | Literal["auto"] = "auto"

    def precision_on(self, device: str) -> Precision:
        """Returns the precision for a model on the device. "auto" means bf16 on a CUDA GPU, and fp32 elsewhere."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if device.startswith("cuda") else "fp32"


def make(
    folder: CaptionerFolder,
    embedder: Embedder,
    language: LanguageModel,
    url: str,
    settings: CaptionerSettings,
    world: RankGroup,
    *,
    kinds: tuple[Kind, ...] = ("captioner", "without_image"),
    tracking: TrackingConfig | None = None,
    say: Callable[[str], object],
) -> CaptionerDocument:
    """Computes the patch vectors, trains one projector of each kind, and returns the document of the folder.

    This is a collective: all ranks must call it, within a process group also if there is one rank. What the folder
    already has is not computed again: unfinished trainings resume from their newest checkpoints, on any number of
    ranks.

    Args:
        folder: The folder of the captioner, which all ranks reach under this path.
        embedder: The model whose image tower is used.
        language: The language model.
        url: The packed dataset with captions.
        settings: What the user chooses.
        world: All ranks.
        kinds: What is trained, in this order: "captioner" is a projector that reads the patches of the images, and
            "without_image" one that reads the mean patch vectors of the dataset in place of every image.
        tracking: Where the trainings are tracked; None tracks them nowhere.
        say: Called on rank 0 with each line about the progress.

    Raises:
        ConfigError: If the folder holds another captioner, the ranks have different models, or a setting does not fit
            the model, the data or the number of ranks.
        DataError: If no image has a caption.
        ShardsError: If the dataset cannot be read.
        StoreError: If a file in the folder cannot be written.
        LostContact: If another rank has failed.
        CheckpointError, TrainingError, Superseded: As `train` raises them.
        TrackingError: As `tracked` raises it.
    """
    settings.training.require_rows(world.world_size)
    everyone = world.patient("captions")
    say = say if world.is_main else _silent
    check(folder, tracking, everyone)
    data = computed_patches(embedder, url, settings.images, folder.patches, world=everyone, report=_parts(say))
    document = _document(embedder, language, data, settings)
    if len(set(everyone.gather(CAPTIONER.dump(document)))) > 1:
        raise ConfigError("the ranks have different language models or devices; give all of them the same ones.")
    everyone.run_on_main(lambda: folder.begin(document))
    number = everyone.run_on_main(lambda: Attempt.begin(folder.store, ranks=world.world_size).number)
    _say_about(data, document, language, say)
    with tracked(folder, document, tracking, everyone, number) as tracker:
        if tracker:
            tracker.log_datasets([dataset_use(url, masked_url(url), "training")])
        for kind in kinds:
            captioner = new_captioner(document, language)
            blank = None if kind == "captioner" else data.mean_patches()
            report, attempt = _report(kind, settings.training.steps, say, tracker), Attempt(folder.store, number)
            store = folder.checkpoints(kind)
            train(captioner, data, settings.training, store, world, attempt, blank=blank, report=report)
    return document


def _silent(_line: str) -> None:
    pass


def _document(
    embedder: Embedder, language: LanguageModel, data: PatchFiles, settings: CaptionerSettings
) -> CaptionerDocument:
    tokens, width = data.shape
    return CaptionerDocument(
        model=embedder.digest(),
        language_model=language.digest,
        data=data.digest,
        images=settings.images,
        tokens=tokens,
        patch_width=width,
        prompt=settings.prompt,
        most_tokens=settings.most_tokens,
        precision=settings.precision_on(language.device),
        training=settings.training,
    )


def _say_about(
    data: PatchFiles, document: CaptionerDocument, language: LanguageModel, say: Callable[[str], object]
) -> None:
    persons = len({image.person for image in data.images})
    say(f"{counted(len(data), 'image')} of {counted(persons, 'person')}, {document.tokens} tokens each.")
    for kind, count in data.left_out.items():
        say(f"left out: {count:,} x {kind}")
    captions = [caption for image in data.images for caption in image.captions]
    cut = sum(len(language.ids(caption)) >= document.most_tokens for caption in captions)
    if cut:
        say(f"{cut:,} of {len(captions):,} captions are cut to {document.most_tokens} tokens (--most-tokens).")


def _parts(say: Callable[[str], object]) -> Callable[[int, int], object]:
    return lambda done, images: say(f"patches of {done:,} of {images:,} images")


def _report(kind: Kind, steps: int, say: Callable[[str], object], tracker: Tracker | None) -> Report:
    title = kind.replace("_", " ")

    def report(step: int, metrics: Mapping[str, float]) -> None:
        if tracker:
            tracker.log_metrics({f"{kind}/{name}": value for name, value in metrics.items()}, step)
        if step % SAID_EVERY_STEPS == 0 or step == steps:
            say(f"{title}: step {step:,} of {steps:,}, loss {metrics['loss']:.3f}")

    return report
