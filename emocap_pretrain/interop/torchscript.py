"""Reads the tensors of a TorchScript archive without running the program that it contains.

OpenAI publishes its CLIP models in this form. `torch.jit.load` would compile the program of the archive, so a
manipulated archive could run code. The archive is a zip file. It contains a pickle that describes the tree of modules,
and one uncompressed file of numbers for each storage of tensors. The unpickler of this module knows only tensors, lists
of numbers and modules without behaviour; for anything else it raises an error.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
LARGEST_PICKLE = 64 << 20  # The pickle describes modules and no numbers; that of ViT-L/14 has less than 1 MiB.


@dataclass(slots=True)
class _Module:
    """Represents a module or any other object of the program. It has attributes and no behaviour."""

    attributes: dict[str, Any] = field(default_factory=dict[str, Any])

    def __setstate__(self, state: Any) -> None:
        self.attributes = dict(state) if isinstance(state, dict) else {}


def is_torchscript(path: Path) -> bool:
    """Returns whether the file is a zip archive with a program of TorchScript in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.partition("/")[2].startswith("code/") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Returns the parameters and buffers of the archive by their names, as its module's state dict would.

    Tensors that share a file of the archive also share their memory. So all tensors together need no more memory than
    the archive has bytes.

    Raises:
        pickle.UnpicklingError: If the archive describes an object that is neither a tensor nor a module.
        ValueError: If numbers are compressed, the pickle is too large, or a tensor exceeds its file.
        LookupError: If a file is missing.
        zipfile.BadZipFile: If the archive is damaged. A damaged pickle raises errors of other classes too.
    """
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].partition("/")[0]
        described = archive.getinfo(f"{root}/data.pkl")
        if described.file_size > LARGEST_PICKLE:
            raise ValueError("the pickle that describes the modules is too large")
        with archive.open(described) as stream:
            tree = _Unpickler(stream, lambda key: _stored(archive, f"{root}/data/{key}")).load()
    return dict(_tensors(tree, "", set()))


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    # torch never compresses numbers. Without compression, a small archive cannot need a huge amount of memory.
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return archive.read(name)


class _Unpickler(pickle.Unpickler):
    """Builds tensors, lists of numbers and `_Module`, and refuses everything else."""

    def __init__(self, stream: Any, read_storage: Callable[[str], bytes]) -> None:
        super().__init__(stream)
        self._read_storage = read_storage
        self._storages: dict[tuple[str, torch.dtype], Tensor] = {}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name == "__torch__" or module_name.startswith("__torch__."):
            return _Module
        known: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("collections", "OrderedDict"): OrderedDict,
            **{("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "double", "bool", "tensor")},
            **{("torch", name): dtype for name, dtype in _DTYPES.items()},
        }
        found = known.get((module_name, global_name))
        if found is None:
            raise pickle.UnpicklingError(f"the archive names {module_name}.{global_name}")
        return found

    def persistent_load(self, pid: Any) -> Tensor:
        # The tuple is ("storage", dtype, name of the file, device, number of elements).
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not str(key).isalnum() or type(count) is not int:
            raise pickle.UnpicklingError("the archive describes a tensor in an unknown way")
        found = self._storages.get((key, dtype))
        if found is None:
            data = self._read_storage(str(key))
            if not 0 <= count * dtype.itemsize <= len(data):
                raise ValueError(f"the file of tensor {key} is too short")
            empty = torch.empty(0, dtype=dtype)
            found = torch.frombuffer(bytearray(data), dtype=dtype, count=count) if count else empty
            self._storages[key, dtype] = found
        return found


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    # With strides of 0, a few numbers could describe a tensor that exceeds all memory as soon as it is copied.
    is_larger = torch.Size(size).numel() > storage.numel()
    if min((offset, *size, *stride), default=0) < 0 or is_larger or (0 not in size and last >= storage.numel()):
        raise ValueError("a tensor exceeds its file")
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _tensors(module: Any, prefix: str, seen: set[int]) -> list[tuple[str, Tensor]]:
    # A module that contains itself would have endlessly many names. So each module counts only once.
    if not isinstance(module, _Module) or id(module) in seen:
        return []
    seen.add(id(module))
    found: list[tuple[str, Tensor]] = []
    for name, value in module.attributes.items():
        is_tensor = isinstance(value, Tensor)
        found += [(f"{prefix}{name}", value)] if is_tensor else _tensors(value, f"{prefix}{name}.", seen)
    return found
