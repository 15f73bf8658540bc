"""Checks that pretrained weights fit a tower, by comparing names and shapes. The values of the weights are not read.

If some layers of a tower get no pretrained weights, these layers begin at random values. The loss still falls, and
nothing later in the run shows the mistake. So the run is refused unless every parameter has weights.

`Header` reads the names and shapes in a file, `before_load_state_dict` gets the names and shapes that timm has
converted, and `Fit` holds the differences between the weights and a tower. `timm_image.py` and `transformers_text.py`
use these parts, because timm and transformers load weights in different ways.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.json_files import read_json

Shapes = Mapping[str, tuple[int, ...]]
_MAX_LISTED = 4


@dataclass(frozen=True, slots=True)
class Fit:
    """Holds the differences between the weights of a file and the parameters and buffers of a tower.

    All differences are collected before an error is raised, so that one message lists all of them. From the whole list
    a user can see, for example, that only the depth of the tower is wrong. `Fit()` means that there is no difference.

    Attributes:
        missing: Names in the tower for which there are no weights.
        unexpected: Names of weights that the tower does not have.
        reshaped: The tensors whose shape in the file differs from that in the tower. Each entry has the name, the shape
            of the weights and the shape in the tower.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    @classmethod
    def of(cls, expected: Shapes, given: Shapes, *, ignore: Callable[[str], bool] = lambda _: False) -> "Fit":
        """Compares the shapes of a tower with those of the weights.

        Args:
            expected: The shapes in the tower, by name.
            given: The shapes of the weights, by name.
            ignore: A function that returns True for the names of weights which may be left out. Such a name is not
                listed as unexpected.
        """
        both = sorted(expected.keys() & given.keys())
        return cls(
            missing=tuple(sorted(expected.keys() - given.keys())),
            unexpected=tuple(name for name in sorted(given.keys() - expected.keys()) if not ignore(name)),
            reshaped=tuple((name, given[name], expected[name]) for name in both if given[name] != expected[name]),
        )

    def require(self, where: str, tower: str, advice: str) -> None:
        """Checks that there is no difference: each parameter has weights of its shape, and no weights are left over.

        Args:
            where: First words of the message: the setting that names the source of the weights.
            tower: A description of the tower for the message.
            advice: Last sentence of the message, which says what the user can do.

        Raises:
            ConfigError: If there is a difference. The message lists the names.
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
    """Returns a text with the first few names and the number of further names.

    >>> listed(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d and 2 more'
    """
    found = list(names)
    more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
    return ", ".join(found[:_MAX_LISTED]) + more


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor by its name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@dataclass(frozen=True, slots=True)
class Header:
    """Holds the names and shapes of the tensors in one or more .safetensors files, without the tensors.

    A .safetensors file begins with a header in JSON. So it is enough to read some kilobytes of a file of gigabytes.

    Attributes:
        shapes: The shapes, by the names of the tensors.
        metadata: The entries of the metadata in all headers, by key.
    """

    shapes: Shapes
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def read(cls, files: Iterable[Path], where: str) -> "Header":
        """Reads the headers of all files. Error messages begin with `where`.

        Raises:
            ConfigError: If a file cannot be read, or there is no tensor in the files.
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
        """Reads the headers of the weights in a folder that transformers has saved.

        The weights are in `model.safetensors`, or in several files that `model.safetensors.index.json` lists. Error
        messages begin with `where`.

        Raises:
            ConfigError: If the index or a file cannot be read, or there is no tensor in the files.
        """
        whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        is_divided = index.is_file() and not whole.is_file()
        return cls.read(files_of_index(index, where) if is_divided else [whole], where)

    def tensors(self, *, device: str) -> dict[str, Tensor]:
        """Returns a placeholder for each tensor, by name. It has the tensor's shape, but occupies almost no memory.

        On the device "meta" a placeholder has no values. On "cpu" it is a single zero that is expanded to the shape.
        Placeholders only serve to compare shapes; nothing must be written to them.
        """
        one = torch.zeros((), device=device)
        return {name: one.expand(shape) for name, shape in self.shapes.items()}


def files_of_index(index: Path, where: str) -> list[Path]:
    """Returns the files of a model in several files, which an index of transformers (`*.index.json`) lists.

    Error messages begin with `where`.

    Raises:
        ConfigError: If the index cannot be read, or if it names a file that does not lie beside it.
    """
    try:
        names: list[Any] = sorted(set(read_json(index, where)["weight_map"].values()))
    except (LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: {index.name} has no list of files ({error!r}).") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (index.parent / name).is_file():
            raise ConfigError(f"{where}: {index.name} names {str(name)[:60]!r}, which does not exist beside it.")
    return [index.parent / name for name in names]


@contextmanager
def before_load_state_dict(check: Callable[[Shapes, Shapes], None]) -> Generator[None]:
    """Calls `check(expected, given)` whenever a module loads a state dict within the block.

    `expected` holds the shapes in the module, and `given` those in the state dict, by name. timm converts the names and
    shapes in a file to those of the tower, and passes the result only to `load_state_dict` (timm 1.0.31). So the
    comparison must happen there. The block replaces `nn.Module.load_state_dict` for all modules, so no other thread may
    load a state dict during the block.

    If `check` raises an error, no weights are loaded, and the caller of `load_state_dict` gets the error.
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
