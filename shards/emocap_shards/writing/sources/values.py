"""Reads the small files of one sample that hold its texts and labels: texts, JSON objects, and arrays of one value."""

import io
import json
import math
from typing import Any, cast

import numpy as np
import orjson

from emocap_shards.errors import RecordError


def text_of(data: bytes, name: str) -> str:
    """Returns a text in UTF-8 without white space at its ends. `name` names the file in the error.

    Raises:
        RecordError: If the bytes are not UTF-8.
    """
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise RecordError(f"{name} is not UTF-8 ({error})") from error


def json_of(data: str | bytes) -> Any:
    """Returns the value of a JSON text. `NaN` and `Infinity`, which Python and pandas write, are numbers too.

    Raises:
        ValueError: If it is not JSON.
    """
    try:
        return orjson.loads(data)
    except ValueError:
        # orjson is fast and strict. A text without these words is not JSON for either of the two.
        words = (b"NaN", b"Infinity") if isinstance(data, bytes) else ("NaN", "Infinity")
        if not any(word in data for word in words):  # pyright: ignore[reportOperatorIssue]
            raise
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def object_of(data: bytes, name: str) -> dict[str, Any]:
    """Returns the members of a JSON object. `name` names the file in the error.

    Raises:
        RecordError: If the bytes are not a JSON object.
    """
    try:
        value = json_of(data)
    except ValueError as error:
        raise RecordError(f"{name} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise RecordError(f"{name} is {type(value).__name__}, not a JSON object")
    return cast("dict[str, Any]", value)


def array_value_of(data: bytes, name: str) -> str | float:
    """Returns the only value of a file of NumPy: a number, also if it is written as a text, or another text.

    Raises:
        RecordError: If the bytes are not an array of one number or text. `name` names the file in the error.
    """
    try:
        value = only_value(data)
    except ValueError as error:
        raise RecordError(f"{name} is not a NumPy array ({error})") from error
    if value is None:
        raise RecordError(f"{name} is not an array of one number or text")
    try:
        return float(value)
    except ValueError:
        return value


def only_value(data: bytes) -> str | None:
    """Returns the value of an array that has one number or text, as text; None for any other array.

    The header is examined first, because numpy would reserve the memory that it states, and would open archives.

    Raises:
        ValueError: If the bytes are not a file of NumPy.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in {(1, 0), (2, 0)}:
        return None
    is_first = version == (1, 0)
    shape, _, kind = (
        np.lib.format.read_array_header_1_0(file) if is_first else np.lib.format.read_array_header_2_0(file)
    )
    if math.prod(shape) != 1 or kind.kind not in "iufU":
        return None
    # The text of a float32 has no digits that it does not hold, such as those of 0.10000000149.
    return str(np.frombuffer(file.read(kind.itemsize), kind)[0])
