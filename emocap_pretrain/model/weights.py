"""Whether pretrained weights fill a tower: a comparison of names and shapes, which needs no weight itself.

A tower that is filled in part trains, and its loss falls; nothing later in a run tells that some layers began at random
values. So each parameter is filled, or the run is refused with the names of those that are not.
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
_NAMED = 4


@dataclass(frozen=True, slots=True)
class Fit:
    """How the weights of a file fit the parameters and buffers of a tower.

    Attributes:
        missing: Names in the tower without weights.
        foreign: Names among the weights that the tower does not have.
        reshaped: Name, shape of the weight, shape in the tower.
    """

    missing: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    @classmethod
    def of(cls, wanted: Shapes, given: Shapes, *, aside: Callable[[str], bool] = lambda _: False) -> "Fit":
        """Compares the shapes that a tower wants with those that are given; foreign names that are `aside` are fine."""
        both = sorted(wanted.keys() & given.keys())
        return cls(
            missing=tuple(sorted(wanted.keys() - given.keys())),
            foreign=tuple(name for name in sorted(given.keys() - wanted.keys()) if not aside(name)),
            reshaped=tuple((name, given[name], wanted[name]) for name in both if given[name] != wanted[name]),
        )

    def require(self, where: str, tower: str, cure: str) -> None:
        """Returns only if the weights fill the tower.

        Raises:
            ConfigError: With the names of what is missing, foreign or of another shape.
        """
        shapes = [f"{name} has {list(has)}, the tower {list(wants)}" for name, has, wants in self.reshaped]
        faults = [
            f"{len(names)} {what} ({listed(names)})"
            for what, names in (
                ("missing", self.missing),
                ("foreign", self.foreign),
                ("of another shape", shapes),
            )
            if names
        ]
        if faults:
            raise ConfigError(f"{where}: these weights do not fill {tower}: {'; '.join(faults)}. {cure}")


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    found = list(names)
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@dataclass(frozen=True, slots=True)
class Header:
    """What one or more .safetensors files say of their tensors, read without the tensors themselves."""

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
                raise ConfigError(f"{where}: {file} is no .safetensors file that can be read ({error}).") from error
        if not shapes:
            raise ConfigError(f"{where}: there is no tensor in the file.")
        return cls(shapes, metadata)

    @classmethod
    def of_folder(cls, folder: Path, where: str) -> "Header":
        """The header of a transformers folder: of `model.safetensors`, or of the parts that an index names."""
        index = folder / "model.safetensors.index.json"
        if (folder / "model.safetensors").is_file() or not index.is_file():
            return cls.read([folder / "model.safetensors"], where)
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
            return cls.read([folder / name for name in names], where)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConfigError(f"{where}: {index} cannot be read ({error}).") from error

    def tensors(self, *, device: str) -> dict[str, Tensor]:
        """A tensor of each shape that takes no memory: on "meta", or one number on "cpu" that is repeated."""
        one = torch.zeros((), device=device)
        return {name: one.expand(shape) for name, shape in self.shapes.items()}


@contextmanager
def comparing(check: Callable[[Shapes, Shapes], None]) -> Generator[None]:
    """Inside, `check(wanted, given)` is called before a module takes a state dict.

    timm converts the names and shapes of a file to those of the tower, then loads what fits and logs the rest. What
    it converted to is seen nowhere else. The method of all modules is replaced, so no other thread may load meanwhile.
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
