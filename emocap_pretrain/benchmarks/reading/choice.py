"""Chooses the reader of a layout, and the layout of a copy."""

from pathlib import Path
from typing import assert_never

from emocap_pretrain.benchmarks import layouts
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
from emocap_pretrain.errors import ConfigError


def reader_of(layout: Layout, target: Target) -> LayoutReader:  # noqa: PLR0911 - one for each kind
    """Returns what reads the copies of a layout."""
    match layout:
        case layouts.ClassFolders():
            return ClassFoldersReader(layout, target)
        case layouts.Table():
            return TableReader(layout, target)
        case layouts.Records():
            return RecordsReader(layout, target)
        case layouts.PixelTable():
            return PixelTableReader(layout, target)
        case layouts.FileNames():
            return FileNamesReader(layout, target)
        case layouts.FrameLabels():
            return FrameLabelsReader(layout, target)
        case layouts.Arrays():
            return ArraysReader(layout, target)
        case layouts.Sequences():
            return SequencesReader(layout, target)
    assert_never(layout)


def fitting(card: Card, root: Path) -> tuple[Layout, LayoutReader]:
    """Returns the first layout of a card that a copy fits, and its reader.

    Raises:
        ConfigError: If the folder does not exist, or if no layout fits.
    """
    if not root.is_dir():
        raise ConfigError(f"{root} is not a folder.")
    missing: list[str] = []
    for layout in card.layouts:
        reader = reader_of(layout, card.target)
        path = reader.fits(root)
        if path is None:
            return layout, reader
        missing.append(f"{path} is missing ({layout.about})")
    raise ConfigError(f"{root} is not a copy of {card.title}: {'; '.join(missing)}.")
