"""Tables and folders of images -> records: what `emocap pack` reads."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from emocap_shards.annotation import load_annotation
from emocap_shards.decode import FORMATS
from emocap_shards.errors import AnnotationError, RecordError
from emocap_shards.sample import Caption, Record


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column of a table is what.

    `image` is a path, relative to the table's folder. A row without a `key` column takes its key from that path.
    `local` is a list, or text with "|" between the sentences. `labels` are columns of their own; a JSON row may have
    them as one object called "labels" instead.
    """

    image: str = "image"
    whole: str = "global"
    local: str = "local"
    summary: str = "summary"
    key: str = "key"
    labels: tuple[str, ...] = ()


_STANDARD = Columns()


def records_from(path: str | Path, columns: Columns = _STANDARD) -> Iterator[Record]:
    """The records of a folder, a .jsonl or a .csv table.

    Raises:
        RecordError: If it is none of these, or a row is unusable: its file and line are named.
    """
    source = Path(path)
    if source.is_dir():
        return records_from_folder(source)
    readers: dict[str, Callable[[Path, Columns], Iterator[Record]]]
    readers = {".jsonl": records_from_jsonl, ".csv": records_from_csv}
    if source.suffix not in readers or not source.is_file():
        raise RecordError(f"{source} is no folder, no .jsonl and no .csv file; check the path.")
    return readers[source.suffix](source, columns)


def records_from_folder(path: str | Path) -> Iterator[Record]:
    """Every image below a folder, sorted by path, each with an annotation of the same name and the suffix .json.

    Raises:
        RecordError: If an annotation is missing or unusable.
    """
    folder = Path(path)
    for image in sorted(folder.rglob("*")):
        if image.suffix[1:].lower() in FORMATS:
            yield _record(image, image.relative_to(folder), *_sidecar(image.with_suffix(".json")))


def records_from_jsonl(path: str | Path, columns: Columns = _STANDARD) -> Iterator[Record]:
    """One JSON object a line; empty lines are skipped.

    Raises:
        RecordError: If a line is unusable.
    """
    source = Path(path)
    with source.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _row(source, number, _object(source, number, line), columns)


def records_from_csv(path: str | Path, columns: Columns = _STANDARD) -> Iterator[Record]:
    """A table with a header; a label that reads as a number becomes one.

    Raises:
        RecordError: If a row is unusable.
    """
    source = Path(path)
    with source.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        while (row := _next_row(source, table)) is not None:
            numbers = {name: _numeric(row[name]) for name in columns.labels if row.get(name)}
            yield _row(source, table.line_num, row | numbers, columns)


def _row(source: Path, line: int, values: Mapping[str, Any], columns: Columns) -> Record:
    try:
        image = Path(str(values[columns.image]))
        captions, labels = load_annotation(_annotation(values, columns))
        key = str(values[columns.key]) if values.get(columns.key) else None
        return _record(source.parent / image, image, captions, labels, key=key)
    except KeyError as error:
        raise RecordError(f"{source}:{line}: there is no column {error}; map the columns to yours.") from error
    except (AnnotationError, RecordError) as error:
        raise RecordError(f"{source}:{line}: {error}.") from error


def _next_row(source: Path, table: "csv.DictReader[str]") -> dict[str, Any] | None:
    try:
        return next(table, None)
    except (csv.Error, UnicodeDecodeError) as error:
        raise RecordError(
            f"{source}:{table.line_num + 1}: the line cannot be read ({error}); save it as UTF-8."
        ) from error


def _annotation(values: Mapping[str, Any], columns: Columns) -> bytes:
    """The row in the form that stands in a shard, so that one function checks both."""
    local = values.get(columns.local) or []
    sentences = [part.strip() for part in local.split("|") if part.strip()] if isinstance(local, str) else local
    parts = {"global": values[columns.whole], "local": sentences, "summary": values.get(columns.summary) or ""}
    labels = {name: values[name] for name in columns.labels} if columns.labels else values.get("labels", {})
    return json.dumps({"caption": parts, "labels": labels}).encode()


def _record(
    path: Path, name: Path, captions: tuple[Caption, ...], labels: Mapping[str, str | float], *, key: str | None = None
) -> Record:
    """The record of the image at `path`; without a key, its `name` without suffix becomes one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"the image {path} cannot be read ({error})") from error
    own = "_".join(name.with_suffix("").parts).replace(".", "_").strip("/_")
    return Record(key or own, data, path.suffix[1:].lower(), captions[0], labels, captions[1:])


def _sidecar(path: Path) -> tuple[tuple[Caption, ...], Mapping[str, str | float]]:
    try:
        return load_annotation(path.read_bytes())
    except OSError as error:
        raise RecordError(f"{path} cannot be read; every image needs an annotation ({error}).") from error
    except AnnotationError as error:
        raise RecordError(f"{path}: {error}.") from error


def _object(source: Path, line: int, text: bytes) -> Mapping[str, Any]:
    try:
        value: Any = json.loads(text)
    except ValueError as error:
        raise RecordError(f"{source}:{line}: the line is no JSON ({error}).") from error
    if not isinstance(value, dict):
        raise RecordError(f"{source}:{line}: the line is no JSON object.")
    return cast("Mapping[str, Any]", value)


def _numeric(value: str) -> str | float:
    try:
        return float(value)
    except ValueError:
        return value
