"""Reads some samples that are spread over a dataset. Only the headers of their images are decoded.

The samples are read in picks. A pick is a group of samples of one shard that are read together.
"""

import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, tee
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64

from emocap_shards.annotation import Labels, load_annotation
from emocap_shards.background import in_order
from emocap_shards.decode import checked_header
from emocap_shards.errors import AnnotationError, DamagedSample, DamagedShard, ImageError
from emocap_shards.manifest import Manifest
from emocap_shards.reader import Reader
from emocap_shards.sample import Caption, Encoded

_SHARDS_AT_MOST = 256  # Each further shard would cost a read of its index.
_READERS = 8
_ROWS_TOGETHER = 256
_BYTES_TOGETHER = 8 << 20

Pick: TypeAlias = Int64[np.ndarray, " samples"]
"""Ids of samples in one shard that are read together: at most 256 samples, and about 8 MiB."""


@dataclass(frozen=True, slots=True)
class HeaderSample:
    """Holds a sample whose image is not decoded. The image's header gives `width`, `height` and `kind`.

    `kind` is "JPEG", "PNG" or "WEBP".
    """

    shard: str
    key: str
    kind: str
    width: int
    height: int
    image: bytes
    captions: tuple[Caption, ...]
    labels: Labels


Seen: TypeAlias = HeaderSample | DamagedSample


def evenly(manifest: Manifest, look_at: int) -> list[Pick]:
    """Chooses `look_at` samples of a dataset at even distances.

    The samples are in at most 256 shards, which are spread evenly over the dataset. If these shards have fewer than
    `look_at` samples, all of their samples are chosen. The ids are returned in picks, each with samples of one shard.
    The picks are in a fixed random order, so that a caller who stops early has read samples from all over the dataset.
    """
    firsts = [0, *accumulate(map(int, manifest.counts))]
    number = min(len(manifest.counts), _SHARDS_AT_MOST)
    shards = [turn * len(manifest.counts) // number for turn in range(number)]
    sizes = [firsts[shard + 1] - firsts[shard] for shard in shards]
    ends = np.cumsum(sizes)
    wanted = max(0, min(look_at, int(ends[-1])))
    places = np.arange(wanted, dtype=np.int64) * int(ends[-1]) // max(wanted, 1)
    parts = np.split(places, np.searchsorted(places, ends[:-1]))
    # `places` count over the chosen shards laid end to end; each part becomes ids of the whole dataset.
    picks: list[Pick] = []
    for shard, size, end, part in zip(shards, sizes, ends.tolist(), parts, strict=True):
        picks += _picks(manifest, shard, part - (end - size) + firsts[shard])
    random.Random(0).shuffle(picks)
    return picks


def everything(manifest: Manifest) -> Iterator[Pick]:
    """Yields the ids of all samples of a dataset in their order, in picks. A pick has samples of one shard only."""
    first = 0
    for shard, count in enumerate(map(int, manifest.counts)):
        yield from _picks(manifest, shard, np.arange(first, first + count, dtype=np.int64))
        first += count


def look(reader: Reader, picks: Iterable[Pick]) -> Iterator[tuple[Pick, list[Seen] | DamagedShard]]:
    """Reads the samples of the picks with eight threads, and yields each pick with its samples, in the order of picks.

    A pick is an array with the ids of samples of one shard that are read together. If the shard of a pick cannot be
    read, the pick is yielded with the error in place of its samples.
    """
    # `in_order` takes picks ahead of the results, so each pick is remembered until its result comes.
    first, second = tee(picks)
    with ThreadPoolExecutor(_READERS) as pool:
        yield from zip(first, in_order(pool, partial(_open, reader), second, ahead=_READERS), strict=True)


def _picks(manifest: Manifest, shard: int, ids: Pick) -> Iterator[Pick]:
    """Cuts the ids of samples of one shard into picks, which are small enough to be read together."""
    row = manifest.shards[shard]
    size = max(1, min(_ROWS_TOGETHER, _BYTES_TOGETHER * row.samples // row.bytes))
    return (ids[start : start + size] for start in range(0, len(ids), size))


def _open(reader: Reader, pick: Pick) -> list[Seen] | DamagedShard:
    try:
        return [_with_header(each) for each in reader.fetch(pick)]
    except DamagedShard as damage:
        return damage


def _with_header(sample: Encoded | DamagedSample) -> Seen:
    """Returns the sample with its image's header, captions and labels, or a `DamagedSample` if it is damaged."""
    if isinstance(sample, DamagedSample):
        return sample
    try:
        kind, width, height = checked_header(sample.image, sample.extension)
        captions, labels = load_annotation(sample.annotation)
    except (AnnotationError, ImageError) as error:
        return DamagedSample.at(sample.shard, sample.key, str(error))
    return HeaderSample(sample.shard, sample.key, kind, width, height, sample.image, captions, labels)
