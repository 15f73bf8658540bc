"""Reads sets of prompts: those that this package contains, and a user's own file.

A set has templates, in each of which `{}` is replaced by the words of a class. For single classes another prompt may
take the place of a template: published code is not always regular, and its scores depend on its words.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, TypeAdapter

from emocap_pretrain.benchmarks.sources import FactSource, Text
from emocap_pretrain.config.explain import did_you_mean
from emocap_pretrain.config.fields import Section, Template, Words
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.config.user_yaml import read_yaml
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.inference.classes import validated

SETS = Path(__file__).with_name("prompt_sets")


class PromptSetConfig(Section):
    """Describes a set of prompts.

    Attributes:
        about: The set in one line.
        source: Where the prompts were read; `unknown` for a user's own set.
        templates: The prompts with `{}` in place of the words of a class.
        instead: By the name of a class, the prompts that replace templates for this class.
    """

    about: Text = "own prompts"
    source: FactSource = "unknown"
    templates: Annotated[tuple[Template, ...], Field(min_length=1)]
    instead: Mapping[str, Mapping[str, Text]] = Field(default={})

    def expanded(self, classes: Mapping[str, Sequence[str]]) -> tuple[Sequence[str], Mapping[str, Sequence[str]]]:
        """Returns the templates, and what takes the place of `{}` in them for each class.

        If every class has the same templates, these are the words of the classes. Otherwise the only template is `{}`,
        and whole prompts take its place.
        """
        if not set(self.instead) & set(classes):
            return self.templates, classes
        return ("{}",), {name: self._prompts(name, words) for name, words in classes.items()}

    def _prompts(self, name: str, words: Sequence[str]) -> list[str]:
        instead = self.instead.get(name, {})
        return [instead.get(template, template).replace("{}", word) for template in self.templates for word in words]


_SET: TypeAdapter[PromptSetConfig] = TypeAdapter(PromptSetConfig)
_OWN: TypeAdapter[dict[str, tuple[str, ...]]] = TypeAdapter(Annotated[dict[str, Words], Field(min_length=1)])


def names() -> tuple[str, ...]:
    """Returns the names of the sets that this package contains, in alphabetical order."""
    return tuple(sorted(path.stem for path in SETS.glob("*.yaml")))


@cache
def shipped(name: str) -> PromptSetConfig:
    """Returns a set of this package.

    Raises:
        ConfigError: If there is no set of this name.
    """
    if name not in names():
        raise ConfigError(f"there is no set of prompts {name!r}{did_you_mean(name, names())}")
    return _SET.validate_python(yaml.safe_load((SETS / f"{name}.yaml").read_bytes()))


def expanded(
    settings: EvaluationConfig, classes: Mapping[str, Sequence[str]]
) -> tuple[Sequence[str], Mapping[str, Sequence[str]]]:
    """Returns the templates of the settings, and the words of each class in them (`PromptSetConfig.expanded`).

    Raises:
        ConfigError: If the settings name a set that does not exist.
    """
    return shipped(settings.prompts).expanded(classes) if settings.prompts else (settings.templates, classes)


def own_prompts(path: Path) -> dict[str, tuple[str, ...]]:
    """Returns the whole prompts of each class from a user's YAML file, a mapping from classes to texts or lists.

    Raises:
        ConfigError: If the file cannot be read, or has another form.
    """
    return validated(_OWN, read_yaml(path, "--prompts"), f"--prompts {path}")
