"""Measures how many images a loader process prepares, without and with each random change of images.

A reading is the CPU time of this process, so that other processes which take the processor count less. They still
disturb it, because they share its caches. All contenders prepare the same images with the same random numbers.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial

from emocap_shards.decode import decode_image
from emocap_shards.sample import Record, Sample

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, Spread, measured, ratios, spread
from benchmarks.harness.rounds import complete, in_rounds
from benchmarks.harness.tables import table
from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.config.augmentation import AugmentConfig
from emocap_pretrain.data.loader import Collate
from emocap_pretrain.data.tokenizer import Tokenizer

WHAT = "images that one core prepares in a second of CPU time"
NONE, ALL = "none (decode, crop, mirror)", "all with their defaults"
CHANGES = tuple(AugmentConfig.model_fields)
MORE, OVER = "more_cpu_ms", "over none"


@dataclass(frozen=True, slots=True)
class AugmentationSize:
    """Holds the sizes of a measurement.

    Attributes:
        faces: Number of rendered faces.
        epochs: How often a reading prepares each face, each time with other random numbers.
        stored_pixels: Side of the stored JPEG images.
        pixels: Side of the prepared images.
    """

    faces: int
    epochs: int
    stored_pixels: int
    pixels: int


def measure(size: AugmentationSize, rounds: int, occasion: Occasion) -> Iterator[Measurement]:
    """Yields the images per second of CPU time without further changes, with each change alone, and with all.

    A change alone is made in every image. All together have the probabilities of their defaults.
    """
    faces = list(records(size.faces, pixels=size.stored_pixels))
    settings = {
        NONE: AugmentConfig(),
        **{name: AugmentConfig.model_validate({name: {"probability": 1}}) for name in CHANGES},
        ALL: AugmentConfig.model_validate({name: {} for name in CHANGES}),
    }
    ways: dict[str, Callable[[], float]] = {
        name: partial(_images_per_cpu_s, _collate(each, size.pixels), faces, size.epochs)
        for name, each in settings.items()
    }
    for way in ways.values():  # The first call imports and allocates.
        way()
    taken = complete(in_rounds(ways, rounds=rounds))
    for name, readings in taken.items():
        more_ms = [1000 / each - 1000 / base for each, base in zip(readings, taken[NONE], strict=True)]
        yield measured(
            occasion,
            readings,
            ratios=None if name == NONE else {OVER: ratios(readings, taken[NONE])},
            what=WHAT,
            contender=name,
            setting={field.name: getattr(size, field.name) for field in fields(size)},
            unit="images/s",
            more=None if name == NONE else {MORE: spread(more_ms)},
            versions=versions(("numpy", "pillow", "simplejpeg")),
        )


def markdown(lines: Sequence[Measurement]) -> str:
    """Returns the table of docs/augmentation.md, with quartiles in brackets."""
    columns = ["change, made in every image", "more CPU time for each image", "images/s of one process", "of the rate"]
    return table(columns, ([line.contender, *_cells(line)] for line in lines))


def _cells(line: Measurement) -> tuple[str, str, str]:
    if line.ratios is None:
        return "", _shown(line.spread_of("value"), ",.0f"), ""
    added, over = line.spread_of(MORE), line.ratios[OVER]
    return f"{_shown(added, '.2f')} ms", _shown(line.spread_of("value"), ",.0f"), _shown(over, ".2f")


def _shown(value: Spread, form: str) -> str:
    return f"{value.median:{form}} ({value.low_quartile:{form}} to {value.high_quartile:{form}})"


def _collate(augmentation: AugmentConfig, pixels: int) -> Collate:
    tokenizer = Tokenizer.trained_on(["a happy face"], 300)  # No text is encoded here.
    return Collate(tokenizer, (), {}, pixels, seed=0, crop=0.8, flip=0.5, augmentation=augmentation)


def _images_per_cpu_s(collate: Collate, faces: Sequence[Record], epochs: int) -> float:
    began = time.process_time()
    for epoch in range(epochs):
        for index, face in enumerate(faces):
            image = decode_image(face.image)
            collate.prepare(Sample(index, face.key, image, face.caption, face.labels, epoch=epoch))
    return epochs * len(faces) / (time.process_time() - began)
