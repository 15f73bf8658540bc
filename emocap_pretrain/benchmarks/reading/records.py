"""Reads copies whose items are the records of JSON files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from emocap_pretrain.benchmarks.card import Target
from emocap_pretrain.benchmarks.item import Item
from emocap_pretrain.benchmarks.layouts import Records
from emocap_pretrain.benchmarks.reading import texts
from emocap_pretrain.benchmarks.reading.labels import Codes, LabelReader, Value
from emocap_pretrain.benchmarks.reading.layout_reader import Problem
from emocap_pretrain.benchmarks.reading.split_paths import first_missing, lack_of_copy, split_paths, values_of
from emocap_pretrain.benchmarks.reading.tree import FIELD, BadPath, Tree, filled, fixed_folder
from emocap_pretrain.errors import DataError


class RecordsReader:
    """Reads the layout `records`. A document is read as a whole, because JSON cannot be streamed."""

    def __init__(self, layout: Records, target: Target) -> None:
        self._layout = layout
        self._labels = LabelReader(target, Codes(layout.codes, layout.left_out))

    def fits(self, root: Path) -> str | None:
        tree = Tree(root)
        return lack_of_copy(first_missing(tree, self._paths(split)) for split in self._layout.files)

    def _paths(self, split: str) -> list[str]:
        images = fixed_folder(self._layout.media.replace("{split}", split))
        return [*split_paths(self._layout.files, split, 1), images]

    def items(self, root: Path, split: str, fold: int | None) -> Iterator[Item | Problem]:
        tree = Tree(root)
        for file in split_paths(self._layout.files, split, fold):
            found = _entered(texts.document(tree.labels(file)), self._layout.under)
            if not isinstance(found, list | dict):
                under = "" if self._layout.under is None else f" under {self._layout.under!r}"
                raise DataError(f"{root / file} has no list of records{under}.")
            records = cast("dict[str, Any]", found).items() if isinstance(found, dict) else enumerate(found)
            for name, record in records:
                yield self._item(tree, record, values_of(split, fold), f"{file}:{name}")

    def _item(self, tree: Tree, record: object, constant: dict[str, str], place: str) -> Item | Problem:
        if self._layout.one_of is not None:
            images = _entered(record, self._layout.one_of)
            if isinstance(images, list) and len(cast("list[Any]", images)) > 1:
                return Problem("left out: the record is about several images", place)
        values = {name: _value(_entered(record, key)) for name, key in self._layout.keys.items()}
        if lacking := [name for name, value in values.items() if value is None]:
            return Problem(f"the record has no {lacking[0]}", place)
        labels = self._labels.labels({name: value for name, value in values.items() if value is not None}, place)
        if isinstance(labels, Problem):
            return labels
        path = self._path(record, constant, place)
        if isinstance(path, Problem):
            return path
        media = tree.media(path, self._layout.frames)
        return media if isinstance(media, Problem) else labels.item(place, media)

    def _path(self, record: object, constant: dict[str, str], place: str) -> str | Problem:
        values = dict(constant)
        for field in FIELD.finditer(self._layout.media):
            value = _value(_entered(record, field[1]))
            if isinstance(value, str) and field[1] not in values:
                values[field[1]] = value.removeprefix(self._layout.prefix)
        try:
            return filled(self._layout.media, values)
        except BadPath as error:
            return Problem(f"the path of the image cannot be made ({error})", place)


def _entered(record: Any, key: str | None) -> Any:
    """Returns the value under a key that may have dots, such as "image.path"; None if there is none."""
    for part in key.split(".") if key else ():
        if isinstance(record, dict):
            record = cast("dict[str, Any]", record).get(part)
        elif isinstance(record, list) and part.isdigit() and int(part) < len(cast("list[Any]", record)):
            record = record[int(part)]
        else:
            return None
    return record


def _value(found: Any) -> Value | None:
    """Returns a text or a number as text, and a list of them as texts; None for anything else."""
    if isinstance(found, list):
        texts_of = [_value(each) for each in cast("list[Any]", found)]
        words = tuple(each for each in texts_of if isinstance(each, str))
        return words if len(words) == len(texts_of) else None
    return str(found) if isinstance(found, str | int | float) and not isinstance(found, bool) else None
