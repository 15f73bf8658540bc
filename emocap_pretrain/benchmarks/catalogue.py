"""Reads the cards of all benchmarks, which are files of this package, and finds one by its name."""

from functools import cache
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from emocap_pretrain.benchmarks.card import Card
from emocap_pretrain.config.explain import did_you_mean
from emocap_pretrain.errors import ConfigError

CARDS = Path(__file__).with_name("cards")
_CARD: TypeAdapter[Card] = TypeAdapter(Card)


def names() -> tuple[str, ...]:
    """Returns the names of all benchmarks in alphabetical order."""
    return tuple(sorted(path.stem for path in CARDS.glob("*.yaml")))


@cache
def card(name: str) -> Card:
    """Returns the card of a benchmark.

    Raises:
        ConfigError: If there is no benchmark of this name.
    """
    if name not in names():
        raise ConfigError(f"there is no benchmark {name!r}{did_you_mean(name, names())} `emocap benchmarks list`.")
    return parsed((CARDS / f"{name}.yaml").read_bytes())


def parsed(text: bytes) -> Card:
    """Returns the card that a YAML text describes.

    Raises:
        ValidationError: If the text is not a card.
        YAMLError: If the text is not YAML.
    """
    return _CARD.validate_python(yaml.safe_load(text))
