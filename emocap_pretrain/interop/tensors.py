"""Opens files of weights that another library has written, without executing anything in them.

A .safetensors file contains only numbers. Files of `torch.save` are pickles, which can execute code, so torch reads
them with `weights_only=True`, which builds nothing but tensors and containers. OpenAI publishes its CLIP models as
TorchScript archives, which contain a program; `torchscript.py` reads their tensors and leaves the program out.
"""

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.torchscript import is_torchscript, read_torchscript
from emocap_pretrain.model.weights import Header, Shapes, files_of_index, shapes_of

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# Training programs store the weights under one of these keys, beside the state of the optimizer.
_CONTAINERS = ("state_dict", "model_state_dict", "model")
_WRAPPER = "module."  # The prefix that DistributedDataParallel gives to every name.
# The files of transformers, then those of open_clip. If a folder has several of them, the first one is read.
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    *OPEN_CLIP_FILES,
)


@dataclass(frozen=True, slots=True)
class Tensors:
    """Holds the names and shapes of the tensors of one or more files; `load` reads their values.

    Attributes:
        shapes: The shape of each tensor by its name.
        is_program: Whether the file is a TorchScript archive, the form in which OpenAI publishes its models.
        metadata: The texts in the header of .safetensors files, by key.
    """

    shapes: Shapes
    _read: Callable[[Iterable[str]], dict[str, Tensor]] = field(repr=False)
    is_program: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Returns the tensors with these names, on the CPU. Floating-point tensors are converted to float32."""
        return {name: _as_float32(tensor) for name, tensor in self._read(names).items()}

    def placeholders(self) -> dict[str, Tensor]:
        """Returns a tensor without values for each name, on the device "meta", to compare names and shapes."""
        return {name: torch.empty(shape, device="meta") for name, shape in self.shapes.items()}


def open_tensors(path: Path, where: str, *, preferred: Sequence[str] = ()) -> Tensors:
    """Opens the weights in a file, or in a folder that transformers or open_clip has written.

    Args:
        path: The file or folder.
        where: First words of an error message: the setting and its value.
        preferred: Names of files of weights in a folder that are taken before others, if they exist.

    Raises:
        ConfigError: If there is no file with weights, or if it cannot be read without executing code.
    """
    if path.is_dir():
        return _open_folder(path, where, preferred)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{where}: {path.name} is not a file of weights; the suffixes are {', '.join(SUFFIXES)}.")
    return _open_safetensors([path], where) if path.suffix == ".safetensors" else _open_torch(path, where)


def _open_folder(folder: Path, where: str, preferred: Sequence[str]) -> Tensors:
    path = next((folder / name for name in (*preferred, *_WEIGHTS_FILES) if (folder / name).is_file()), None)
    if path is None:
        known = ", ".join(_WEIGHTS_FILES)
        raise ConfigError(f"{where}: there are no weights in this folder; it needs one of {known}.")
    if path.suffix == ".json":
        return _open_safetensors(files_of_index(path, where), where)
    return open_tensors(path, where)


def _open_safetensors(paths: list[Path], where: str) -> Tensors:
    places = {name: path for path in paths for name in Header.read([path], where).shapes}

    def read(names: Iterable[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        wanted = list(names)
        for path in paths:
            with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
                found |= {name: file.get_tensor(name) for name in wanted if places.get(name) == path}
        return found

    header = Header.read(paths, where)
    return Tensors(header.shapes, read, metadata=header.metadata)


def _open_torch(path: Path, where: str) -> Tensors:
    try:
        program = is_torchscript(path)
        if program:
            tree: Any = read_torchscript(path)
        else:
            with warnings.catch_warnings():  # The error below says what torch would warn of.
                warnings.simplefilter("ignore")
                # Without `mmap` the whole file would be read here, although only names and shapes may be needed.
                tree = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{where}: the file holds more than weights, and reading the rest could execute code; save its state dict "
            "alone, or as .safetensors."
        ) from error
    except Exception as error:  # A damaged pickle or archive raises errors of nearly every class in both libraries.
        # Many of these errors are no sentence, such as KeyError(101) for a text file.
        first = str(error).partition("\n")[0]
        why = f" ({first})" if " " in first else ""
        raise ConfigError(
            f"{where}: the file is not readable as weights of torch; it is damaged, incomplete or of another kind{why}."
        ) from error
    tensors = _state_dict(tree)
    if not tensors:
        raise ConfigError(f"{where}: there is no state dict in the file.")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ConfigError(f"{where}: the tensor {name} has fewer numbers in the file than its shape says.")
    return Tensors(shapes_of(tensors), lambda names: {name: tensors[name] for name in names}, is_program=program)


def _state_dict(tree: Any) -> dict[str, Tensor]:
    """Returns the tensors of a state dict, which may lie in a checkpoint of a training program."""
    for key in _CONTAINERS:
        if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
            tree = cast("Mapping[str, Any]", tree[key])
    if not isinstance(tree, Mapping):
        return {}
    found = {str(name): value for name, value in cast("Mapping[str, Any]", tree).items() if isinstance(value, Tensor)}
    wrapped = all(name.startswith(_WRAPPER) for name in found)
    return {name.removeprefix(_WRAPPER) if wrapped else name: value for name, value in found.items()}


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
