"""Checks that pretrained weights fill a tower, by comparing names and shapes. The weights themselves are not loaded.

A tower that is filled only in part trains, and its loss falls; nothing later in a run shows that some layers began at
random values. So either all parameters are filled, or the run is refused with the names of those that are not.
"""

import json
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from emocap_pretrain.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]
_MAX_LISTED = 4


@dataclass(frozen=True, slots=True)
class Fit:
    """Compares the weights of a file with the parameters and buffers of a tower.

    Attributes:
        missing: Names in the tower without weights.
        unexpected: Names among the weights that the tower does not have.
        reshaped: Tensors of another shape: name, shape of the weight, shape in the tower.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    @classmethod
    def of(cls, expected: Shapes, given: Shapes, *, ignore: Callable[[str], bool] = lambda _: False) -> "Fit":
        """Compares the shapes of a tower with those of the weights; `ignore` says which unexpected names are fine."""
        both = sorted(expected.keys() & given.keys())
        return cls(
            missing=tuple(sorted(expected.keys() - given.keys())),
            unexpected=tuple(name for name in sorted(given.keys() - expected.keys()) if not ignore(name)),
            reshaped=tuple((name, given[name], expected[name]) for name in both if given[name] != expected[name]),
        )

    def require(self, where: str, tower: str, advice: str) -> None:
        """Checks that the weights fill the tower.

        Args:
            where: The source of the weights, with which the message begins.
            tower: The tower, for the message.
            advice: A sentence that says what to do, with which the message ends.

        Raises:
            ConfigError: If they do not; with the names of what is missing, unexpected or of another shape.
        """
        shapes = [f"{name} has {list(has)}, the tower {list(needs)}" for name, has, needs in self.reshaped]
        faults = [
            f"{len(names)} {what} ({listed(names)})"
            for what, names in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", shapes),
            )
            if names
        ]
        if faults:
            raise ConfigError(f"{where}: these weights do not fill {tower}: {'; '.join(faults)}. {advice}")


def listed(names: Iterable[str]) -> str:
    """Returns the first few names and the number of further ones, as a text."""
    found = list(names)
    more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
    return ", ".join(found[:_MAX_LISTED]) + more


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor by its name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@dataclass(frozen=True, slots=True)
class Header:
    """Holds names and shapes of the tensors of one or more .safetensors files, read without the tensors themselves."""

    shapes: Shapes
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def read(cls, files: Iterable[Path], where: str) -> "Header":
        """Reads the headers of all files.

        Raises:
            ConfigError: If a file cannot be read, or holds no tensor.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        metadata: dict[str, str] = {}
        for file in files:
            try:
                with safe_open(file, framework="pt") as opened:  # pyright: ignore[reportUnknownVariableType]
                    shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
                    metadata |= opened.metadata() or {}
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"{where}: {file} is not a readable .safetensors file ({error}).") from error
        if not shapes:
            raise ConfigError(f"{where}: there is no tensor in the file.")
        return cls(shapes, metadata)

    @classmethod
    def of_folder(cls, folder: Path, where: str) -> "Header":
        """Reads the headers in a transformers folder: of `model.safetensors`, or of the parts that an index names.

        Raises:
            ConfigError: As `read` does, or if the index cannot be read.
        """
        index = folder / "model.safetensors.index.json"
        if (folder / "model.safetensors").is_file() or not index.is_file():
            return cls.read([folder / "model.safetensors"], where)
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
            return cls.read([folder / name for name in names], where)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConfigError(f"{where}: {index} cannot be read ({error}).") from error

    def tensors(self, *, device: str) -> dict[str, Tensor]:
        """Returns a tensor of each shape that takes no memory: on "meta", or a single expanded element on "cpu"."""
        one = torch.zeros((), device=device)
        return {name: one.expand(shape) for name, shape in self.shapes.items()}


@contextmanager
def before_load_state_dict(check: Callable[[Shapes, Shapes], None]) -> Generator[None]:
    """Calls `check(expected, given)` before a module loads a state dict inside.

    timm converts the names and shapes of a file to those of the tower, then loads what fits and logs the rest. The
    converted names and shapes are visible nowhere else. The method of all modules is replaced, so no other thread may
    load a state dict meanwhile.
    """
    original = nn.Module.load_state_dict

    def load(self: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        check(shapes_of(self.state_dict()), shapes_of(state_dict))
        return original(self, state_dict, strict=strict, assign=assign)

    nn.Module.load_state_dict = load
    try:
        yield
    finally:
        nn.Module.load_state_dict = original
