"""Defines the types of the values of settings, and the base class of all sections of a config.

Each type contains its bounds, so that pydantic refuses a wrong value and `explain.py` can name the nearest valid value.
"""

import re
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1)]  # Of the values of an image, which are in [0, 1].
Weight = Annotated[float, Field(ge=0)]
_IS_PART_WEIGHT = "weight of a caption part"  # Pydantic's metadata of a field mark such a setting with this text.
PartWeight = Annotated[float, Field(ge=0), _IS_PART_WEIGHT]
Decay = Annotated[float, Field(ge=0, lt=1)]
# `strict` refuses true, which would otherwise be read as the depth 1.
Freeze = Literal["all"] | Annotated[int, Field(ge=0, strict=True)]
ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=80)]
ImageCrop = Literal["center", "whole"]  # The part of an image that is resized: its central square, or the whole image.
Precision = Literal["fp32", "bf16", "fp16"]  # Of the products in the towers. Weights are always float32.
Length = Annotated[int, Field(ge=3)]  # Tokens: the start token, the end token, and at least one between them.


def is_part_weight(info: FieldInfo) -> bool:
    """Returns whether a setting is the weight of a caption part. The type of such a setting is `PartWeight`.

    There is no list of the names of such settings, so a new part needs only one line in `ObjectiveConfig`.
    """
    return _IS_PART_WEIGHT in info.metadata


def _has_placeholder(template: str) -> str:
    if "{}" not in template:
        raise ValueError(f"{template!r} has no {{}} to be replaced by the words for a class.")
    return template


def _is_own_tag(name: str) -> str:
    if name.startswith(("mlflow.", "emocap.")):
        raise ValueError(f"{name!r}: tags that begin with mlflow. or emocap. have a meaning of their own.")
    return name


# A whole number with decimals that are all zero. "007" and "1e3" do not match and stay as they are.
_WHOLE = re.compile(r"([+-]?\d+)\.0*")


def label_text(label: str | float) -> str:
    """Returns the name of the class to which a label refers. The labels 0, 0.0 and "0.0" all refer to the class "0".

    One class may be written in several ways, because a table with missing values stores whole numbers as floats.

    >>> [label_text(label) for label in (0, 0.0, "0.0", 0.5, "joy")]
    ['0', '0', '0', '0.5', 'joy']
    """
    whole = _WHOLE.fullmatch(str(label))
    return str(int(whole[1])) if whole else str(label)


def _by_text(classes: object) -> object:
    """Converts the names of classes to texts, because YAML reads names such as 0 and 0.5 as numbers.

    Raises:
        ValueError: If YAML reads a name as a truth value or as null, or if a name is given twice.
    """
    if not isinstance(classes, dict):
        return classes
    by_name: dict[str, Any] = {}
    for key, words in cast("dict[Any, Any]", classes).items():
        if key is None or isinstance(key, bool):
            raise ValueError(f"YAML reads a class as {key!r}; put its name into quotes.")
        name = label_text(key)
        if name in by_name:
            raise ValueError(f"the class {name!r} is given twice.")
        by_name[name] = words
    return by_name


def _one_or_more(words: object) -> object:
    return (words,) if isinstance(words, str) else words


def _texts(names: object) -> object:
    """Converts the names in a list to texts, because YAML reads names such as 0 and 0.5 as numbers.

    A value that is not a list is returned as it is: pydantic reports it.

    Raises:
        ValueError: If YAML reads a name as a truth value or as null.
    """
    if not isinstance(names, list | tuple):
        return names
    found = cast("list[Any]", names)
    for name in found:
        if name is None or isinstance(name, bool):
            raise ValueError(f"YAML reads a class as {name!r}; put its name into quotes.")
    return tuple(label_text(name) for name in found)


Template = Annotated[str, AfterValidator(_has_placeholder)]
SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]  # Of a set of faces.
# What is averaged over the prompts of a class: the cosines of an image with them, or their unit vectors.
Ensemble = Literal["logits", "embeddings"]
Words = Annotated[tuple[str, ...], BeforeValidator(_one_or_more), Field(min_length=1)]
TextsOfYaml = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], BeforeValidator(_texts)]
TagName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$"), AfterValidator(_is_own_tag)]
# MLflow allows these characters in the name of a metric, which contains the name of the label.
LabelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_ .-]*$", max_length=80)]
Classes = Annotated[dict[str, Words], BeforeValidator(_by_text), Field(min_length=1)]


class Section(BaseModel):
    """Base class of all sections. A section is immutable; it refuses unknown keys and non-finite numbers."""

    # Unknown keys are refused because a misspelled setting would otherwise keep its default, and nobody would notice.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
