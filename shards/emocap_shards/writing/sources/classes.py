"""Translates the class labels of Hugging Face datasets from numbers into the names in the dataset's features."""

from collections.abc import Collection, Mapping
from typing import Any

from emocap_shards.errors import RecordError

Classes = Mapping[str, list[str]]


def classes_of(features: Mapping[str, Any], used: Collection[str]) -> Classes:
    """Returns the names of the classes of each column in `used` that holds class labels."""
    objects = {name: feature for name, feature in features.items() if isinstance(feature, Mapping) and name in used}
    return {name: list(each["names"]) for name, each in objects.items() if each.get("_type") == "ClassLabel"}


def with_names(values: Mapping[str, Any], classes: Classes) -> dict[str, Any]:
    """Returns the values of a row with each class as its name. The class -1, which means no class, becomes None.

    Raises:
        RecordError: If a class has no name.
    """
    return {**values, **{name: _name(values[name], names) for name, names in classes.items()}}


def _name(value: object, names: list[str]) -> str | None:
    if value is None or value == -1:
        return None
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise RecordError(f"class {value!r} has no name; there are {len(names)}")
    return names[value]
