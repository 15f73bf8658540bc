"""Turns a pydantic error into sentences for the user.

A sentence names the line in the file, the wrong value, the rule that the value breaks, and the nearest valid value, if
any. An example is `my.yaml:7: data.flip=1.5: it should be less than or equal to 1; the nearest that works is 1.0.`

`load.py` calls `explain` with the error of `Config.model_validate`. The texts of pydantic name types of Python, so this
module replaces them by texts about YAML (`RULES`).
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from emocap_pretrain.config.schema import Config, Keys

RULES = {
    "tuple_type": "a list",
    "dict_type": "a mapping, such as {key: value}",
    "model_type": "a block of settings, such as {key: value}",
    "string_type": "a text; put it into quotes",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}
# Least similarity (a ratio of difflib) of a name that is suggested. 0.8 allows one wrong letter in a word of five
# letters, or a missing letter in a word of three. 0.7, for values, also allows two swapped letters.
CLOSE, CLOSE_VALUE = 0.8, 0.7


@dataclass(frozen=True, slots=True)
class Origin:
    """Holds the origin of each value: a line of the config file, or the command line.

    OmegaConf and pydantic do not keep the line numbers of a YAML file. So PyYAML parses the text a second time, into
    nodes that contain their line numbers.

    Args:
        file: The config file.
        lines: The line number of each key, counted from 1.
        overridden: The dotted keys that the command line sets, such as `data.flip`.
    """

    file: Path
    lines: Mapping[Keys, int]
    overridden: frozenset[str]

    @classmethod
    def of(cls, path: Path, text: str, overrides: Sequence[str]) -> "Origin":
        """Finds the lines of the keys in the text of a config file; `overrides` are `dotted.key=value` texts."""
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        keys = frozenset(override.partition("=")[0] for override in overrides)
        return cls(path, dict(_lines(root, ())), keys)

    def place(self, keys: Keys) -> str:
        """Returns the origin of a key as a text, such as `cfg.yaml:12` or `command line`.

        For a missing key, the line is that of the section that lacks the key.
        """
        # A value is from the command line if its key, a section that contains it, or a setting inside of it was given
        # there.
        dotted = [".".join(map(str, keys[:end])) for end in range(1, len(keys) + 1)]
        if not self.overridden.isdisjoint(dotted) or any(key.startswith(f"{dotted[-1]}.") for key in self.overridden):
            return "command line"
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return f"{self.file}:{self.lines[keys]}" if keys else str(self.file)


def _lines(node: yaml.Node | None, keys: Keys) -> Iterator[tuple[Keys, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*keys, str(key.value))
            yield inner, key.start_mark.line + 1
            yield from _lines(value, inner)


def explain(error: ValidationError, origin: Origin, texts: Mapping[Keys, str]) -> list[str]:
    """Returns one line of explanation for each wrong value.

    All wrong values of a config are explained at once, so that a user corrects them in one go.

    Args:
        error: The error of pydantic.
        origin: The origin of each value.
        texts: For each setting that reads an environment variable, its `${oc.env:...}` text, by key. The value of the
            variable may be a secret, so the lines show the text instead.
    """
    problems = [_with_plain_key(problem) for problem in error.errors()]
    places = {problem["loc"] for problem in problems}
    lines = [
        _without_secrets(_sentence(problem, origin), problem, texts)
        for problem in problems
        if not (problem["type"] == "too_short" and any(_lies_in(place, problem["loc"]) for place in places))
    ]
    return _joined(lines)


def _with_plain_key(problem: Any) -> dict[str, Any]:
    """Returns an entry of pydantic's list of errors, without the name of a type at the end of its key (`loc`).

    Pydantic adds such a name if the value may have one of several types.
    """
    keys: Keys = problem["loc"]
    is_type = bool(keys) and isinstance(keys[-1], str) and re.fullmatch(r"[a-z]+-[a-z]+|.*\[.*\]", keys[-1])
    return {**problem, "loc": keys[:-1] if is_type else keys}


def _lies_in(inner: Keys, outer: Keys) -> bool:
    """Returns whether the key `inner` lies in the section or list at `outer`.

    `explain` uses this to leave out a misleading report. Pydantic does not count wrong entries of a list. So besides a
    wrong entry it may also report that the list is too short.
    """
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _joined(lines: Iterable[str]) -> list[str]:
    """Merges all lines about the same value into one line.

    If a value may have one of several types and fits none of them, there is one line for each type.
    """
    rules: dict[str, list[str]] = {}
    for line in lines:
        value, separator, rule = line.partition(": it should be ")
        rules.setdefault(f"{value}{separator}", []).append(rule)
    return [
        f"{value}{'; or it should be '.join(each.rstrip('.') for each in found)}."
        if len(found) > 1
        else f"{value}{found[0]}"
        for value, found in rules.items()
    ]


def _without_secrets(sentence: str, problem: Any, texts: Mapping[Keys, str]) -> str:
    """Replaces each value of an environment variable in a sentence by the `${oc.env:...}` text that names the variable.

    `texts` holds these texts by key, and `problem` is the entry of pydantic's list of errors that the sentence
    explains.
    """
    keys: Keys = problem["loc"]
    for place, text in texts.items():
        # The problem may be the section that contains the value; then the sentence shows the whole section.
        if place[: len(keys)] == keys:
            value = str(_at(problem["input"], place[len(keys) :]))
            # The sentence contains a text as `repr` writes it, so characters that `repr` escapes are searched for too.
            for shown in (value, repr(value)[1:-1]):
                sentence = sentence.replace(shown, text) if shown else sentence
    return sentence


def _at(tree: Any, keys: Keys) -> Any:
    for key in keys:
        tree = tree[key]
    return tree


def _sentence(problem: Any, origin: Origin) -> str:
    keys: Keys = problem["loc"]
    dotted = ".".join(map(str, keys))
    place = origin.place(keys)
    if problem["type"] == "extra_forbidden":
        name, colon, value = str(keys[-1]).partition(":")
        if colon and value:  # `{rank:8}` is the key "rank:8" in YAML.
            return f"{place}: unknown key {dotted}; write a space after the colon: {name}: {value}"
        return f"{place}: unknown key {dotted}{did_you_mean(name, _names(keys[:-1]))}"
    if problem["type"] == "missing":
        return f"{place}: {dotted} is required{_described(keys)}."
    if problem["type"] == "value_error":  # Raised by a validator of ours, whose text is a whole sentence.
        return f"{place}: {dotted}: {problem['ctx']['error']}"
    return f"{place}: {dotted}={problem['input']!r}: {_rule(problem)}{_nearest(problem)}"


def _rule(problem: Any) -> str:
    """Returns the rule that a value breaks, with types as a user of YAML knows them, such as "a list".

    `problem` is the entry about this value in pydantic's list of errors.
    """
    kind, bounds = problem["type"], problem.get("ctx", {})
    if kind in RULES:
        return f"it should be {RULES[kind]}"
    if kind in {"too_short", "string_too_short"}:
        return f"it must not be empty; give {bounds['min_length']} or more"
    if kind == "too_long":
        return f"it should be a list of {bounds['max_length']} at most"
    if kind == "string_pattern_mismatch":
        return f"it should be of the form {bounds['pattern']}"
    return problem["msg"].replace("Input should be", "it should be")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Returns the end of a message about an unknown name: the closest known name, or all of them.

    >>> did_you_mean("stpes", ["steps", "seed"])
    '; did you mean steps?'
    >>> did_you_mean("colour", ["steps", "seed"])
    '; known here: steps, seed.'
    """
    close = _closest(name, known)
    return f"; did you mean {close}?" if close else f"; known here: {', '.join(known)}."


def _closest(name: str, known: Sequence[str], cutoff: float = CLOSE) -> str | None:
    """Returns the name in `known` that is most similar to `name`; None if no name is similar.

    Two names are similar if the ratio of `difflib` for them, in [0, 1], is at least `cutoff`. A short and a long name
    are also similar if the long one is the short one with words added at its beginning or end, such as `url` and
    `data_url`.
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    longer = [each for each in known if _has_more_words(each, name) or _has_more_words(name, each)]
    return next(iter([*close, *longer]), None)


def _has_more_words(longer: str, shorter: str) -> bool:
    return len(shorter) > 2 and (longer.startswith(f"{shorter}_") or longer.endswith(f"_{shorter}"))


def _nearest(problem: Any) -> str:
    # An open bound (`gt`, `lt`) has no nearest valid value, so none is named.
    bounds = problem.get("ctx", {})
    for bound in ("ge", "le"):
        if bound in bounds:
            return f"; the nearest that works is {bounds[bound]}."
    if problem["type"] == "literal_error":
        # Pydantic gives the allowed values only as a text, such as "'pack' or 'spread'".
        options = [text.strip("' ") for text in bounds["expected"].replace(" or ", ",").split(",")]
        close = _closest(str(problem["input"]), options, CLOSE_VALUE)
        return f"; did you mean {close}?" if close else "."
    return "."


def _names(keys: Keys) -> list[str]:
    section = _section(keys)
    return [field.alias or name for name, field in section.model_fields.items()] if section else []


def _described(keys: Keys) -> str:
    section = _section(keys[:-1])
    field = section.model_fields.get(str(keys[-1])) if section else None
    return f" ({field.description.rstrip('.')})" if field and field.description else ""


def _section(keys: Keys) -> type[BaseModel] | None:
    """Returns the model class of the section at these keys; for a list of sections, the class of its entries."""
    section: type[BaseModel] | None = Config
    # The numbers of list entries are left out: all entries of a list have the same class.
    for key in (key for key in keys if isinstance(key, str)):
        fields = section.model_fields if section else {}
        found = next((field for name, field in fields.items() if key in {name, field.alias}), None)
        section = model_in(found.annotation) if found else None
    return section


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Returns the model class in an annotation such as `SgdConfig | None` or `tuple[MixtureDatasetConfig, ...]`.

    Returns None if there is none.
    """
    if get_origin(annotation) in {Union, UnionType, tuple}:
        return next((found for part in get_args(annotation) if (found := model_in(part))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
