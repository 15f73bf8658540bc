"""Reads a config from a YAML file and from the command line. An error message has one line for each wrong value.

`load` and `from_stored` trust their input differently. `load` reads a file of the user: it resolves `${oc.env:...}` and
makes paths absolute. `from_stored` reads the settings in a checkpoint, which a stranger may have written: it resolves
nothing in them, and looks up no path (docs/security.md).

`load` works in four steps. It reads a bounded number of bytes. It parses the YAML, and checks the size of the document
before values are built. It applies the overrides. Finally it resolves and validates the settings.
"""

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from emocap_shards.mask import remember
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from pydantic import ValidationError, create_model

from emocap_pretrain.config.explain import Origin, explain
from emocap_pretrain.config.fields import Section
from emocap_pretrain.config.location import INERT
from emocap_pretrain.config.schema import Config, Keys
from emocap_pretrain.config.stored import current
from emocap_pretrain.errors import ConfigError

Form = TypeVar("Form", bound=Section)
LARGEST_BYTES = 256 << 10
# Limits against documents that are small as a file and huge as a value: aliases of aliases, lists in lists, and long
# numbers. docs/security.md lists them.
MOST_NODES, DEEPEST, LONGEST_NUMBER, MOST_INTERPOLATIONS = 20_000, 40, 40, 32
_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
_NOT_SECRET = {"HOME", "HOSTNAME", "LOGNAME", "PWD", "TMPDIR", "USER"}  # Environment variables that are never masked.


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads the config of a run from a file.

    Relative paths are relative to the folder in which the process was started, and not to the folder of the file. The
    values of environment variables that the file names are masked in all later messages of this process, unless they
    are public, such as a user name or an existing path.

    Example:
        `load("launch/recipes/tiny.yaml", ["steps=20", "data.flip=0"])`

    Args:
        path: A YAML file.
        overrides: `dotted.key=value` texts, with values in YAML; they take precedence over the file. If the key is
            that of a section or a list, the value replaces all of it.

    Raises:
        ConfigError: For a missing file, bad YAML, an unknown key or a value out of bounds.
    """
    path = Path(path)
    text = _read(path)
    tree = _parse(text, path)
    _override(tree, overrides)
    return _validate(tree, Origin.of(path, text, overrides))


def from_stored(tree: Any) -> Config:
    """Reads settings that `Config.stored` or `stored.dump` returned.

    The settings are not trusted, because another user may have written them. Therefore a `${...}` text is not resolved,
    and no path is looked up. A setting that this version does not have is ignored, unless it is a setting of `model`
    that the user had set.

    Raises:
        ConfigError: If this version cannot read the settings, because a value is not valid (such as a `${...}` in place
            of a number), or because the user had set a setting of `model` that this version does not have.
    """
    try:
        settings = current(cast("dict[str, Any]", tree), decisive=("model.",)) if isinstance(tree, dict) else tree
        return Config.model_validate(settings, context=INERT)
    except ValidationError as error:
        origin = Origin(Path("the checkpoint's config"), {}, frozenset())
        raise ConfigError("\n".join(explain(error, origin, {}))) from error


def with_section(config: Config, section: str, values: Mapping[str, Any]) -> Config:
    """Returns the config with other values in one section. Paths among the values are not made absolute.

    The whole config is validated again, so rules between sections hold for the new values too. The other sections keep
    their `${oc.env:...}` texts.

    Args:
        config: The config.
        section: Name of the section, such as `evaluation`.
        values: The new values by their names in the section, from the command line.

    Raises:
        ConfigError: If a value is wrong.
    """
    tree = config.model_dump(mode="json")
    try:
        changed = Config.model_validate({**tree, section: {**tree[section], **values}}, context=INERT)
    except ValidationError as error:
        origin = Origin(Path("command line"), {}, frozenset(f"{section}.{name}" for name in values))
        raise ConfigError("\n".join(explain(error, origin, {}))) from error
    return config.replacing(section, getattr(changed, section), values)


def section_of(name: str, defaults: Form, overrides: Sequence[str]) -> Form:
    """Returns a section with the values of the command line, and the given defaults for all others.

    Nothing in the values is resolved.

    Example:
        section_of("optimizer", OptimizerConfig(lr=0.1), ["name=lion"])  # Lion with the learning rate 0.1.

    Args:
        name: The key of the section in a config, for messages.
        defaults: A section. What it does not set has the defaults of its type.
        overrides: `key=value` texts, with values in YAML; the keys are those in the section.

    Raises:
        ConfigError: For an unknown key, a key that is given twice, or a value out of bounds.
    """
    tree = OmegaConf.create({name: defaults.model_dump(mode="json", exclude_unset=True)})
    texts = [f"{name}.{text}" for text in overrides]
    _override(tree, texts)
    fields: Any = {name: (type(defaults), ...)}
    try:
        found = create_model("Given", **fields).model_validate(OmegaConf.to_container(tree, resolve=False))
    except ValidationError as error:
        keys = frozenset(text.partition("=")[0] for text in texts)
        raise ConfigError("\n".join(explain(error, Origin(Path("command line"), {}, keys), {}))) from error
    return getattr(found, name)


def unresolved(tree: Any) -> list[tuple[str, str]]:
    """Returns the dotted key and the text of each value that still contains a `${...}`."""
    return [(".".join(map(str, keys)), text) for keys, text in _interpolations(tree)]


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)  # One byte more shows that the file is too large.
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not valid YAML: byte {error.start} is not UTF-8; save the file as UTF-8."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"cannot read the config {path}: {error.strerror}; recipes to start from are in launch/recipes."
        ) from error
    if len(data) > LARGEST_BYTES:
        raise ConfigError(f"{path}: a config of more than {LARGEST_BYTES >> 10} KiB; is that the right file?")
    return text


def _parse(text: str, path: Path) -> DictConfig:
    try:
        # `compose` makes only nodes, in which an alias is a reference. OmegaConf then builds the values.
        _require_small(yaml.compose(text, Loader=yaml.SafeLoader))
        tree = OmegaConf.create(text)
    except AssertionError:  # OmegaConf raises it for a document that is a single number.
        tree = None
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: it is nested too deeply.") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, DictConfig) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{path}: a config is a mapping of settings, such as `steps: 1000`.")
    return tree


def _require_small(root: yaml.Node | None) -> None:
    """Checks the size of a document before values are built from it, because aliases can make a small file huge.

    Raises:
        ValueError: If the document has too many values, is nested too deeply, or has a number with too many digits. The
            values that an alias refers to count at each place where the alias is used.
    """
    # A node that aliases refer to is visited once; its size is counted at each place where it occurs.
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, depth: int) -> int:
        if depth > DEEPEST:
            raise ValueError(f"line {node.start_mark.line + 1} is nested more than {DEEPEST} levels deep")
        if isinstance(node, yaml.ScalarNode):
            if node.tag in _NUMBERS and len(node.value) > LONGEST_NUMBER:
                raise ValueError(f"line {node.start_mark.line + 1} has a number of {len(node.value):,} digits")
            return 1
        if id(node) not in sizes:
            inner = (part for each in node.value for part in (each if isinstance(each, tuple) else (each,)))
            sizes[id(node)] = 1 + sum(size(part, depth + 1) for part in inner)
        return sizes[id(node)]

    if root is not None and (nodes := size(root, 0)) > MOST_NODES:
        raise ValueError(f"with its aliases it has {nodes:,} values, and at most {MOST_NODES:,} are allowed")


def _override(tree: DictConfig, overrides: Sequence[str]) -> None:
    given: dict[str, str] = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {text!r} is not of the form dotted.key=value, such as steps=100.")
        if key in given:
            raise ConfigError(f"command line: {key} is given twice, as {given[key]!r} and {text!r}: give it once.")
        given[key] = text
        try:
            _require_small(yaml.compose(value, Loader=yaml.SafeLoader))
            # OmegaConf reads the value as in a file; PyYAML alone would read 1e3 as a text.
            parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
            OmegaConf.update(tree, key, parsed["value"], merge=False)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
            raise ConfigError(f"override {text!r}: {' '.join(str(error).split())}") from error


def _validate(tree: DictConfig, origin: Origin) -> Config:
    texts = dict(_interpolations(OmegaConf.to_container(tree, resolve=False)))
    # An interpolation may refer to a text with further interpolations, so their number limits the size of the result.
    if (count := sum(text.count("${") for text in texts.values())) > MOST_INTERPOLATIONS:
        raise ConfigError(f"{origin.file}: {count} interpolations ${{...}}; at most {MOST_INTERPOLATIONS} are allowed.")
    # Only the values that this config has read become secrets. The whole environment would mask ordinary words.
    with _recorded_environment() as read:
        try:
            values = OmegaConf.to_container(tree, resolve=True)
        except (OmegaConfBaseException, RecursionError) as error:
            raise ConfigError(f"{origin.file}: {' '.join(str(error).split())}") from error
    secrets = [value for name, value in read.items() if not _is_public(name, value)]
    remember(*secrets)
    try:
        return Config.model_validate(values).with_interpolations(texts, secrets)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, origin, texts))) from error


@contextmanager
def _recorded_environment() -> Generator[dict[str, str]]:
    """Yields a mapping, and adds to it the environment variables that `oc.env` reads in the `with` block.

    OmegaConf has one resolver named `oc.env` for the whole process. It is replaced during the block, for all threads,
    and restored afterwards.
    """
    read: dict[str, str] = {}

    def env(key: str, *default: Any) -> str | None:
        value = oc.env(key, *default)
        if key in os.environ:
            read[key] = os.environ[key]
        return value

    OmegaConf.register_new_resolver("oc.env", env, replace=True)
    try:
        yield read
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _is_public(name: str, value: str) -> bool:
    """Returns whether an environment variable holds a user name, a host name or a path.

    Such a value is not a secret, and it helps the reader of a message.
    """
    if name in _NOT_SECRET or name.startswith("SLURM_"):
        return True
    # A path counts if it or its folder exists, because an output may not exist yet. A secret may begin with a slash,
    # and the root always exists, so a path directly below the root must exist itself.
    path = Path(value)
    try:
        return path.is_absolute() and (path.exists() or (path.parent != Path("/") and path.parent.exists()))
    except OSError:
        return False


def _interpolations(node: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    if isinstance(node, str) and "${" in node:
        yield keys, node
    for key, value in _children(node):
        yield from _interpolations(value, (*keys, key))


def _children(node: Any) -> Iterable[tuple[str | int, Any]]:
    if isinstance(node, dict):
        return cast("dict[str, Any]", node).items()
    return enumerate(cast("list[Any]", node)) if isinstance(node, list) else ()
