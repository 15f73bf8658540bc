"""Computes parts: reads their pictures, computes vectors or scores batch by batch, and writes a file for each part.

All images of a batch belong to one part. So the composition of the batches, and with it the rounding of the vectors,
does not depend on which parts already exist, or on how many processes compute them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emocap_pretrain.bulk.inputs import BulkInput
from emocap_pretrain.bulk.new_file import writing_to
from emocap_pretrain.bulk.part_files import PartWriter, name_of, schema_of
from emocap_pretrain.bulk.parts import OutputPart
from emocap_pretrain.bulk.pictures import Content, Picture, crop_of, prefetched
from emocap_pretrain.bulk.scorers import (
    EmbeddingScorer,
    HeadOutputs,
    HeadScorer,
    ModelSource,
    PredictionScorer,
    Prompts,
    RowScorer,
    Scorer,
    digest_of,
)
from emocap_pretrain.data.videos import Sampling
from emocap_pretrain.errors import CheckpointError, DataError
from emocap_pretrain.inference.model import BATCH, EmotionModel


class Work(NamedTuple):
    """Holds a part that one process computes, and the slice of the input with the items of the part."""

    part: OutputPart
    input: BulkInput


class Advance(NamedTuple):
    """Holds the number of pictures since the last report, how many failed, and the weight of all (`bulk/parts.py`)."""

    pictures: int
    errors: int
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PartComputation:
    """Computes parts with a scorer. It is a picklable value, which can be sent to other processes.

    Attributes:
        folder: The folder of the files of the parts. All processes must reach it under this path.
        has_videos: Whether the input has videos. The output then has the columns `time_s` and `frame`.
        batch_size: Number of images that the scorer gets together.
        sampling: Which frames of videos are read.
    """

    folder: str
    has_videos: bool
    batch_size: int = BATCH
    sampling: Sampling = Sampling()  # noqa: RUF009 - a frozen value

    def compute(self, works: Iterable[Work], scorer: Scorer | RowScorer, report: Callable[[Advance], object]) -> None:
        """Computes parts, and calls `report` after each batch.

        The images of a part are already read while the last batches of the previous part are computed.

        Raises:
            ShardsError: If the input is a dataset that cannot be read.
            StoreError: If a file cannot be written, for example because the disk is full, or if the dataset cannot be
                reached.
        """
        schema = schema_of(scorer.fields, videos=self.has_videos)
        pictures = (
            (work.part, picture, picture.content)
            for work in works
            for picture in work.input.pictures(scorer.cropper, self.sampling)
        )

        def cropped(row: "_Row") -> "_Row":
            part, picture, content = row
            return part, picture, crop_of(content, scorer.cropper)

        # Closed here also after an error; otherwise the garbage collector may do it in one of the reading threads.
        with closing(prefetched(pictures, cropped, ahead=2 * self.batch_size)) as rows:
            for part, found in groupby(rows, lambda row: row[0]):
                self._compute_part(part, found, scorer, schema, report)

    def _compute_part(
        self,
        part: OutputPart,
        found: Iterable["_Row"],
        scorer: Scorer | RowScorer,
        schema: Any,
        report: Callable[[Advance], object],
    ) -> None:
        with writing_to(Path(self.folder, name_of(part.number))) as path:
            writer = PartWriter(path, schema)
            try:
                for batch in _batches(found, self.batch_size):
                    _write(batch, scorer, writer)
                    report(_advance(batch))
                writer.close()
            finally:
                writer.abandon()


@dataclass(frozen=True, slots=True, kw_only=True)
class Computation(PartComputation):
    """Computes parts with a trained model.

    Attributes:
        model: The model.
        digest: The digest of the model (`digest_of`).
        prompts: The texts with which images are compared, or that the head predicts labels; None to compute vectors
            instead of scores.
    """

    model: ModelSource
    digest: str
    prompts: Prompts | HeadOutputs | None

    def scorer(self, model: EmotionModel) -> EmbeddingScorer | HeadScorer | PredictionScorer:
        """Returns the scorer for the loaded model, which `self.model.load` has returned."""
        if isinstance(self.prompts, HeadOutputs):
            return HeadScorer(model)
        return EmbeddingScorer(model) if self.prompts is None else PredictionScorer(model, self.prompts)

    def started(self) -> Callable[[Work], Advance]:
        """Loads the model, and returns the function that computes one part. Each worker of a cluster calls this once.

        Raises:
            ConfigError: If the model cannot be read (`emocap_pretrain.load`), or does not fit the prompts.
            CheckpointError: If there is no such checkpoint, or if the digest of the model is not `digest`, for example
                because the run has a newer checkpoint.
            DataError: If the vector of a prompt is not finite.
            StoreError: If the store of the run cannot be reached.
        """
        model = self.model.load()
        if digest_of(model) != self.digest:
            cure = "give its step with --step, and the same path or URL on all nodes"
            raise CheckpointError(f"{self.model.source} is another model than when the command began: {cure}.")
        return partial(computed_part, self, self.scorer(model))


_Row = tuple[OutputPart, Picture, Content]


def computed_part(computation: PartComputation, scorer: Scorer | RowScorer, work: Work) -> Advance:
    """Computes one part, and returns the sum of the advances of its batches."""
    advances: list[Advance] = []
    computation.compute([work], scorer, advances.append)
    return Advance(sum(each.pictures for each in advances), sum(each.errors for each in advances), work.part.weight)


def _batches(rows: Iterable[_Row], size: int) -> Iterator[list[_Row]]:
    """Yields the rows of a part in lists with `size` readable images each; the last list may have fewer."""
    batch: list[_Row] = []
    images = 0
    for row in rows:
        batch.append(row)
        images += not isinstance(row[2], DataError)
        if images == size:
            yield batch
            batch, images = [], 0
    if batch:
        yield batch


def _write(batch: list[_Row], scorer: Scorer | RowScorer, writer: PartWriter) -> None:
    crops = [crop for _, _, crop in batch if isinstance(crop, np.ndarray)]
    if isinstance(scorer, RowScorer):
        found = scorer.rows([picture for _, picture, crop in batch if isinstance(crop, np.ndarray)], crops)
        counts, columns, empty = iter(found.counts), found.columns, found.reason
    else:
        counts, columns, empty = iter([1] * len(crops)), scorer.columns(crops) if crops else {}, ""
    pictures: list[Picture] = []
    reasons: list[DataError | None] = []
    for _, picture, crop in batch:
        count = 0 if isinstance(crop, DataError) else next(counts)
        pictures += [picture] * max(1, count)
        reasons += [None] * count or [crop if isinstance(crop, DataError) else DataError(empty)]
    writer.add(pictures, reasons, columns)


def _advance(batch: list[_Row]) -> Advance:
    errors = sum(isinstance(crop, DataError) for _, _, crop in batch)
    return Advance(len(batch), errors, sum(picture.weight for _, picture, _ in batch))
