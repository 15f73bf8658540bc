"""Finds the columns of a table, and which of them hold images, captions and labels, by their usual names."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from emocap_shards.writing.sources.columns import STANDARD, TableColumns

from emocap_pretrain.errors import DataError

# Usual names, in lower case. The first one that is present is taken.
IMAGE = ("image", "path", "file", "filename", "file_name", "filepath", "image_path", "img", "img_path", "image_name")
CAPTION = ("global", "caption", "captions", "text", "title", "description", "sentence")
CLASS = ("emotion", "expression", "label", "class", "exp", "cls", "category", "target")
PERSON = ("person", "person_id", "subject", "subject_id", "identity", "actor", "actor_id")
NUMBERS = ("valence", "arousal", "val", "aro")
_FIRST_LINE = 1 << 16


def mapping_of(where: str, names: Sequence[str]) -> tuple[TableColumns, tuple[str, ...]]:
    """Returns the columns of a table by their usual names, and the options of `emocap pack` that name them.

    Raises:
        DataError: If no column has a usual name of images.
    """
    by_lower = {name.lower(): name for name in reversed(names)}
    image = next((by_lower[each] for each in IMAGE if each in by_lower), None)
    if image is None:
        raise DataError(
            f"{where}: none of the columns {', '.join(names[:12])} has the name of an image column; pack it with "
            "`emocap pack --image NAME ...`, and give the packed dataset."
        )
    text = next((by_lower[each] for each in CAPTION if each in by_lower), None)
    labels = labels_of(names)
    options: list[str] = ["--image", image] if image != STANDARD.image else []
    options += ["--global", text] if text and text != STANDARD.global_ else []
    options += [word for name in labels for word in ("--label", name)]
    return TableColumns(image=image, global_=text or STANDARD.global_, labels=labels), tuple(options)


def labels_of(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the columns of labels by their usual names: the one of classes, those of numbers, and the person."""
    by_lower = {name.lower(): name for name in reversed(names)}
    first = [next((by_lower[each] for each in usual if each in by_lower), None) for usual in (CLASS, PERSON)]
    numbers = [by_lower[each] for each in NUMBERS if each in by_lower]
    return tuple(name for name in (first[0], *numbers, first[1]) if name)


def columns_of(path: Path) -> list[str]:
    """Returns the columns of a table; empty if the file is not a table with a header.

    Of a CSV or TSV, the delimiter that gives the most cells of the first line is taken, as `emocap pack` does.
    """
    if path.is_dir():
        from emocap_shards.writing.sources.arrow import STATE

        information = path / "dataset_info.json"
        return list(_object(information).get("features") or {}) if (path / STATE).is_file() else []
    reader = _READERS.get(path.suffix)
    return reader(path) if reader and path.is_file() else []


def _of_parquet(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    return list(pq.read_schema(path).names)


def _of_text(path: Path) -> list[str]:
    line = _first_line(path)
    usual = "\t" if path.suffix == ".tsv" else ","
    ways = (next(csv.reader([line], delimiter=each), []) for each in (usual, ",", "\t", ";", "|"))
    return [name.strip() for name in max(ways, key=len)]


def _first_line(path: Path) -> str:
    from emocap_shards.writing.sources.text_files import open_text
    from emocap_shards.writing.sources.text_tables import DECLARED

    with open_text(path, None) as file:
        line = file.readline(_FIRST_LINE)
        if DECLARED.fullmatch(line):
            line = file.readline(_FIRST_LINE)
    # Bytes that cannot be decoded are surrogates, which cannot be printed.
    return line.rstrip("\r\n").encode(errors="replace").decode()


def _object(path: Path) -> Mapping[str, Any]:
    """Returns a JSON object, or the first object of a list."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    if isinstance(value, list) and value:
        value = cast("list[Any]", value)[0]
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


_READERS: Mapping[str, Callable[[Path], list[str]]] = {
    ".parquet": _of_parquet,
    ".jsonl": lambda path: list(_parsed(_first_line(path))),
    ".ndjson": lambda path: list(_parsed(_first_line(path))),
    ".json": lambda path: list(_object(path)),
    ".csv": _of_text,
    ".tsv": _of_text,
}
