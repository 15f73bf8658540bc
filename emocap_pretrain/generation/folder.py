"""Defines the folder of a captioner: what the captioner was made of, and the checkpoints of its two trainings.

    captioner.json   the digests of model, language model and data, the prompt, how the projector is trained
    captioner/       the checkpoints of the projector that reads the patches of the images
    without_image/   those of a training that sees no image, a baseline (floor) of `scoring.py`
    patches/         the vectors of the image tower (`patches.py`)
    attempts/        one document for each start of a training
    tracked.json     the id of the run in MLflow, if there is one (`tracked.py`)
    unsent.json      what MLflow has not accepted yet

No file of the folder names a file or an address outside of the folder. So if a stranger wrote the folder, nothing else
that they chose is opened.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from emocap_shards.store import Store, open_store
from pydantic import Field

from emocap_pretrain.config.fields import Precision
from emocap_pretrain.errors import CheckpointError, ConfigError
from emocap_pretrain.generation.captioner import Captioner
from emocap_pretrain.generation.language_model import LanguageModel
from emocap_pretrain.generation.patches import PatchSettings
from emocap_pretrain.generation.projector import Projector
from emocap_pretrain.generation.training import ProjectorTrainingConfig, read_weights
from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.storage import DocumentKind, Unreadable

DOCUMENT = "captioner.json"
PATCHES = "patches"
Kind = Literal["captioner", "without_image"]
_SMALL = Annotated[int, Field(ge=1, le=1 << 20)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionerDocument:
    """Holds the content of `captioner.json`, which is written before the training begins.

    Attributes:
        model: The digest of the model whose image tower is used.
        language_model: The digest of the language model.
        data: `PatchFiles.digest` of the training data: a digest of the model and its crop, the manifest of the dataset,
            `images` and the batch size of the image tower. The vectors themselves are not part of it.
        images: Which texts, patches and persons are read from the dataset.
        tokens: Number of tokens of an image in the prompt.
        patch_width: Size of the vector of a patch.
        prompt: The text before the caption. It contains `IMAGE` exactly once.
        most_tokens: Largest number of tokens of a caption, including its end token.
        precision: The precision of the matrix multiplications (`Captioner.precision`).
        training: How the projector is trained.
    """

    model: str
    language_model: str
    data: str
    images: PatchSettings
    tokens: _SMALL
    patch_width: _SMALL
    prompt: Annotated[str, Field(max_length=10_000)]
    most_tokens: _SMALL
    precision: Precision
    training: ProjectorTrainingConfig


def _of_another_loop(_body: Any) -> NoReturn:
    raise ValueError("an older version wrote it, which trained in another way")


# Schema 1 had a single file for each training, with the moments of AdamW.
CAPTIONER = DocumentKind(CaptionerDocument, (lambda body: body, _of_another_loop))


@dataclass(frozen=True, slots=True)
class CaptionerFolder:
    """Reads and writes the folder of a captioner, which lies at `path` on this machine."""

    path: Path

    @property
    def store(self) -> Store:
        return open_store(str(self.path))

    @property
    def patches(self) -> Path:
        return self.path / PATCHES

    def checkpoints(self, kind: Kind) -> Store:
        """Returns the store that holds the checkpoints of a training."""
        return open_store(str(self.path / kind))

    def begin(self, document: CaptionerDocument) -> None:
        """Writes the document if the folder has none, and otherwise checks that the folder holds the same one.

        Only `save_every_steps` of the training may differ. The document in the folder then stays as it is.

        Raises:
            ConfigError: If the document in the folder cannot be read, or differs in anything else.
            StoreError: If the document cannot be written.
        """
        found = storage.read(self.store, DOCUMENT, CAPTIONER)
        if found is None:
            self.store.put(DOCUMENT, CAPTIONER.dump(document))
            return
        if isinstance(found, Unreadable):
            raise ConfigError(f"{found}: choose another --out.")
        if changes := _changes(found, document):
            raise ConfigError(
                f"--out {self.path} holds a captioner with another {', '.join(changes)}: give the same arguments to "
                "resume, or choose another --out."
            )

    def document(self) -> CaptionerDocument:
        """Returns the document of the folder.

        Raises:
            ConfigError: If the folder has no document, or the document cannot be read.
        """
        found = storage.read(self.store, DOCUMENT, CAPTIONER)
        if not isinstance(found, CaptionerDocument):
            raise ConfigError(
                f"{found or f'{self.path} has no {DOCUMENT}'}: train a captioner with emocap caption train."
            )
        return found

    def trained(self, document: CaptionerDocument, language: LanguageModel, kind: Kind) -> Captioner:
        """Returns a captioner with the weights at the end of its training, and with its projector in evaluation mode.

        Args:
            document: The document of the folder.
            language: The language model with which the projector was trained.
            kind: Which of the two trainings is read: "captioner", or "without_image" for the training without images.

        Raises:
            ConfigError: If `language` is not the language model of the training.
            CheckpointError: If the training has not started or is not finished, or if its state cannot be read.
        """
        if language.digest != document.language_model:
            raise ConfigError(f"{self.path} was trained with another language model: give the same --lm.")
        captioner = new_captioner(document, language)
        steps = document.training.steps
        step = read_weights(captioner, self.checkpoints(kind), document.training)
        if step < steps:
            raise CheckpointError(
                f"{self.path / kind} has {step} of {steps} steps: finish the training with emocap caption train."
            )
        captioner.projector.eval()
        return captioner


def new_captioner(document: CaptionerDocument, language: LanguageModel) -> Captioner:
    """Returns a captioner whose projector has the initial weights that the seed of the training determines."""
    projector = Projector(document.patch_width, language.width, seed=document.training.seed)
    return Captioner(projector.to(language.device), language, document.prompt, document.most_tokens, document.precision)


def _changes(found: CaptionerDocument, wanted: CaptionerDocument) -> list[str]:
    """Returns the names of the fields in which two documents differ, such as "batch" or "optimizer.lr".

    `save_every_steps` is ignored, because how often the state is saved changes no result.
    """

    def flat(document: CaptionerDocument) -> dict[str, object]:
        values = {field.name: getattr(document, field.name) for field in fields(document)}
        values |= {**asdict(values.pop("training")), **asdict(values.pop("images")), "save_every_steps": None}
        of_optimizer = document.training.optimizer.model_dump().items()
        return {**values, "optimizer": None, **{f"optimizer.{name}": value for name, value in of_optimizer}}

    before, now = flat(found), flat(wanted)
    return [name.replace("_", " ") for name in now if before[name] != now[name]]
