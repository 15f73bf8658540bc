"""Trains a captioner from a model, a packed dataset and a language model, as `emocap caption train` does.

Two projectors are trained in the same way: that of the captioner, and one that sees the same mean patch vectors in
place of every image. The second gives a baseline (floor) when the captioner is scored (`scoring.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from emocap_shards.inspecting.wording import counted

from emocap_pretrain.generation.captioner import PROMPT, Precision
from emocap_pretrain.generation.folder import CaptionerDocument, CaptionerFolder, Kind, new_captioner, state_file
from emocap_pretrain.generation.language_model import LanguageModel
from emocap_pretrain.generation.patches import PatchFiles, PatchSettings, computed_patches
from emocap_pretrain.generation.training import ProjectorTrainingConfig, train
from emocap_pretrain.inference.embedder import Embedder

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
        """Returns the precision for a model on the device. "auto" means bf16 on a CUDA GPU, and float32 elsewhere."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if device.startswith("cuda") else "float32"


def make(
    folder: CaptionerFolder,
    embedder: Embedder,
    language: LanguageModel,
    url: str,
    settings: CaptionerSettings,
    *,
    kinds: tuple[Kind, ...] = ("captioner", "without_image"),
    say: Callable[[str], object],
) -> CaptionerDocument:
    """Computes the patch vectors, trains one projector of each kind, and returns the document of the folder.

    What the folder already has is not computed again: unfinished trainings resume from their newest states.

    Args:
        folder: The folder of the captioner.
        embedder: The model whose image tower is used.
        language: The language model.
        url: The packed dataset with captions.
        settings: What the user chooses.
        kinds: What is trained, in this order: "captioner" is a projector that reads the patches of the images, and
            "without_image" one that reads the mean patch vectors of the dataset in place of every image.
        say: Called with each line about the progress.

    Raises:
        ConfigError: If the folder holds another captioner, or a setting does not fit the model or the data.
        DataError: If no image has a caption.
        ShardsError: If the dataset cannot be read.
        StoreError: If a file in the folder cannot be written.
        CheckpointError, TrainingError: As `train` raises them.
    """
    data = computed_patches(embedder, url, settings.images, folder.patches, report=_parts(say))
    tokens, width = data.shape
    document = CaptionerDocument(
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
    folder.begin(document)
    _say_about(data, document, language, say)
    for kind in kinds:
        captioner = new_captioner(document, language)
        blank = None if kind == "captioner" else data.mean_patches()
        report = _steps(kind, settings.training.steps, say)
        train(captioner, data, settings.training, folder.store, state_file(kind), blank=blank, report=report)
    return document


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


def _steps(kind: Kind, steps: int, say: Callable[[str], object]) -> Callable[[int, float], None]:
    title = kind.replace("_", " ")

    def report(step: int, loss: float) -> None:
        if step % SAID_EVERY_STEPS == 0 or step == steps:
            say(f"{title}: step {step:,} of {steps:,}, loss {loss:.3f}")

    return report
