"""Reads the rows of a JSON document: a list of objects, or the images and captions of COCO."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from emocap_shards.errors import RecordError
from emocap_shards.printable import short
from emocap_shards.writing.row import MAX_FILE_BYTES
from emocap_shards.writing.sources.values import json_of


def items_of(text: str, path: Path, image: str) -> list[object]:
    """Returns the rows of a document. `image` is the name of the column that rows from a COCO document get.

    Raises:
        RecordError: If the text is not JSON, is too long, or has another form. `path` names the document.
    """
    lines = f"write one object a line (`jq -c '.[]' {path.name} > {path.stem}.jsonl`)"
    if len(text) > MAX_FILE_BYTES:
        raise RecordError(f"{path} has more than {MAX_FILE_BYTES:,} letters; {lines}.")
    try:
        value = json_of(text)
    except ValueError as error:
        raise RecordError(f"{path} cannot be read: it is not JSON ({error}).") from error
    if isinstance(value, list):
        return cast("list[object]", value)
    if not isinstance(value, dict):
        raise RecordError(f"{path} is one value and not a list of objects; {lines}.")
    found = cast("dict[str, Any]", value)
    if (rows := _coco(found, image)) is not None:
        return rows
    raise RecordError(f"{path} is an object and not a list of objects; {_cure(found, path)}.")


def _coco(value: Mapping[str, Any], image: str) -> list[object] | None:
    """Returns a row for each image of a COCO document with all of its captions, or None if it is no such document.

    The lists `images` and `annotations` belong together by the number of the image. An image without a caption is a row
    without one, so that it is not left out without a notice. A caption of no image is a row without an image.
    """
    images, notes = value.get("images"), value.get("annotations")
    if not _objects(images, {"id", "file_name"}) or not _objects(notes, {"image_id", "caption"}):
        return None
    captions: defaultdict[object, list[object]] = defaultdict(list)
    for note in cast("list[dict[str, Any]]", notes):
        captions[str(note["image_id"])].append(note["caption"])
    rows = [
        {**each, image: each["file_name"], "caption": captions.pop(str(each["id"]), None)}
        for each in cast("list[dict[str, Any]]", images)
    ]
    return [*rows, *({"caption": texts, "id": number} for number, texts in captions.items())]


def _objects(value: object, members: set[str]) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict) and members <= each.keys() for each in cast("list[object]", value)
    )


def _cure(value: Mapping[str, object], path: Path) -> str:
    """Returns how the user gets a list of objects from an object."""
    lists = [name for name, each in value.items() if isinstance(each, list)]
    if lists:
        return f"its member {short(lists[0])} is a list: `jq '.{lists[0]}' {path.name}`"
    if value and all(isinstance(each, str) for each in value.values()):
        pairs = "to_entries[] | {image: .key, caption: .value}"
        return f"if it maps images to captions: `jq -c '{pairs}' {path.name} > {path.stem}.jsonl`"
    if value and all(isinstance(each, dict) for each in value.values()):
        pairs = "to_entries[] | {image: .key} + .value"
        columns = "if it comes from pandas, write it with `to_json(orient='records')`"
        return f"{columns}; if it maps images to objects: `jq -c '{pairs}' {path.name} > {path.stem}.jsonl`"
    return f"write one object a line (`jq -c '.[]' {path.name} > {path.stem}.jsonl`)"
