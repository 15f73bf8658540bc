"""Opens causal language models with transformers: a folder, a name on the Hugging Face hub, or a GGUF file.

Somebody else may have written the files, so they are treated as data only. Weights are read from safetensors or GGUF,
never from a pickle. No code that comes with a model is executed. A folder whose files name another model is refused,
and of a folder with a GGUF file only that file is read.
"""

import hashlib
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from emocap_pretrain.config.location import located
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.source import downloaded_folder
from emocap_pretrain.model.json_files import read_json
from emocap_pretrain.model.transformers_loading import TRUST, check_attention, quiet

GGUF = ".gguf"
_GGUF_NAME = f"model{GGUF}"
_HUB_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_KEY = "--lm"


@dataclass(frozen=True, slots=True, eq=False)
class LanguageModel:
    """Holds a frozen causal language model in evaluation mode, in float32, and its tokenizer.

    Attributes:
        model: The model, an object of transformers.
        tokenizer: The tokenizer, an object of transformers.
        end_id: The id of the token that ends a text (EOS).
        digest: A SHA-256 digest of the names, shapes and values of all parameters. The tokenizer is not part of it.
    """

    model: Any
    tokenizer: Any
    end_id: int
    digest: str

    @property
    def width(self) -> int:
        """Returns the size of the vector that represents a token at the input of the model."""
        return self.model.get_input_embeddings().embedding_dim

    @property
    def device(self) -> str:
        return str(self.model.device)

    def ids(self, text: str) -> list[int]:
        """Returns the token ids of a text, without the special tokens that the tokenizer can add, such as BOS."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def text(self, ids: list[int]) -> str:
        """Returns the text of the tokens before the first end token, or of all tokens if there is none.

        Every run of whitespace becomes one space, so the text is one line.
        """
        kept = ids[: ids.index(self.end_id)] if self.end_id in ids else ids
        return " ".join(self.tokenizer.decode(kept, skip_special_tokens=True).split())

    def embedded(self, ids: Tensor) -> Tensor:
        """Returns the input embeddings of token ids. The result has one axis more than `ids`, of size `width`."""
        return self.model.get_input_embeddings()(ids)


def load_language_model(name: str, *, device: str = "cpu") -> LanguageModel:
    """Loads a causal language model in float32 and evaluation mode, and freezes its weights.

    Args:
        name: A folder that transformers has written, a GGUF file (`package:NAME/FILE` names one in an installed
            package), or a name on the Hugging Face hub.
        device: The device of the model.

    Raises:
        ConfigError: If there is no such model or the hub cannot be reached; if the name is a file of another type than
            GGUF; if the weights are incomplete, or neither in safetensors nor in GGUF; if a folder holds an adapter or
            quantized weights; if the model needs code that comes with it; if the tokenizer has no end token; or if
            the packages `gguf` or `accelerate` are missing, which only GGUF files need.
    """
    where = f"{_KEY} {name}"
    path = Path(located(name, _KEY)).expanduser()
    if not path.exists():
        if name.endswith(GGUF):
            raise ConfigError(f"{where}: there is no such file.")
        path = downloaded_folder(name, where, _HUB_FILES)
    if path.is_file():
        _require_gguf(path, where)
        # transformers reads further files of the folder, such as that of an adapter, which names another model. The
        # folder with this file may hold such files, so the file is loaded from a folder in which it is alone.
        with TemporaryDirectory() as alone:
            (Path(alone) / _GGUF_NAME).symlink_to(path.resolve())
            model, tokenizer = _loaded(Path(alone), where, gguf_file=_GGUF_NAME)
    else:
        _require_inert(path, where)
        model, tokenizer = _loaded(path, where)
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{where}: the tokenizer has no end token, so no caption would end: take another model.")
    model = model.eval().requires_grad_(False)
    digest = _digest(model)
    return LanguageModel(model.to(device), tokenizer, int(tokenizer.eos_token_id), digest)


def _require_gguf(path: Path, where: str) -> None:
    if path.suffix != GGUF:
        raise ConfigError(f"{where}: it is a file, but not a {GGUF} file: give the folder of the model.")
    if missing := [each for each in ("gguf", "accelerate") if find_spec(each) is None]:
        raise ConfigError(
            f"{where}: a GGUF file needs {' and '.join(missing)}: pip install 'emocap-pretrain[generation]'."
        )


def _require_inert(folder: Path, where: str) -> None:
    """Checks that transformers can load a folder without another model and without a library for quantized weights.

    Raises:
        ConfigError: If the folder holds an adapter, whose base model transformers would look for, if its weights are
            quantized, or if its `config.json` cannot be read.
    """
    if (folder / "adapter_config.json").exists():
        raise ConfigError(f"{where}: the folder holds an adapter, which names another model: merge it into its model.")
    if "quantization_config" in read_json(folder / "config.json", where):
        raise ConfigError(f"{where}: the weights are quantized for another library: give the original weights.")


def _loaded(folder: Path, where: str, **file: str) -> tuple[Any, Any]:
    """Loads the model and the tokenizer from a folder.

    Args:
        folder: The folder.
        where: First words of an error message: the option and its value.
        file: Empty for weights in safetensors. Otherwise only `gguf_file`, the name of the GGUF file in the folder.

    Raises:
        ConfigError: If transformers cannot load the model or the tokenizer, or weights are missing.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    safe: dict[str, Any] = {} if file else {"use_safetensors": True}
    try:
        # The reader of GGUF files always prints a bar of its own on stderr.
        with quiet(), redirect_stderr(StringIO()):
            check_attention(AutoConfig.from_pretrained(folder, **TRUST, **file), where)
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, **TRUST, **file)
            found: Any = AutoModelForCausalLM.from_pretrained(
                folder, **TRUST, **file, **safe, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, StrictDataclassError) as error:
        raise ConfigError(
            f"{where}: no causal language model of transformers with safetensors or GGUF weights there "
            f"({(str(error) or repr(error)).splitlines()[0]})."
        ) from error
    model, info = found
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ConfigError(f"{where}: weights are missing, such as {missing}: give a complete model.")
    # `generate` of transformers 5.23 takes each setting that its caller leaves out from here, also if it is given a
    # config. A model that asks for a penalty of repetitions would then not be decoded greedily.
    model.generation_config = GenerationConfig()
    return model, tokenizer


def _digest(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
