"""Opens the source of weights that `model.from` names, and describes the model in it.

A source is a folder that transformers or open_clip has written, a file with the state dict of a CLIP, the name of such
a folder on the Hugging Face hub, or a run of this project. `open_source` reads only what describes the model. The
tensors are opened by `load.py`, when they are compared with a model or loaded into it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from emocap_shards.mask import masked_url
from emocap_shards.store import open_store
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from emocap_pretrain.checkpoint.layout import TOKENIZER
from emocap_pretrain.checkpoint.loader import downloaded
from emocap_pretrain.config.load import from_stored
from emocap_pretrain.config.location import PACKAGE_PREFIX, RUN_PREFIX, located
from emocap_pretrain.config.model import ModelConfig
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.layouts import clip, open_clip, transformers
from emocap_pretrain.interop.layouts.layout import Tree, WeightsLayout
from emocap_pretrain.interop.restore import LONGEST_ID, StepChoice, chosen, restore
from emocap_pretrain.interop.tensors import OPEN_CLIP_FILES, Tensors, open_tensors
from emocap_pretrain.model.json_files import read_json
from emocap_pretrain.model.weights import shapes_of
from emocap_pretrain.run_folder.parent import Parent

KEY = "model.from"
CONFIG_FILE = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_HUB_PREFIX = "hf-hub:"  # open_clip writes names of the hub with this prefix.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# The settings of a run's model that a new run takes over. Other settings, such as patch dropout, are about training.
_BUILDING: Any = {
    "embedding": True,
    "project_images": True,
    "text_bias": True,
    "image": {"name", "pixels", "options", "pretrained", "mean", "std"},
    "text": {"architecture", "pretrained", "pooling", "end_id", "pad_id", "lengths"},
}
# The files of a model on the hub that are downloaded. Code and weights in other formats are not.
_HUB_FILES = ("*.json", "*.txt", "*.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
_CLIP_MERGES = 49152 - 256 - 2  # Merges of CLIP's vocabulary; the file of open_clip has more.


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Describes a model whose weights can be loaded into a `TowerPair`.

    Attributes:
        name: The value of `model.from`.
        key: What error messages call the name; usually the setting `model.from`.
        layout: The settings of the model, and the rules that translate its tensors.
        open_tensors: Opens the tensors of the model. For a run, this downloads the weights of its checkpoint.
        read_tokenizer: Returns the tokenizer of the model.
        text_architecture: The description of a text tower that the settings alone cannot build, as a checkpoint stores
            it; None for the text towers of CLIP and SigLIP.
        parent: The checkpoint with the weights, if they come from a run of this project; None otherwise.
    """

    name: str
    key: str = KEY
    layout: WeightsLayout
    open_tensors: Callable[[], Tensors]
    read_tokenizer: Callable[[], Tokenizer]
    text_architecture: Mapping[str, Any] | None = None
    parent: Parent | None = None

    @property
    def where(self) -> str:
        """Returns the setting and its value, with which an error message about this source begins."""
        return f"{self.key}={self.name}"


def open_source(name: str, *, activation: str | None = None, key: str = KEY) -> Source:
    """Opens the source of weights with this name. The weights themselves are not read yet.

    Args:
        name: The value of `model.from`.
        activation: The activation that the user gives for a file that does not contain it.
        key: What error messages call the name; usually the setting.

    Raises:
        ConfigError: If there are no weights that this project can read.
        CheckpointError: If the source is a run without such a checkpoint.
        StoreError: If the source is a run whose store cannot be reached.
    """
    if name.startswith(RUN_PREFIX):
        return open_run(name)
    where = f"{key}={name}"
    path = local_copy(name, key)
    found = _file(name, path, activation, where) if path.is_file() else _folder(name, path, where)
    return replace(found, key=key)


def local_copy(name: str, key: str) -> Path:
    """Returns the path of the local file or folder of a source. If there is none, a model of the hub is downloaded.

    Args:
        name: A file, a folder, `package:NAME/PATH`, or a name on the hub. It must not be the name of a run.
        key: What error messages call the name.

    Raises:
        ConfigError: If there is no such file, folder or model on the hub, or if the hub cannot be reached.
    """
    path = Path(located(name, key))
    return path if path.exists() else downloaded_folder(name, f"{key}={name}", _HUB_FILES)


def source_of(model: ModelConfig) -> Source:
    """Opens the source of weights that the settings name. `model.from` must be set.

    Raises:
        ConfigError: If the source cannot be read.
        CheckpointError: If the source is a run without such a checkpoint.
        StoreError: If the source is a run whose store cannot be reached.
    """
    architecture = model.text.architecture
    activation = architecture.activation if "activation" in architecture.model_fields_set else None
    return open_source(str(model.from_), activation=activation)


def _folder(name: str, folder: Path, where: str) -> Source:
    of_open_clip = (folder / open_clip.CONFIG_FILE).is_file()
    # Many repositories of the hub hold a model twice: for open_clip, and for transformers or timm.
    tensors = open_tensors(folder, where, preferred=OPEN_CLIP_FILES if of_open_clip else ())
    if of_open_clip:
        config = open_clip.read_config(folder, where)
        layout = open_clip.describe(tensors.shapes, config, where=where)
        read = partial(_open_clip_tokens, folder, config, where)
    elif (folder / CONFIG_FILE).is_file():
        layout = transformers.describe(folder, tensors.shapes, read_json(folder / CONFIG_FILE, where), where=where)
        read = partial(Tokenizer.load, str(folder))
    else:
        raise ConfigError(f"{where}: the folder has neither {CONFIG_FILE} nor {open_clip.CONFIG_FILE}.")
    if layout.settings["text"]["architecture"]["family"] == "siglip":  # The tower sees the padding.
        pad_id = _padding(folder, where)
        layout.settings["text"]["pad_id"] = layout.settings["text"]["pad_id"] if pad_id is None else pad_id
    return Source(name=name, layout=layout, open_tensors=lambda: tensors, read_tokenizer=read)


def _padding(folder: Path, where: str) -> int | None:
    """Returns the id with which the tokenizer of a folder pads texts; None if its files do not say so.

    The published config.json of SigLIP 2 leaves the id out, and its tokenizer pads with another id than the default of
    transformers.
    """
    config = folder / TOKENIZER_CONFIG
    if not config.is_file() or not (folder / TOKENIZER).is_file():
        return None
    token = read_json(config, where).get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    return Tokenizer.load(str(folder)).id_of(token) if isinstance(token, str) else None


def _file(name: str, path: Path, activation: str | None, where: str) -> Source:
    tensors = open_tensors(path, where)
    if not clip.is_clip(tensors.shapes):
        raise ConfigError(
            f"{where}: the names in this file are not those of a CLIP of OpenAI or open_clip; for other models give "
            "the folder with their config."
        )
    known = "quick_gelu" if is_openai(tensors) else activation
    layout = clip.describe(tensors.shapes, {}, activation=known, where=where)
    return Source(name=name, layout=layout, open_tensors=lambda: tensors, read_tokenizer=clip_tokenizer)


def is_openai(tensors: Tensors) -> bool:
    """Returns whether OpenAI published the file. All models of OpenAI use QuickGELU.

    Such a file is a TorchScript archive, or has sizes of the architecture among its tensors.
    """
    return tensors.is_program or "input_resolution" in tensors.shapes


def open_run(name: str) -> Source:
    """Opens the checkpoint of a run that `run:URL`, `run:URL@step` or `run:URL@best` names.

    Only the manifest is read here. It is not trusted, so its settings are only data. When the tensors are opened,
    `restore` builds the model from these settings, with all of its checks.

    Raises:
        CheckpointError: If the run has no such checkpoint.
        ConfigError: If the settings in the checkpoint cannot be read.
        StoreError: If the store of the run cannot be reached.
    """
    url, step = run_and_step(name)
    store = open_store(url)
    checkpoint = chosen(store, url, step)
    model = from_stored(checkpoint.state.get("config")).model
    tree = model.model_dump(mode="json", include=_BUILDING)
    tree["text"]["tokenizer"] = "from"

    def tensors() -> Tensors:
        weights = restore(url, step=checkpoint.step).model.state_dict()
        return Tensors(shapes_of(weights), lambda names: {name: weights[name] for name in names})

    def tokenizer() -> Tokenizer:
        with downloaded(store, checkpoint, TOKENIZER.__eq__) as folder:
            return Tokenizer.from_json((folder / TOKENIZER).read_text(encoding="utf-8"))

    layout = WeightsLayout(name=f"step {checkpoint.step} of a run", kind="emocap", settings=tree, rules=())
    run_id = str(checkpoint.state.get("run_id", ""))[:LONGEST_ID]
    return Source(
        name=f"{RUN_PREFIX}{url}@{checkpoint.step}",
        layout=layout,
        open_tensors=tensors,
        read_tokenizer=tokenizer,
        text_architecture=checkpoint.state.get("text_architecture"),
        parent=Parent(masked_url(url), checkpoint.step, run_id, checkpoint.digest),
    )


def run_and_step(name: str) -> tuple[str, StepChoice | None]:
    """Returns the URL and the step in `run:URL@step` or `run:URL@best`; the step is None in `run:URL`.

    >>> run_and_step("run:s3://bucket/runs/faces@400"), run_and_step("run:runs/a@b"), run_and_step("run:runs/a@best")
    (('s3://bucket/runs/faces', 400), ('runs/a@b', None), ('runs/a', 'best'))
    """
    url, _, step = name.removeprefix(RUN_PREFIX).rpartition("@")
    if url and step == "best":
        return url, "best"
    return (url, int(step)) if url and step.isdecimal() else (name.removeprefix(RUN_PREFIX), None)


def is_foreign(name: str) -> bool:
    """Returns whether a name is that of a model of another library, and not that of a run of this project.

    Names of models of other libraries are files, folders with the config of such a model, and names on the hub. A name
    of two words with a slash between them counts as a name on the hub, unless a folder has this name.
    """
    path = Path(name)
    if name.startswith(RUN_PREFIX) or "://" in name:
        return False
    if name.startswith(PACKAGE_PREFIX):
        return True
    if path.is_dir():
        return any((path / config).is_file() for config in (CONFIG_FILE, open_clip.CONFIG_FILE))
    return path.is_file() or name.startswith(_HUB_PREFIX) or bool(_HUB_NAME.fullmatch(name))


def clip_tokenizer() -> Tokenizer:
    """Returns the tokenizer of OpenAI's CLIP, from the vocabulary in the package open_clip.

    Raises:
        ConfigError: If the package is not installed.
    """
    import gzip

    from emocap_pretrain.data.tokenizer import byte_pair_tokenizer

    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ConfigError("model.text.tokenizer=from needs CLIP's vocabulary: pip install open_clip_torch==3.3.0.")
    with gzip.open(Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    merges = lines[1 : _CLIP_MERGES + 1]  # The first line names a version.
    return byte_pair_tokenizer([merge.split(" ", 1) for merge in merges])


def _open_clip_tokens(folder: Path, config: Tree, where: str) -> Tokenizer:
    if (folder / TOKENIZER).is_file():
        return Tokenizer.load(str(folder))
    # The config is not trusted, so what it names is not opened. The user can name it.
    if named := str(config["text_cfg"].get("hf_tokenizer_name") or "")[:80]:
        raise ConfigError(
            f"{where}: the folder has no {TOKENIZER}; its config names the tokenizer {named!r}: set "
            "model.text.tokenizer to this name, if you trust it, or to a folder with that tokenizer."
        )
    return clip_tokenizer()


def downloaded_folder(name: str, where: str, patterns: Sequence[str]) -> Path:
    """Downloads a model from the hub, or finds it in the hub's cache, and returns its folder.

    Args:
        name: The name on the hub.
        where: First words of an error message: the setting and its value.
        patterns: Patterns such as "*.json", which the names of downloaded files match.

    Raises:
        ConfigError: If the hub has no such model or does not send it, if it cannot be reached and its cache lacks the
            model, or if `name` cannot be a name on the hub.
    """
    try:
        return Path(snapshot_download(name.removeprefix(_HUB_PREFIX), allow_patterns=list(patterns)))
    except RepositoryNotFoundError as error:
        raise ConfigError(f"{where}: there is no such file, folder or model on the hub.") from error
    except LocalEntryNotFoundError as error:
        raise ConfigError(
            f"{where}: there is no such file or folder; the hub cannot be reached, and its cache has no such model."
        ) from error
    except HFValidationError as error:
        raise ConfigError(f"{where}: there is no such file or folder, and it cannot be a name on the hub.") from error
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(f"{where}: the hub did not send this model ({str(error).splitlines()[0]}).") from error
