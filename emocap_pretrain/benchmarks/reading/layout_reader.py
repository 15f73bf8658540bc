"""Defines the reader of a layout, and the problems that it reports."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from emocap_pretrain.benchmarks.item import Item


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a copy that does not fit the layout, such as a row whose image is missing.

    Attributes:
        kind: The kind in a few words, such as "missing image"; problems of one kind are counted together.
        place: The file, or the file and the row.
    """

    kind: str
    place: str


class LayoutReader(Protocol):
    """Reads the items of one split of a copy. There is one implementation for each kind of layout."""

    def fits(self, root: Path) -> str | None:
        """Returns None if the folder `root` looks like the layout; otherwise the first path that is missing.

        Raises:
            DataError: If a file or folder that shows the layout exists, but cannot be read.
        """
        ...

    def items(self, root: Path, split: str, fold: int | None) -> Iterator[Item | Problem]:
        """Yields the items of a split in the order of the copy, and a `Problem` in place of each unreadable one.

        Nothing is left out silently: an item that the layout leaves out on purpose is a `Problem` whose kind begins
        with "left out". The media are not opened; only their existence is checked.

        Args:
            root: The folder of the copy.
            split: The name of the split.
            fold: Number of the fold, from 1; None if the benchmark has none.

        Raises:
            DataError: If the copy lacks the split, or if a file of labels is missing or cannot be read.
        """
        ...
