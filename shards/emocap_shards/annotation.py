"""Reads and writes the JSON member of a sample: {"caption": {"global", "local", "summary"}, "labels": {...}}.

A member is a file in the tar of a shard. An image with several captions has its first caption under "caption". Its
other captions have the same form and are in a list under "further". A sample that has labels may lack "caption"
(decision 41).

Readers accept any JSON with this content. The writer always writes one line with sorted keys. So equal samples give
equal bytes, on which the digests of shards depend.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import orjson

from emocap_shards.errors import AnnotationError, FilterError
from emocap_shards.printable import short
from emocap_shards.sample import EVERY_LOCAL, SUMMARY, WHOLE_CAPTION, Caption, UnusedText

Labels = Mapping[str, str | float]
MAX_WHOLE = 1 << 53  # Up to here every integer has its own float.


def dump_annotation(caption: Caption | None, labels: Labels, further: Sequence[Caption] = ()) -> bytes:
    """Returns one line of UTF-8 JSON with sorted keys, so that equal annotations give equal bytes.

    `further` holds the other captions of the image. With None for `caption` the image has no caption; it then needs a
    label.

    Raises:
        AnnotationError: If `load_annotation` would refuse the result.
    """
    known = _labels(dict(labels))
    if caption is None:
        _refuse_empty(known, further)
    captions = () if caption is None else (caption, *further)
    return _line([_parts(each) for each in captions], _with_floats(known))


def normal_annotation(data: bytes | memoryview, change: Callable[[Caption], Caption] | None = None) -> bytes:
    """Returns an annotation as one line with sorted keys, as `dump_annotation` does.

    If `change` is given, its result replaces each caption. Integer labels are not converted to floats, unlike in
    `load_annotation`. So an annotation that was read from a shard keeps its bytes when it is packed again.

    Raises:
        AnnotationError: If `load_annotation` would refuse `data`.
    """
    captions, labels = _parsed(data)
    return _line([_parts(change(caption) if change else caption) for caption in captions], labels)


def shorter_annotation(data: bytes | memoryview, unused: Sequence[UnusedText]) -> bytes:
    """Returns an annotation without the texts `unused`, as one line. Integer labels are not converted to floats.

    Raises:
        AnnotationError: If `load_annotation` would refuse `data`.
        FilterError: If the sample does not have these texts, or no caption is left.
    """
    captions, labels = _parsed(data)
    return _line([_parts(caption) for caption in used_captions(captions, unused)], labels)


def load_annotation(data: bytes | memoryview, unused: Sequence[UnusedText] = ()) -> tuple[tuple[Caption, ...], Labels]:
    """Returns the captions of an image and its labels. Integer labels are converted to floats.

    An image without captions has labels.

    Args:
        data: The annotation.
        unused: The texts that the filter of the dataset leaves out (`Encoded.unused`).

    Raises:
        AnnotationError: If the bytes are not JSON with the content of an annotation, a caption has no global part, or
            there is neither a caption nor a label.
        FilterError: If the sample does not have the texts `unused`, or no caption is left.
    """
    captions, labels = _parsed(data)
    return used_captions(captions, unused), _with_floats(labels)


def used_captions(captions: tuple[Caption, ...], unused: Sequence[UnusedText]) -> tuple[Caption, ...]:
    """Returns the captions without the texts `unused`, in their order.

    Raises:
        FilterError: If there are no such texts, or no caption is left. The message has no place and no full stop.
    """
    if not unused:
        return captions
    of_caption: dict[int, set[int]] = defaultdict(set)
    for each in unused:
        of_caption[each.caption].add(each.sentence)
    if max(of_caption) >= len(captions):
        raise FilterError(f"it has {len(captions)} captions, and the filter names caption {max(of_caption)} (from 0)")
    found = [
        _used(caption, of_caption[place])
        for place, caption in enumerate(captions)
        if WHOLE_CAPTION not in of_caption[place]
    ]
    if not found:
        raise FilterError("the filter leaves out all of its captions, and says that it has more")
    return tuple(found)


def _used(caption: Caption, unused: set[int]) -> Caption:
    if max(unused, default=-1) >= len(caption.local):
        has = f"its caption has {len(caption.local)} local sentences"
        raise FilterError(f"{has}, and the filter names sentence {max(unused)} (from 0)")
    if SUMMARY in unused:
        caption = replace(caption, summary="")
    if EVERY_LOCAL in unused:
        return replace(caption, local=())
    return replace(caption, local=tuple(text for place, text in enumerate(caption.local) if place not in unused))


def _parsed(data: bytes | memoryview) -> tuple[tuple[Caption, ...], Labels]:
    """Returns the captions, and the labels without the conversion of integers to floats."""
    try:
        value: Any = orjson.loads(data)
    except ValueError as error:
        raise AnnotationError(f"the annotation is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise AnnotationError(f"the annotation is {type(value).__name__}, not an object")
    annotation = cast("dict[str, Any]", value)
    further = annotation.get("further", [])
    if not isinstance(further, list):
        raise AnnotationError('"further" is not a list of captions')
    labels = _labels(annotation.get("labels", {}))
    if annotation.get("caption") is None:
        _refuse_empty(labels, cast("list[object]", further))
        return (), labels
    return (_caption(annotation["caption"]), *map(_caption, cast("list[object]", further))), labels


def _refuse_empty(labels: Labels, further: Sequence[object]) -> None:
    """Checks that an annotation without a caption is one of labels alone."""
    if further:
        raise AnnotationError('there are "further" captions without a "caption" object')
    if not labels:
        raise AnnotationError('there is neither a "caption" object nor a label')


def _line(parts: Sequence[dict[str, Any]], labels: Labels) -> bytes:
    annotation: dict[str, Any] = {"caption": parts[0], "labels": labels} if parts else {"labels": labels}
    if parts[1:]:
        annotation["further"] = parts[1:]
    # This form is a part of the format. Another writer of JSON, or other options, would change the digests of equal
    # data, which a test pins.
    return json.dumps(annotation, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()


def _parts(caption: Caption) -> dict[str, Any]:
    parts = {"global": caption.global_, "local": list(caption.local), "summary": caption.summary}
    _caption(parts)  # Raises the error that a reader would raise.
    return parts


def _caption(value: object) -> Caption:
    if isinstance(value, str):
        raise AnnotationError('the "caption" is a text, not an object with a "global" part')
    if not isinstance(value, dict):
        raise AnnotationError('there is no "caption" object')
    parts = cast("dict[str, Any]", value)
    global_, local, summary = parts.get("global"), parts.get("local", []), parts.get("summary", "")
    if not (isinstance(global_, str) and global_.strip()):
        raise AnnotationError(
            'the caption has no "global" part; a caption needs one, and a sample with labels needs no caption'
        )
    if not isinstance(local, list) or not all(
        isinstance(part, str) and part.strip() for part in cast("list[object]", local)
    ):
        raise AnnotationError('the caption\'s "local" part is not a list of sentences')
    if not isinstance(summary, str):
        raise AnnotationError('the caption\'s "summary" part is not a text')
    return Caption(global_, tuple(cast("list[str]", local)), summary)


def _labels(value: object) -> Labels:
    if not isinstance(value, dict):
        raise AnnotationError('"labels" is not an object')
    labels = cast("dict[object, Any]", value)
    for name, label in labels.items():
        if not isinstance(name, str) or not _is_label(label):
            raise AnnotationError(f"label {short(name)} is {short(label)}; a label is a text or a finite number")
    return {str(name): label for name, label in labels.items()}


def _with_floats(labels: Labels) -> Labels:
    return {name: label if isinstance(label, str) else float(label) for name, label in labels.items()}


def _is_label(value: object) -> bool:
    # For Python, True and False are integers too, but they are not labels.
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, str) or is_number
