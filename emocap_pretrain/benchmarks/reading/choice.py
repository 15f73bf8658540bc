"""Chooses the reader of a layout, and the layout of a copy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from emocap_pretrain.benchmarks.card import Card, Target
from emocap_pretrain.benchmarks.layouts import Layout
from emocap_pretrain.benchmarks.reading.arrays import ArraysReader
from emocap_pretrain.benchmarks.reading.class_folders import ClassFoldersReader
from emocap_pretrain.benchmarks.reading.file_names import FileNamesReader
from emocap_pretrain.benchmarks.reading.frame_labels import FrameLabelsReader
from emocap_pretrain.benchmarks.reading.layout_reader import LayoutReader
from emocap_pretrain.benchmarks.reading.pixel_table import PixelTableReader
from emocap_pretrain.benchmarks.reading.records import RecordsReader
from emocap_pretrain.benchmarks.reading.sequences import SequencesReader
from emocap_pretrain.benchmarks.reading.table import TableReader
from emocap_pretrain.errors import ConfigError, DataError

READERS: dict[str, Callable[[Any, Target], LayoutReader]] = {
    "arrays": ArraysReader,
    "class_folders": ClassFoldersReader,
    "file_names": FileNamesReader,
    "frame_labels": FrameLabelsReader,
    "pixel_table": PixelTableReader,
    "records": RecordsReader,
    "sequences": SequencesReader,
    "table": TableReader,
}
"""The reader of each kind of layout. A test compares the kinds with those of `Layout`."""


def reader_of(layout: Layout, target: Target) -> LayoutReader:
    """Returns the reader of the copies that have a layout."""
    return READERS[layout.kind](layout, target)


def fitting(card: Card, root: Path) -> tuple[Layout, LayoutReader]:
    """Returns the first layout of a card that a copy fits, and its reader.

    A layout that has the scored split comes before one that has another split alone: several layouts may have the same
    folder for training, and different ones for the test.

    Raises:
        ConfigError: If the folder does not exist, or if no layout fits.
        DataError: If a file or folder that shows a layout exists, but cannot be read.
    """
    if not root.is_dir():
        raise ConfigError(f"{root} is not a folder.")
    found: list[tuple[Layout, LayoutReader]] = []
    missing: list[str] = []
    for layout in card.layouts:
        reader = reader_of(layout, card.target)
        path = reader.fits(root)
        if path is not None:
            missing.append(f"{path} is missing ({layout.about})")
        elif _has_scored_split(card, reader, root):
            return layout, reader
        else:
            found.append((layout, reader))
    if not found:
        raise ConfigError(f"{root} is not a copy of {card.title}: {'; '.join(missing)}.")
    return found[0]


def _has_scored_split(card: Card, reader: LayoutReader, root: Path) -> bool:
    try:
        return next(reader.items(root, card.scored, None if card.folds is None else 1), None) is not None
    except DataError:  # It is raised again when the items are read.
        return False
