"""Reads the small JSON files that describe a model, which somebody else may have written."""

import json
from pathlib import Path
from typing import Any

from emocap_pretrain.errors import ConfigError

LARGEST_JSON = 4 << 20  # The largest such file, the index of a model in many parts, has some hundred KiB.


def read_json(path: Path, where: str) -> dict[str, Any]:
    """Returns the mapping in a JSON file.

    Args:
        path: The file.
        where: First words of an error message: the setting and its value.

    Raises:
        ConfigError: If the file cannot be read, has more than `LARGEST_JSON` bytes, or does not hold a mapping.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON >> 20} MiB")
        tree = json.loads(path.read_bytes())
        if not isinstance(tree, dict):
            raise ValueError("it is not a mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {path.name} cannot be read ({str(error).splitlines()[0]}).") from error
    return tree  # pyright: ignore[reportUnknownVariableType]
