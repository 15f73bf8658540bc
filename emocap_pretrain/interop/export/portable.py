"""Writes and reads our own portable form of a model: weights, tokenizer and the settings that build the model.

emocap.json         the settings, with a schema version
model.safetensors   the weights, as a checkpoint has them
tokenizer.json      the tokenizer

Somebody else may have made such a folder, so `read` trusts it as little as a checkpoint: all three files are data, and
the model must fit the weights before memory is allocated (`restore.model_of`). The settings name no dataset, server or
folder of the run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from emocap_shards.errors import StoreError
from emocap_shards.store import open_store
from safetensors.torch import save_file

from emocap_pretrain.checkpoint.layout import WEIGHTS
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.export.accessories import write_accessories
from emocap_pretrain.interop.export.formats import ExportFormat
from emocap_pretrain.interop.restore import Restored, model_of
from emocap_pretrain.run_folder.results import Count, Weights
from emocap_pretrain.run_folder.storage import DocumentKind, Unreadable
from emocap_pretrain.run_folder.storage import read as read_document

DOCUMENT = "emocap.json"


@dataclass(frozen=True, slots=True)
class PortableDocument:
    """Holds `emocap.json`, the settings of an exported model.

    Args:
        config: The settings of the run, without those that name its data, its servers and its folders.
        step: Number of optimizer steps after which the model was saved.
        run_id: MLflow's id of the run.
        data_digest: Digest of the datasets of the run.
        text_architecture: Configuration of a pretrained text tower; None for any other text tower.
        weights: Whether the weights are those of the step or their moving average.
    """

    config: dict[str, Any]
    step: Count = 0
    run_id: str = ""
    data_digest: str = ""
    text_architecture: dict[str, Any] | None = None
    weights: Weights = "raw"


PORTABLE = DocumentKind(PortableDocument)


def write(restored: Restored, folder: Path) -> None:
    """Writes the three files, and the settings of the image processor for code that uses other libraries."""
    write_accessories(restored, folder)
    # This replaces the tokenizer that was written above, which also pads and cuts, by that of the checkpoint.
    (folder / "tokenizer.json").write_text(restored.tokenizer.to_json(), encoding="utf-8")
    save_file(restored.model.state_dict(), folder / WEIGHTS, metadata={"format": "pt"})
    document = PortableDocument(
        _public(restored.config.stored()),
        restored.step,
        restored.run_id,
        restored.data_digest,
        cast("dict[str, Any] | None", restored.model.text.recorded()),
        restored.weights,
    )
    (folder / DOCUMENT).write_bytes(PORTABLE.dump(document))


def read(folder: str | Path) -> Restored:
    """Reads a folder that `emocap export --to safetensors` has written, on the CPU and in evaluation mode.

    `config` of the result holds the settings of model, objective and evaluation. Its other settings are placeholders.

    Raises:
        ConfigError: If the folder is not such an export, its document cannot be read, its weights do not belong to the
            model that the document describes, or it is not safe to build this model.
        CheckpointError: If the weights are not a safetensors file.
    """
    store = open_store(str(folder))
    try:
        found = read_document(store, DOCUMENT, PORTABLE)
    except StoreError as error:
        raise ConfigError(f"{folder} cannot be read: {error}") from error
    if found is None:
        raise ConfigError(f"{folder} has no {DOCUMENT}: `emocap export --to safetensors` did not write it.")
    if isinstance(found, Unreadable):
        raise ConfigError(f"{found}: export the run again.")
    for name in (WEIGHTS, "tokenizer.json"):
        if not (Path(folder) / name).is_file():
            raise ConfigError(f"{folder} has no {name}: the export is incomplete; export the run again.")
    config, model, tokenizer = model_of(Path(folder), found.config, found.text_architecture)
    return Restored(config, model, tokenizer, found.step, found.run_id, found.data_digest, found.weights)


def is_portable(folder: str | Path) -> bool:
    """Returns whether a local folder claims to be an export that `read` can read."""
    return (Path(folder) / DOCUMENT).is_file()


def _public(stored: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that build the model, with placeholders for all other settings that are required.

    The sources of weights and of the tokenizer are not opened when the export is read. Only the last component of their
    paths is kept, because a path may name a folder of the user. `stored` is the result of `Config.stored`; the function
    changes it.
    """
    model = stored["model"]
    sources = ((model, "from"), (model["image"], "pretrained"), (model["text"], "pretrained"))
    for section, name in (*sources, (model["text"], "tokenizer")):
        if section[name] is not None:
            section[name] = Path(section[name]).name or "recorded"
    evaluation = {key: value for key, value in stored["evaluation"].items() if key != "url"}
    return {
        "name": stored["name"],
        "url": "not recorded",
        "steps": stored["steps"],
        "global_batch": stored["global_batch"],
        "data": {"url": "not recorded"},
        "model": model,
        "objective": stored["objective"],
        "engine": {"precision": stored["engine"]["precision"]},
        "evaluation": evaluation,
    }


FORMAT = ExportFormat(
    name="safetensors",
    about="The weights as model.safetensors, and emocap.json, from which this package builds the model again.",
    library="emocap_pretrain",
    modules={},
    write=write,
    lacks=lambda _: (),
    loading="""\
import emocap_pretrain as emocap

model = emocap.load(".")
images, texts = model.embed_images(["face.jpg"]), model.embed_texts(["a happy face", "a sad face"])
print(images @ texts.T)
""",
)
