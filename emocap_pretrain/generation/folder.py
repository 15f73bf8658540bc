"""Defines the folder of a captioner: what it was made of, and the states of its two trainings.

    captioner.json           the digests of tower, language model and data, the prompt, how it was trained
    captioner.safetensors    the projector that sees the image, with the moments of its training
    without_image.safetensors  the same training without the image, which is a floor (`floors.py`)
    patches/                 vectors of the tower (`patches.py`)

The folder names no file and no address outside of it, so nothing that a stranger wrote into it is opened.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from emocap_shards.store import Store, open_store
from pydantic import Field

from emocap_pretrain.errors import CheckpointError, ConfigError
from emocap_pretrain.generation.captioner import Captioner, Precision
from emocap_pretrain.generation.language_model import LanguageModel
from emocap_pretrain.generation.patches import PatchSettings
from emocap_pretrain.generation.projector import Projector
from emocap_pretrain.generation.training import ProjectorTrainingConfig, read_state
from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.storage import DocumentKind, Unreadable

DOCUMENT = "captioner.json"
PATCHES = "patches"
Kind = Literal["captioner", "without_image"]
_SMALL = Annotated[int, Field(ge=1, le=1 << 20)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionerDocument:
    """Holds `captioner.json`.

    Attributes:
        model: The digest of the model whose image tower is used.
        language_model: The digest of the language model.
        data: The digest of the training images, their captions and their vectors.
        images: The patches and captions that are used.
        tokens: Number of tokens of an image.
        patch_width: Size of the vector of a patch.
        prompt: The text before the caption.
        most_tokens: Largest number of tokens of a caption.
        precision: The precision of the products.
        training: How the projector was trained.
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


CAPTIONER = DocumentKind(CaptionerDocument)


@dataclass(frozen=True, slots=True)
class CaptionerFolder:
    """Reads and writes the folder of a captioner."""

    path: Path

    @property
    def store(self) -> Store:
        return open_store(str(self.path))

    @property
    def patches(self) -> Path:
        return self.path / PATCHES

    def begin(self, document: CaptionerDocument) -> None:
        """Writes the document, or checks that the folder holds the same one.

        Raises:
            ConfigError: If the folder holds a captioner that was made of something else.
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
            ConfigError: If there is none, or it cannot be read.
        """
        found = storage.read(self.store, DOCUMENT, CAPTIONER)
        if not isinstance(found, CaptionerDocument):
            raise ConfigError(
                f"{found or f'{self.path} has no {DOCUMENT}'}: train a captioner with emocap caption train."
            )
        return found

    def trained(self, document: CaptionerDocument, language: LanguageModel, kind: Kind) -> Captioner:
        """Returns a captioner with its newest weights.

        Raises:
            ConfigError: If the language model is another one than in training.
            CheckpointError: If the training is not finished, or its state cannot be read.
        """
        if language.digest != document.language_model:
            raise ConfigError(f"{self.path} was trained with another language model: give the same --lm.")
        captioner = new_captioner(document, language)
        step = read_state(self.store, state_file(kind), captioner.projector)
        if step < document.training.steps:
            raise CheckpointError(
                f"{self.path}: {state_file(kind)} has {step} of {document.training.steps} steps: finish it with emocap "
                "caption train."
            )
        captioner.projector.eval()
        return captioner


def new_captioner(document: CaptionerDocument, language: LanguageModel) -> Captioner:
    """Returns a captioner with the first weights of a training."""
    projector = Projector(document.patch_width, language.width, seed=document.training.seed)
    return Captioner(projector.to(language.device), language, document.prompt, document.most_tokens, document.precision)


def state_file(kind: Kind) -> str:
    return f"{kind}.safetensors"


def _changes(found: CaptionerDocument, wanted: CaptionerDocument) -> list[str]:
    """Returns the names of what differs; how often the state is saved changes nothing."""

    def flat(document: CaptionerDocument) -> dict[str, object]:
        values = {field.name: getattr(document, field.name) for field in fields(document)}
        return {**values, **asdict(values.pop("training")), **asdict(values.pop("images")), "save_every_steps": None}

    before, now = flat(found), flat(wanted)
    return [name.replace("_", " ") for name in now if before[name] != now[name] and name not in {"training", "images"}]
