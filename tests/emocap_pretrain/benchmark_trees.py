"""Builds tiny copies of benchmarks that follow a layout, and says which labels they have."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.card import Card, NumbersTarget, QuestionTarget, UnitsTarget
from emocap_pretrain.benchmarks.item import Item
from emocap_pretrain.benchmarks.layouts import (
    Arrays,
    ClassFolders,
    FileNames,
    Layout,
    PixelTable,
    Records,
    Sequences,
    Table,
)
from emocap_pretrain.benchmarks.reading.layout_reader import LayoutReader, Problem
from emocap_pretrain.evaluation.on_benchmarks import BenchmarkCopy

Expected = dict[str, Counter[Any]]
"""Number of items by label, for each split."""

# One file for each class, by the name of the card. Paths that follow a regular expression cannot be made up from it.
FILE_NAMES = {
    "jaffe": {
        "KA.AN1.39.tiff": "anger",
        "KA.DI1.42.tiff": "disgust",
        "KL.FE1.174.tiff": "fear",
        "KL.HA1.158.tiff": "happiness",
        "KM.NE1.1.tiff": "neutral",
        "KM.SA1.9.tiff": "sadness",
        "YM.SU1.58.tiff": "surprise",
    },
}
SEQUENCES = {"ck_plus": ("Emotion/S{person:03}/001/S{person:03}_001_00000011_emotion.txt", "S{person:03}")}


def image(path: Path, side: int = 8, grey: int = 127) -> Path:
    """Writes an image of a few pixels, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (side, side), grey).save(path)
    return path


def text(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))
    return path


def read(reader: LayoutReader, root: Path, split: str, fold: int | None = None) -> tuple[list[Item], list[Problem]]:
    """Returns the items and the problems of a split."""
    found = list(reader.items(root, split, fold))
    return [each for each in found if isinstance(each, Item)], [each for each in found if isinstance(each, Problem)]


def label(item: Item) -> Any:
    """Returns the label of an item as a value that can be counted."""
    if item.question is not None:
        return item.question.answers[item.question.right]
    if item.numbers:
        return tuple(sorted(item.numbers.items()))
    if item.units:
        return tuple(unit for unit, shown in item.units.items() if shown)
    return item.class_name


def build(card: Card, layout: Layout, root: Path) -> Expected:
    """Writes a tree that follows a layout, and returns its labels.

    Raises:
        KeyError: If the tree cannot be made up from the layout, and this module has no example for the card.
    """
    return BUILDERS[layout.kind](card, layout, root)


def _class_folders(_card: Card, layout: ClassFolders, root: Path) -> Expected:
    suffix = "png" if "[" in layout.files else layout.files.rsplit(".", 1)[1]
    for folder in layout.folders.values():
        for code in layout.codes:
            image(root / folder / code / f"one.{suffix}")
    return {split: Counter(layout.codes.values()) for split in layout.folders}


def _table(card: Card, layout: Table, root: Path) -> Expected:
    expected: Expected = {}
    tables: dict[str, list[list[str]]] = {}
    number = 0
    for split, file in layout.files.items():
        rows = tables.setdefault(file, [list(map(str, layout.columns.values()))] if layout.header else [])
        expected[split] = Counter()
        for code, values, found in _cases(card, layout):
            number += 1
            name = f"{layout.split_values.get(split, '')}{number:04d}.jpg"
            cells = {"file": name, "class": code, **dict(zip(("left", "top", "right", "bottom"), "1256", strict=True))}
            cells |= {"width": "4", "height": "4", **values}
            rows.append(_row(layout, cells))
            stem, folder = name.removesuffix(".jpg"), file.rpartition("/")[0]
            path = layout.media.replace("{stem}", stem).replace("{file}", name).replace("{folder}", folder)
            image(root / path)
            expected[split][found] += 1
    for file, rows in tables.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        with (root / file).open("w", newline="") as opened:
            if layout.separator == ",":
                csv.writer(opened).writerows(rows)
            else:
                opened.writelines(layout.separator.join(row) + "\n" for row in rows)
    return expected


def _row(layout: Table, cells: dict[str, str]) -> list[str]:
    if layout.header:
        return [cells.get(name, "0") for name in layout.columns]
    numbers = {number: name for name, number in layout.columns.items()}
    width = 1 + max(number for number in numbers if isinstance(number, int))
    return [cells.get(numbers.get(place, ""), "(0, 0, 48, 48)" if layout.votes else "0") for place in range(width)]


def _cases(card: Card, layout: Layout) -> list[tuple[str, dict[str, str], Any]]:
    """Returns a code, the cells of other columns, and the label, for each kind of item of a layout."""
    target = card.target
    if isinstance(target, NumbersTarget):
        names = target.names
        # About one example in ten of a training split is held out for choices, and a choice needs two.
        return [
            ("", dict.fromkeys(names, text), tuple((name, float(text)) for name in sorted(names)))
            for text in (f"{number / 20 - 1:.2f}" for number in range(40))
        ]
    if isinstance(layout, Table) and layout.votes:
        return [(code, {**dict.fromkeys(layout.votes, "0"), code: "9"}, name) for code, name in layout.codes.items()]
    return [(code, {}, name) for code, name in layout.codes.items()]


def _records(card: Card, layout: Records, root: Path) -> Expected:
    expected: Expected = {}
    for split, files in layout.files.items():
        expected[split] = Counter()
        for place, file in enumerate(files):
            records: list[Any] = []
            for number, (values, found) in enumerate(_record_cases(card, layout)):
                path = f"images/{split}/{place}_{number}.png"
                record: dict[str, Any] = {}
                for name, key in layout.keys.items():
                    _enter(record, key, values[name])
                key = layout.media[layout.media.rindex("{") + 1 : layout.media.rindex("}")]
                _enter(record, key, layout.prefix + path)
                image(root / layout.media.replace("{split}", split).replace(f"{{{key}}}", path))
                records.append(record)
                expected[split][found] += 1
            content = records if layout.under is None else {layout.under: records}
            text(root / file, json.dumps(content))
    return expected


def _record_cases(card: Card, layout: Records) -> list[tuple[dict[str, Any], Any]]:
    target = card.target
    if isinstance(target, QuestionTarget):
        options = ["sad", "happy", "angry", "afraid"]
        right = target.right if target.right is not None else 2
        answer = right if target.right is not None else "ABCD"[right]
        return [({"question": "What is shown?", "options": options, "answer": answer}, options[right])]
    if isinstance(target, UnitsTarget):
        return [({"units": "1, 12", "caption": "A smile."}, (1, 12)), ({"units": "", "caption": "Nothing."}, ())]
    return [({"class": code, "caption": "A face."}, name) for code, name in layout.codes.items()]


def _enter(record: dict[str, Any], key: str, value: Any) -> None:
    *outer, last = key.split(".")
    if last == "0":
        _enter(record, ".".join(outer), [value])
        return
    for part in outer:
        record = record.setdefault(part, {})
    record[last] = value


def _pixel_table(_card: Card, layout: PixelTable, root: Path) -> Expected:
    pixels = " ".join(["7"] * layout.side**2)
    rows, votes = [["emotion", "pixels", "Usage"]], [["Usage", "Image name", *layout.codes, *layout.left_out]]
    for usage in layout.usages.values():
        for code in layout.codes:
            rows.append([code if layout.votes is None else "0", pixels, usage])
            votes.append([usage, "fer.png", *("9" if each == code else "0" for each in votes[0][2:])])
    for file, content in ((layout.file, rows), (layout.votes, votes)):
        if file is not None:
            text(root / file, "".join(",".join(row) + "\n" for row in content))
    return {split: Counter(layout.codes.values()) for split in layout.usages}


def _arrays(card: Card, layout: Arrays, root: Path) -> Expected:
    expected: Expected = {}
    for split, folder in layout.folders.items():
        expected[split] = Counter()
        for number, (code, values, found) in enumerate(_cases(card, layout)):
            image(root / folder / layout.media.replace("{stem}", str(number)), grey=6 * number % 256)
            for name, template in layout.arrays.items():
                path = root / folder / template.replace("{stem}", str(number))
                path.parent.mkdir(parents=True, exist_ok=True)
                # Public copies hold the value as text.
                np.save(path, np.array({"class": code, **values}[name]))
            expected[split][found] += 1
    return expected


def _sequences(card: Card, layout: Sequences, root: Path) -> Expected:
    annotation, person = SEQUENCES[card.name]
    counts: Counter[Any] = Counter()
    for number, (code, name) in enumerate(layout.codes.items(), start=5):
        text(root / annotation.format(person=number), f"   {float(code):.7e}\n")
        folder = layout.media.replace("{person}", person.format(person=number)).replace("{sequence}", "001")
        for frame in range(1, 6):
            image(root / folder / f"S_{frame:08d}.png")
        counts[name] += layout.last
    return dict.fromkeys(card.splits, counts)


def _file_names(card: Card, layout: FileNames, root: Path) -> Expected:
    for path in FILE_NAMES[card.name]:
        image(root / Path(layout.files).parent / path)
    return {split: Counter(FILE_NAMES[card.name].values()) for split in card.splits}


BUILDERS: dict[str, Callable[[Card, Any, Path], Expected]] = {
    "class_folders": _class_folders,
    "table": _table,
    "records": _records,
    "pixel_table": _pixel_table,
    "arrays": _arrays,
    "sequences": _sequences,
    "file_names": _file_names,
}


CODES = {"surprise": 1, "fear": 2, "disgust": 3, "happiness": 4, "sadness": 5, "anger": 6, "neutral": 7}


def raf_db(root: Path, each: int, *, missing: int = 0) -> BenchmarkCopy:
    """Writes a copy of RAF-DB with `each` images of every class in each split, and returns the copy.

    The files of the first `missing` images of the split `test` are not written, but its list of labels names them.
    """
    folder, lines, written = root / "Image" / "aligned", list[str](), 0
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        for number, (name, place) in enumerate((name, place) for name in CODES for place in range(each)):
            stem = f"{split}_{number:05d}"
            lines.append(f"{stem}.jpg {CODES[name]}\n")
            written += split == "test"
            if split == "train" or written > missing:
                Image.new("RGB", (9, 9), (40 * CODES[name] - 30, 3 * place, 128)).save(folder / f"{stem}_aligned.jpg")
    text(root / "EmoLabel" / "list_patition_label.txt", "".join(lines))
    return BenchmarkCopy(catalogue.card("raf_db"), root)
