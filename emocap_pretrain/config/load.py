"""YAML file + dotted overrides -> Config, or one line for each thing that is wrong."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from emocap_pretrain.config.explain import Origin, explain
from emocap_pretrain.config.location import INERT
from emocap_pretrain.config.schema import Config, Keys
from emocap_pretrain.config.stored import current
from emocap_pretrain.errors import ConfigError


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a run from a file.

    Args:
        path: A YAML file.
        overrides: `dotted.key=value` texts, the value in YAML; they win over the file.

    Raises:
        ConfigError: For a missing file, bad YAML, an unknown key or a value out of bounds. Nothing has started yet.
    """
    path = Path(path)
    text = _read(path)
    tree = _parse(text, path)
    _override(tree, overrides)
    return _validate(tree, Origin.of(path, text, overrides))


def from_stored(tree: Any) -> Config:
    """Read what `Config.stored` or `stored.dump` gave as inert data: somebody else may have written it.

    Another version may have written it too. Settings outside of `model` that this version does not have are left out.

    A `${...}` text stays the text that it is, whatever it asks for, and no path is looked up.

    Raises:
        ConfigError: If it is no config of this version, or a setting that is no text holds a `${...}`.
    """
    try:
        settings = current(cast("dict[str, Any]", tree), decisive=("model.",)) if isinstance(tree, dict) else tree
        return Config.model_validate(settings, context=INERT)
    except ValidationError as error:
        origin = Origin(Path("the checkpoint's config"), {}, frozenset())
        raise ConfigError("\n".join(explain(error, origin, {}))) from error


def unresolved(tree: Any) -> list[tuple[str, str]]:
    """The dotted keys below which a `${...}` text is left, with that text."""
    return [(".".join(map(str, keys)), text) for keys, text in _interpolations(tree)]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not valid YAML: byte {error.start} is not UTF-8; save the file as UTF-8."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"cannot read the config {path}: {error.strerror}; recipes to start from are in launch/recipes."
        ) from error


def _parse(text: str, path: Path) -> DictConfig:
    try:
        tree = OmegaConf.create(text)
    except AssertionError:  # OmegaConf's word for a lone number.
        tree = None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, DictConfig) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{path}: a config is a mapping of settings, such as `steps: 1000`.")
    return tree


def _override(tree: DictConfig, overrides: Sequence[str]) -> None:
    given: dict[str, str] = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {text!r} is not of the form dotted.key=value, such as steps=100.")
        if key in given:
            raise ConfigError(f"command line: {key} is given twice, as {given[key]!r} and {text!r}: say it once.")
        given[key] = text
        try:
            # Read as in a file, where PyYAML alone takes 1e3 for a text.
            parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
            OmegaConf.update(tree, key, parsed["value"], merge=False)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(f"override {text!r}: {' '.join(str(error).split())}") from error


def _validate(tree: DictConfig, origin: Origin) -> Config:
    texts = dict(_interpolations(OmegaConf.to_container(tree, resolve=False)))
    try:
        values = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{origin.file}: {' '.join(str(error).split())}") from error
    try:
        return Config.model_validate(values).with_interpolations(texts)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, origin, texts))) from error


def _interpolations(node: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    if isinstance(node, str) and "${" in node:
        yield keys, node
    for key, value in _children(node):
        yield from _interpolations(value, (*keys, key))


def _children(node: Any) -> Iterable[tuple[str | int, Any]]:
    if isinstance(node, dict):
        return cast("dict[str, Any]", node).items()
    return enumerate(cast("list[Any]", node)) if isinstance(node, list) else ()
