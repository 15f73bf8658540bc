"""Measures how well our package and webdataset shuffle a dataset, relative to a perfect shuffle."""

import random
from collections.abc import Iterator, Sequence

import numpy as np
from emocap_shards.order import Order, ShardLayout
from webdataset.filters import _shuffle as buffered  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured, spread

from .host import OURS, WEB_DATASET

WHAT = "shuffle"
CLASSES = 8


def measure(
    occasion: Occasion,
    epochs: int,
    *,
    samples: int = 1 << 18,
    batch: int = 1024,
    shard_samples: Sequence[int] = (128, 1024),
    windows: Sequence[int] = (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18),
    buffers: Sequence[int] = (1000, 5000),
) -> Iterator[Measurement]:
    """Yields the quality of each shuffle for each number of samples in a shard (`shard_samples`).

    Our shuffle mixes the samples of a window, and webdataset's mixes the samples in a buffer. They are measured with
    each size in `windows` and in `buffers`, as numbers of samples. `epochs` is the number of readings.
    """
    shuffles = [
        *((OURS, "window_samples", size, ours) for size in windows),
        *((WEB_DATASET, "buffer", size, web_dataset) for size in buffers),
    ]
    for in_shard in shard_samples:
        for system, kind, size, shuffled in shuffles:
            found = [quality(shuffled(samples, in_shard, size, seed), batch) for seed in range(epochs)]
            neighbours, classes, displacement = zip(*found, strict=True)
            yield measured(
                occasion,
                neighbours,
                what=WHAT,
                contender=system.name,
                setting={
                    "samples": samples,
                    "batch": batch,
                    "shard_samples": in_shard,
                    "kind": kind,
                    "size": size,
                },
                unit="times a perfect shuffle",
                more={"classes": spread(classes), "displacement": spread(displacement)},
                versions=versions(("numpy", "webdataset")),
            )


def ours(samples: int, shard_samples: int, window: int, seed: int) -> np.ndarray:
    """Returns the sample ids of an epoch in our order, for shards and a window of these numbers of samples."""
    layout = ShardLayout([shard_samples] * (samples // shard_samples))
    return Order(layout, seed, 0, window).ids(0, samples)


def web_dataset(samples: int, shard_samples: int, buffer: int, seed: int) -> np.ndarray:
    """Returns the sample ids of an epoch in webdataset's order: shuffled shards, then a buffer of samples.

    The order is that of a single process. Several loader processes do not shuffle better.
    """
    rng = random.Random(seed)
    shards = list(range(samples // shard_samples))
    rng.shuffle(shards)
    ids = (each for shard in shards for each in range(shard * shard_samples, (shard + 1) * shard_samples))
    return np.fromiter(buffered(ids, bufsize=buffer, rng=rng), np.int64)


def quality(order: np.ndarray, batch: int) -> tuple[float, float, float]:
    """Returns three measures of a shuffle, relative to a perfect shuffle, whose measures are 1.

    `order` contains the sample ids in the order of the epoch, and `batch` is the number of samples in a batch. The
    first measure says how often two samples that are stored next to each other are in the same batch. The second
    measure is the variance of the number of samples of a class in a batch, for a dataset that is stored class by class.
    The third measure is the mean distance between the position at which a sample is stored and its position in `order`.
    """
    samples = len(order)
    places = np.empty(samples, np.int64)
    places[order] = np.arange(samples)
    meet = np.mean(places[1:] // batch == places[:-1] // batch)
    whole = order[: samples // batch * batch].reshape(-1, batch) * CLASSES // samples
    counts = np.stack([(whole == each).sum(1) for each in range(CLASSES)])
    share = 1 / CLASSES
    hypergeometric = batch * share * (1 - share) * (samples - batch) / (samples - 1)
    return (
        float(meet / ((batch - 1) / (samples - 1))),
        float(np.mean((counts - batch * share) ** 2) / hypergeometric),
        float(np.abs(places - np.arange(samples)).mean() / (samples / 3)),
    )
