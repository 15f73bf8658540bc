"""Reads a YAML file that a user names on the command line."""

from pathlib import Path
from typing import Any

import yaml

from emocap_pretrain.errors import ConfigError

_MOST_BYTES = 1 << 20


def read_yaml(path: Path, option: str) -> Any:
    """Returns the content of a YAML file, of which at most 1 MiB is read.

    Args:
        path: The file.
        option: The option that names the file, such as "--sentences", for the error message.

    Raises:
        ConfigError: If the file cannot be read, is not YAML, or has a mapping in which a key is repeated.
    """
    try:
        with path.open("rb") as file:
            return yaml.load(file.read(_MOST_BYTES), Loader=_Loader)  # noqa: S506 - a subclass of the safe loader
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{option} {path}: the file cannot be read: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a mapping in which a key is repeated. PyYAML alone would silently use the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {repeated[0]!r} is given twice")
        return super().construct_mapping(node, deep)
