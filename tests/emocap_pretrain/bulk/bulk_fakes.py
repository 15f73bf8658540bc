"""Provides a scorer without a model, and files to read, for the tests of `bulk`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emocap_pretrain.bulk.compute import Computation, Work
from emocap_pretrain.bulk.inputs import BulkInput
from emocap_pretrain.bulk.joining import PartTables
from emocap_pretrain.bulk.parts import cut
from emocap_pretrain.bulk.scorers import ModelSource, vector_field
from emocap_pretrain.data.transform import center_crop


class SquaresOf8:
    """Imitates a model that reads the central square of an image, resized to 8 pixels."""

    def square(self, image: np.ndarray) -> np.ndarray:
        return center_crop(image, 8)


@dataclass
class FakeScorer:
    """Computes vectors without a model: the mean colour of an image, and the size of its batch."""

    cropper: Any = field(default_factory=SquaresOf8)
    batches: list[int] = field(default_factory=list)

    @property
    def fields(self) -> Sequence[Any]:
        return [vector_field("embedding", 4)]

    def columns(self, crops: Sequence[Any]) -> dict[str, Any]:
        self.batches.append(len(crops))
        means = np.stack([crop.mean((0, 1)) for crop in crops])
        return {"embedding": np.hstack([means, np.full((len(crops), 1), len(crops))]).astype(np.float32)}


def a_computation(folder: Path, **options: Any) -> Computation:
    given = {
        "model": ModelSource("none"),
        "digest": "",
        "prompts": None,
        "has_videos": False,
        "batch_size": 4,
        **options,
    }
    return Computation(folder=str(folder), **given)


def works_of(source: BulkInput, most: int) -> Iterator[Work]:
    return (Work(part, source.slice(part.start, part.stop)) for part in cut(source.weights(), most))


def computed(source: BulkInput, folder: Path, *, most: int = 10, **options: Any) -> PartTables:
    """Computes all parts of an input with the fake scorer."""
    folder.mkdir(exist_ok=True)
    a_computation(folder, **options).compute(works_of(source, most), FakeScorer(), lambda _: None)
    return PartTables(sorted(folder.glob("part-*")))


def rows_of(parts: PartTables) -> list[dict[str, Any]]:
    return [row for table in parts.tables() for row in table.to_pylist()]


def an_image(path: Path, grey: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((10, 12, 3), grey, np.uint8)).save(path)
    return path


def images_in(folder: Path, count: int) -> Path:
    for number in range(count):
        an_image(folder / f"{number:04d}.png", number % 256)
    return folder
