"""Measures how well a dataset is shuffled: the order of ours, and webdataset's buffer, beside a perfect shuffle."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from emocap_shards.order import Order, ShardLayout
from webdataset.filters import _shuffle as buffered  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured, spread

from .host import OURS

WHAT = "shuffle"
CLASSES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Holds the settings of the measurement; `seeds` is the number of epochs that are measured."""

    samples: int
    batch: int
    shard_samples: Sequence[int]
    windows: Sequence[int]
    buffers: Sequence[int]
    seeds: int


@dataclass(frozen=True, slots=True)
class Quality:
    """Holds measures of a shuffle, relative to a perfect shuffle, which has 1.

    Attributes:
        neighbours: How often two samples that are stored next to each other are in one batch.
        classes: Variance of the share of a class in a batch, if the dataset is stored class by class.
        displacement: Mean distance that a sample moves.
    """

    neighbours: float
    classes: float
    displacement: float


def measure(plan: Plan, occasion: Occasion) -> Iterator[Measurement]:
    for shard_samples in plan.shard_samples:
        for window in plan.windows:
            orders = [ours(plan, shard_samples, window, seed) for seed in range(plan.seeds)]
            yield _line(OURS.name, "window_samples", window, orders, plan, shard_samples, occasion)
        for buffer in plan.buffers:
            orders = [web_dataset(plan, shard_samples, buffer, seed) for seed in range(plan.seeds)]
            yield _line("webdataset", "buffer", buffer, orders, plan, shard_samples, occasion)


def ours(plan: Plan, shard_samples: int, window: int, seed: int) -> np.ndarray:
    layout = ShardLayout([shard_samples] * (plan.samples // shard_samples))
    return Order(layout, seed, 0, window).ids(0, plan.samples)


def web_dataset(plan: Plan, shard_samples: int, buffer: int, seed: int) -> np.ndarray:
    """Shuffles shards, and then samples in a buffer, with one reader; several readers do not mix better."""
    rng = random.Random(seed)
    shards = list(range(plan.samples // shard_samples))
    rng.shuffle(shards)
    samples = (sample for shard in shards for sample in range(shard * shard_samples, (shard + 1) * shard_samples))
    return np.fromiter(buffered(samples, bufsize=buffer, rng=rng), np.int64)


def quality(order: np.ndarray, batch: int) -> Quality:
    samples = len(order)
    places = np.empty(samples, np.int64)
    places[order] = np.arange(samples)
    meet = np.mean(places[1:] // batch == places[:-1] // batch)
    whole = order[: samples // batch * batch].reshape(-1, batch) * CLASSES // samples
    counts = np.stack([(whole == each).sum(1) for each in range(CLASSES)])
    share = 1 / CLASSES
    hypergeometric = batch * share * (1 - share) * (samples - batch) / (samples - 1)
    return Quality(
        neighbours=float(meet / ((batch - 1) / (samples - 1))),
        classes=float(np.mean((counts - batch * share) ** 2) / hypergeometric),
        displacement=float(np.abs(places - np.arange(samples)).mean() / (samples / 3)),
    )


def _line(
    contender: str,
    name: str,
    size: int,
    orders: Sequence[np.ndarray],
    plan: Plan,
    shard_samples: int,
    occasion: Occasion,
) -> Measurement:
    found = [quality(order, plan.batch) for order in orders]
    setting = {"samples": plan.samples, "batch": plan.batch, "shard_samples": shard_samples, "kind": name, "size": size}
    more = {each: spread([getattr(one, each) for one in found]) for each in ("classes", "displacement")}
    return measured(
        occasion,
        [one.neighbours for one in found],
        what=WHAT,
        contender=contender,
        setting=setting,
        unit="times a perfect shuffle",
        more=more,
        versions=versions(("numpy", "webdataset")),
    )
