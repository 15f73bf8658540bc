"""The JSON member of a sample: {"caption": {"global", "local", "summary"}, "labels": {...}}."""

import json
import math
from collections.abc import Mapping
from typing import Any, cast

from emocap_shards.errors import AnnotationError
from emocap_shards.sample import Caption

Labels = Mapping[str, str | float]


def dump_annotation(caption: Caption, labels: Labels) -> bytes:
    """One line of UTF-8 JSON, keys sorted, so that equal annotations are equal bytes.

    Raises:
        AnnotationError: If the result would not be read again by `load_annotation`.
    """
    parts = {"global": caption.whole, "local": list(caption.local), "summary": caption.summary}
    annotation = {"caption": parts, "labels": _labels(dict(labels))}
    _caption(parts)
    return json.dumps(annotation, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()


def load_annotation(data: bytes) -> tuple[Caption, Labels]:
    """The caption and the labels.

    Raises:
        AnnotationError: If the bytes are no JSON object of the form above, or the global part is missing.
    """
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"the annotation is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise AnnotationError(f"the annotation is {type(value).__name__}, not an object")
    annotation = cast("dict[str, Any]", value)
    return _caption(annotation.get("caption")), _labels(annotation.get("labels", {}))


def _caption(value: object) -> Caption:
    if not isinstance(value, dict):
        raise AnnotationError('there is no "caption" object')
    parts = cast("dict[str, Any]", value)
    whole, local, summary = parts.get("global"), parts.get("local", []), parts.get("summary", "")
    if not (isinstance(whole, str) and whole.strip()):
        raise AnnotationError('the caption has no "global" part; it is the one that every sample needs')
    if not isinstance(local, list) or not all(_is_sentence(part) for part in cast("list[object]", local)):
        raise AnnotationError('the caption\'s "local" part is no list of sentences')
    if not isinstance(summary, str):
        raise AnnotationError('the caption\'s "summary" part is no text')
    return Caption(whole, tuple(cast("list[str]", local)), summary)


def _labels(value: object) -> Labels:
    if not isinstance(value, dict):
        raise AnnotationError('"labels" is no object')
    labels = cast("dict[object, Any]", value)
    for name, label in labels.items():
        if not isinstance(name, str) or not _is_label(label):
            raise AnnotationError(f"label {name!r} is {label!r}; a label is a text or a finite number")
    return {str(name): label if isinstance(label, str) else float(label) for name, label in labels.items()}


def _is_sentence(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_label(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, str) or is_number
