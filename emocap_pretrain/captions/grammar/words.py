"""Reads the words of captions from the TOML files in this folder."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Words = Sequence[str]


def read(name: str) -> dict[str, Any]:
    """Returns the tables of a TOML file in this folder."""
    return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


WORDS = read("words.toml")
