"""Measures how many images per second an evaluation embeds, and how many its image tower embeds on its own.

The evaluation reads shards, decodes the images, cuts out the central squares, and computes and checks the vectors. The
contender "bare tower" is the image tower with its projection. It gets the same squares, which already lie in memory, in
batches of the same size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured, ratios
from benchmarks.harness.rounds import per_second
from emocap_pretrain.evaluation.examples import Example, PackedSource
from emocap_pretrain.evaluation.features import Extraction
from emocap_pretrain.inference.embedder import Crop, Embedder
from emocap_pretrain.inference.opened import open_model
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank

WHAT = "images embedded per second by an evaluation"
BARE, EVALUATION = "bare tower", "evaluation"


@dataclass(frozen=True, slots=True)
class ExtractionPlan:
    """Holds which model embeds which images.

    Attributes:
        model: A model as `emocap evaluate` takes it.
        data: A packed dataset, all of whose images are embedded.
        batch: Number of images of one pass of the tower.
        device: The device of the model.
    """

    model: str
    data: str
    batch: int
    device: str


def measure(plan: ExtractionPlan, rounds: int, occasion: Occasion) -> Iterator[Measurement]:
    """Yields the images per second of the bare tower, and then of the evaluation.

    The record of the evaluation also has its ratios to the bare tower, one for each round.
    """
    embedder = open_model(plan.model).embedder.on(plan.device)
    source, world = PackedSource(plan.data), RankGroup(Rank(), plan.device, None)
    ready = _decoded(source, embedder)
    ways: dict[str, Callable[[], object]] = {
        BARE: lambda: _bare(embedder, ready, plan.batch, plan.device),
        EVALUATION: lambda: Extraction(embedder, plan.batch).collect(source, world),
    }
    taken = per_second(ways, len(ready), rounds=rounds)
    for name, readings in taken.items():
        yield measured(
            occasion,
            readings,
            ratios=None if name == BARE else {f"over the {BARE}": ratios(readings, taken[BARE])},
            what=WHAT,
            contender=name,
            setting={
                "model": plan.model.rstrip("/").rpartition("/")[2],
                "pixels": embedder.model.pixels,
                "batch": plan.batch,
            },
            unit="images/s",
            more={"threads": torch.get_num_threads(), "images": len(ready)},
            versions=versions(("torch", "timm", "simplejpeg")),
        )


def _decoded(source: PackedSource, embedder: Embedder) -> list[Crop]:
    examples = source.examples(range(len(source)))
    return [each.content.crops(embedder.model.pixels, "center")[0] for each in examples if isinstance(each, Example)]


def _bare(embedder: Embedder, ready: Sequence[Crop], batch: int, device: str) -> None:
    """Computes the vectors of all images with nothing but the tower and its projection, and discards them."""
    images = torch.from_numpy(np.stack(ready)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        for each in images.split(batch):
            embedder.model.embed_images_and_pooled(each.to(device))
