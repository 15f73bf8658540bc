"""Reads sets of prompts: those that this package contains, and a user's own file.

There are two kinds of sets. Most sets have templates, in each of which `{}` is replaced by the words of a class. Such a
set may name other prompts that replace templates for single classes, because published code has such exceptions, and
its scores depend on them. The other sets have no templates, but whole prompts for certain classes, such as descriptions
of their faces.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, TypeAlias

import yaml
from pydantic import Field, TypeAdapter, model_validator

from emocap_pretrain.benchmarks.sources import FactSource, Text
from emocap_pretrain.config.explain import did_you_mean
from emocap_pretrain.config.fields import Section, Template, Words
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.config.user_yaml import read_yaml
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.inference.classes import validated

SETS = Path(__file__).with_name("prompt_sets")

Prompts: TypeAlias = tuple[Sequence[str], Mapping[str, Sequence[str]]]
"""The templates, and by the name of each class what takes the place of `{}` in them."""


class PromptSetConfig(Section):
    """Describes a set of prompts.

    Attributes:
        about: The set in one line.
        source: Where the prompts were read; `unknown` if they were written for this package, or by a user.
        templates: The prompts with `{}` in place of the words of a class; empty if the set has `classes`.
        instead: The exceptions: `instead[class][template]` is the prompt that replaces the template for the class of
            this name.
        words: The words that replace `{}` for the class of a name, such as adjectives. If there are any, the set has no
            prompts for other classes. Empty takes the words of the evaluation.
        classes: The whole prompts of each class by its name; empty if the set has `templates`.
    """

    about: Text = "own prompts"
    source: FactSource = "unknown"
    templates: tuple[Template, ...] = ()
    instead: Mapping[str, Mapping[str, Text]] = Field(default={})
    words: Mapping[str, Text] = Field(default={})
    classes: Mapping[str, Annotated[tuple[Text, ...], Field(min_length=1)]] = Field(default={})

    @model_validator(mode="after")
    def _has_one_kind_of_prompts(self) -> "PromptSetConfig":
        if bool(self.templates) == bool(self.classes):
            raise ValueError("give either templates, or classes with whole prompts.")
        return self

    def expanded(self, classes: Mapping[str, Sequence[str]]) -> Prompts:
        """Returns the templates, and for each class the texts that replace `{}` in them.

        If every class has the same templates, the templates of the set are returned, and the words of each class. If
        the set has whole prompts, or an exception for one of the classes, the only template is `{}`, and the texts of
        each class are its whole prompts.

        Args:
            classes: The words of each class by its name.

        Raises:
            ConfigError: If the set has whole prompts or own words, and none for one of the classes or its words.
        """
        if self.classes:
            return ("{}",), {name: self.classes[self._known(name, words)] for name, words in classes.items()}
        if self.words:
            classes = {name: (self.words[self._known(name, words)],) for name, words in classes.items()}
        if not set(self.instead) & set(classes):
            return self.templates, classes
        return ("{}",), {name: self._prompts(name, words) for name, words in classes.items()}

    def _known(self, name: str, words: Sequence[str]) -> str:
        # Labels may be numbers or other names of the same emotion, so the words of the class count too.
        classes = self.classes or self.words
        known = [each for each in (name, *words) if each in classes]
        if not known:
            raise ConfigError(
                f"evaluation.prompts: the set has no prompts for the class {name!r}, only for "
                f"{', '.join(classes)}: choose another set, or for compound classes compound=parts."
            )
        return known[0]

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


def expanded(settings: EvaluationConfig, classes: Mapping[str, Sequence[str]]) -> Prompts:
    """Returns templates, and for each class the texts that replace `{}` in the templates.

    If the settings name a set of prompts, templates and texts come from this set (`PromptSetConfig.expanded`).
    Otherwise the templates are those of the settings, and the texts are the words in `classes`.

    With `compound=parts`, the texts of a compound class are those of all simple classes that it consists of. A simple
    class that is not in `classes` has its name as its only word. If then `settings.ensemble` is "embeddings", the
    vector of a compound class is the mean of the unit vectors of all these prompts, scaled to unit length, as in
    EmoCLIP (Foteinopoulou and Patras, 2024).

    Args:
        settings: The settings of the evaluation.
        classes: The words of each class by its name.

    Raises:
        ConfigError: If the settings name a set that does not exist, or that has no prompts for a class.
    """
    parts = settings.parts if settings.compound == "parts" else {}
    simple = {part: classes.get(part, (part,)) for name in classes for part in parts.get(name, (name,))}
    templates, words = shipped(settings.prompts).expanded(simple) if settings.prompts else (settings.templates, simple)
    return templates, {
        name: tuple(word for part in parts.get(name, (name,)) for word in words[part]) for name in classes
    }


def has_whole_prompts(settings: EvaluationConfig) -> bool:
    """Returns whether the words of the classes are whole prompts, such as those of a user's YAML file."""
    return bool(settings.classes) and settings.templates == ("{}",) and not settings.prompts


def covers(settings: EvaluationConfig, classes: Mapping[str, Sequence[str]]) -> bool:
    """Returns whether the settings give prompts to all of these classes, so that `expanded` raises no error."""
    try:
        expanded(settings, classes)
    except ConfigError:
        return False
    return True


def own_prompts(path: Path) -> dict[str, tuple[str, ...]]:
    """Returns the whole prompts of each class from a user's YAML file, a mapping from classes to texts or lists.

    Raises:
        ConfigError: If the file cannot be read, or has another form.
    """
    return validated(_OWN, read_yaml(path, "--prompts"), f"--prompts {path}")
