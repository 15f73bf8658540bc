"""Yields the items of a copy of a benchmark as records of a packed dataset, so that a model can be fine-tuned on them.

The splits are those of an evaluation (`benchmark_source.splits_of`), so a head that is trained on `train` and chosen on
`valid` has seen the same examples as a probe.
"""

import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from emocap_shards.errors import ImageError
from emocap_shards.sample import Caption, Record
from jaxtyping import UInt8
from PIL import Image

from emocap_pretrain.benchmarks.frames import SEGMENTS, pictures
from emocap_pretrain.benchmarks.item import FrameFiles, Media, VideoFile
from emocap_pretrain.errors import DataError
from emocap_pretrain.evaluation.benchmark_source import CLASS, BenchmarkSource, MediaContent
from emocap_pretrain.evaluation.examples import Example
from emocap_pretrain.evaluation.features import UNDECODED

EMOTION, PERSON = "emotion", "person"  # The names of labels in the packed dataset.
_KEPT = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}  # Files with these suffixes keep their bytes.
_QUALITY = 95  # Of frames of videos, which are compressed again.
_BLOCK = 256
_NO_KEY = re.compile(r"[^A-Za-z0-9_-]+")


def records(source: BenchmarkSource, frames: int, left_out: Counter[str]) -> Iterator[Record]:
    """Yields a record of each item that can be decoded, in the order of the copy; of a video one for each frame.

    The class is the label `emotion`, and the person or clip the label `person`. Numbers, action units and attributes
    have their own names. A caption is the global part. Images in a format of shards keep their bytes.

    Args:
        source: The split.
        frames: Number of frames of each video, from 1 to `SEGMENTS`, which are spread evenly over it.
        left_out: Gets the number of items without a record, by the reason.

    Raises:
        DataError: If the copy lacks the split, or a file of labels cannot be read.
    """
    for first in range(0, len(source), _BLOCK):
        numbers = range(first, min(first + _BLOCK, len(source)))
        for number, example in zip(numbers, source.examples(numbers), strict=True):
            if not isinstance(example, Example):
                left_out[example.kind] += 1
                continue
            assert isinstance(example.content, MediaContent), "a benchmark has media"
            try:
                images = _images(example.content.media, frames)
            except (DataError, ImageError, OSError, ValueError):
                left_out[UNDECODED] += 1
                continue
            yield from _of(example, number, images)


def _of(example: Example, number: int, images: list[tuple[bytes, str]]) -> Iterator[Record]:
    key = f"{number:06d}_{_NO_KEY.sub('_', str(Path(example.key).with_suffix('')))[-80:]}"
    caption = next((Caption(each.global_, each.local, each.summary) for each in example.captions), None)
    for place, (image, extension) in enumerate(images):
        frame = f"{key}_{place:02d}" if len(images) > 1 else key
        yield Record(frame, image, extension, caption, _labels(example))


def _labels(example: Example) -> Mapping[str, str | float]:
    labels = {EMOTION if name == CLASS else name: value for name, value in example.labels.items()}
    return labels if example.group is None else {**labels, PERSON: example.group}


def _images(media: Media, frames: int) -> list[tuple[bytes, str]]:
    """Returns the encoded images of an item with their extensions.

    Raises:
        DataError, ImageError, OSError, ValueError: If it cannot be decoded.
    """
    found = list(pictures(media))
    if isinstance(media, VideoFile | FrameFiles):
        chosen = [(2 * place + 1) * SEGMENTS // (2 * frames) for place in range(frames)]
        return [(_encoded(found[place], "JPEG"), "jpg") for place in chosen]
    if isinstance(media, Path) and media.suffix.lower() in _KEPT:
        return [(media.read_bytes(), _KEPT[media.suffix.lower()])]
    return [(_encoded(found[0], "PNG"), "png")]


def _encoded(pixels: UInt8[np.ndarray, "height width 3"], form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **({"quality": _QUALITY} if form == "JPEG" else {}))
    return file.getvalue()
