"""Writes copies of benchmarks from random images, so that reports can be timed without a licensed copy.

Only benchmarks of images are written that can be folders of classes and have a split for training. The classes are
random, so the scores are those of chance; the time does not depend on them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.card import Card
from emocap_pretrain.benchmarks.layouts import ClassFolders

TRAIN, SIDE_PX = "train", 24


@dataclass(frozen=True, slots=True)
class MadeCopies:
    """Says how many images of random pixels the splits of each copy have.

    Attributes:
        folder: The folder of the copies.
        train: Number of images of the split for training.
        others: Number of images of each other split.
    """

    folder: Path
    train: int
    others: int

    def write(self) -> list[str]:
        """Writes the copies that do not exist yet, and returns them as `emocap evaluate --benchmark` takes them."""
        return [f"{card.name}={self._written(card, layout)}" for card, layout in _writable()]

    def _written(self, card: Card, layout: ClassFolders) -> Path:
        root = self.folder / f"{card.name}-{self.train}-{self.others}"
        if root.exists():
            return root
        unfinished = root.with_suffix(".half")
        random, suffix = np.random.default_rng(0), "png" if "[" in layout.files else layout.files.rpartition(".")[2]
        for split, folder in layout.folders.items():
            count = self.train if split == TRAIN else self.others
            for number, code in enumerate(islice(cycle(layout.codes), count)):
                path = unfinished / folder / code / f"{number:06d}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (SIDE_PX, SIDE_PX), dtype=np.uint8)).save(path)
        return unfinished.rename(root)


def _writable() -> Iterator[tuple[Card, ClassFolders]]:
    """Yields the benchmarks that are written, each with its first layout of folders of classes."""
    for card in map(catalogue.card, catalogue.names()):
        folders = [each for each in card.layouts if isinstance(each, ClassFolders)]
        if card.media == "image" and TRAIN in card.splits and folders:
            yield card, folders[0]
