"""Kinds of values that settings have."""

import re
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
_OF_PART = "weight of a caption part"
PartWeight = Annotated[float, Field(ge=0), _OF_PART]
Decay = Annotated[float, Field(ge=0, lt=1)]
Length = Annotated[int, Field(ge=3)]  # The marks of start and end, and a token between them.


def is_part_weight(info: FieldInfo) -> bool:
    """Returns whether a setting is the weight of a caption part."""
    return _OF_PART in info.metadata


def _with_a_place(template: str) -> str:
    if "{}" not in template:
        raise ValueError(f"{template!r} has no {{}}, where the words for a class go.")
    return template


_WHOLE = re.compile(r"([+-]?\d+)\.0*")


def label_text(label: str | float) -> str:
    """A label as classes are named: a whole number is `0`, whether it was written 0, 0.0 or "0.0"."""
    whole = _WHOLE.fullmatch(str(label))
    return str(int(whole[1])) if whole else str(label)


def _by_text(classes: object) -> object:
    """YAML reads the keys 0, 0.5, yes and null as other things than texts."""
    if not isinstance(classes, dict):
        return classes
    named: dict[str, Any] = {}
    for key, words in cast("dict[Any, Any]", classes).items():
        if key is None or isinstance(key, bool):
            raise ValueError(f"YAML reads a class as {key!r}; put its name into quotes.")
        name = label_text(key)
        if name in named:
            raise ValueError(f"the class {name!r} comes twice.")
        named[name] = words
    return named


def _one_or_more(words: object) -> object:
    return (words,) if isinstance(words, str) else words


Template = Annotated[str, AfterValidator(_with_a_place)]
Words = Annotated[tuple[str, ...], BeforeValidator(_one_or_more), Field(min_length=1)]
Classes = Annotated[dict[str, Words], BeforeValidator(_by_text), Field(min_length=1)]


class Section(BaseModel):
    """A frozen block of settings; a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
