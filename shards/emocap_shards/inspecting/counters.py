"""Counts texts, and summarises numbers, in a stream of any length and in bounded memory."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

_KEPT = 20_000
_BINS = 24
_WHOLE = 1 << 50  # Below this bound a float can represent every half between two integers.


@dataclass(frozen=True, slots=True)
class Counts:
    """Reports how often texts occurred in a stream.

    Attributes:
        total: Number of texts, including repeated ones.
        distinct: Number of distinct texts; a lower bound if `short` is not 0.
        once: Number of texts that occurred exactly once; meaningless if `short` is not 0.
        short: The largest error of a count. If it is 0, all counts are exact. Otherwise the counter has dropped rare
            texts to limit its memory, and a count may be too small by up to this number.
        top: The most frequent texts with their counts, in descending order of the counts.
    """

    total: int
    distinct: int
    once: int
    short: int
    top: tuple[tuple[str, int], ...]

    @property
    def repeats(self) -> int:
        """Returns the number of texts that repeat an earlier text.

        If `short` is not 0, the result is an upper bound.
        """
        return self.total - self.distinct


class TextCounter:
    """Counts texts. When it holds more than `cap` distinct texts, it drops the rarest ones to limit its memory.

    The method is similar to lossy counting (Manku & Motwani 2002).
    """

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._counts: Counter[str] = Counter()
        self._total = 0
        self._short = 0
        self._most = 0

    def add(self, items: Iterable[str]) -> None:
        for item in items:
            self._counts[item] += 1
            self._total += 1
            if len(self._counts) > self._cap:
                self._forget()

    def counts(self, top: int) -> Counts:
        """Returns the counts so far, with the `top` most frequent texts."""
        once = sum(1 for count in self._counts.values() if count == 1)
        ordered = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        # After texts were dropped, the largest number of distinct texts that were held at one time is a lower bound.
        distinct = max(self._most, len(self._counts))
        return Counts(self._total, distinct, once, self._short, tuple(ordered[:top]))

    def _forget(self) -> None:
        """Drops the rarest texts, at least half of all. If all texts have the same count, all of them are dropped.

        If a dropped text occurs again, its count begins at zero. Therefore the largest dropped count is added to
        `_short`, the largest error of a count. `_most` is the largest number of distinct texts held at one time so far.
        """
        self._most = max(self._most, len(self._counts))
        # The median count. Texts with this count or a smaller one are dropped, at least half of all.
        limit = sorted(self._counts.values())[len(self._counts) // 2]
        self._short += limit
        self._counts = Counter({item: count for item, count in self._counts.items() if count > limit})


@dataclass(frozen=True, slots=True)
class Spread:
    """Summarises the distribution of some numbers.

    `count`, `least`, `mean` and `most` are exact. `median`, `edges` and `bins` come from a uniform sample of at most
    20,000 numbers. `bins[i]` is the count of sampled numbers from `edges[i]` to `edges[i + 1]`. If there are no
    numbers, there is one empty bin from 0 to 1, and the other fields are 0.
    """

    count: int
    least: float
    mean: float
    most: float
    median: float
    edges: tuple[float, ...]
    bins: tuple[int, ...]


class NumberCounter:
    """Summarises a stream of numbers as a `Spread`.

    A uniform sample of the numbers is kept for the median and the bins (reservoir sampling, Vitter 1985).
    """

    def __init__(self) -> None:
        self._count = 0
        self._sum = 0.0
        self._least = float("inf")
        self._most = float("-inf")
        self._kept: list[float] = []
        self._random = random.Random(0)

    def add(self, numbers: Iterable[float]) -> None:
        for number in map(float, numbers):
            self._count += 1
            self._sum += number
            self._least, self._most = min(self._least, number), max(self._most, number)
            self._keep(number)

    def spread(self) -> Spread:
        if not self._count:
            return Spread(0, 0.0, 0.0, 0.0, 0.0, (0.0, 1.0), (0,))
        kept = np.array(self._kept)
        bins, edges = np.histogram(kept, _edges(kept))
        median = 2 * float(np.median(kept / 2))  # Halved, because the sum of two large floats may overflow.
        return Spread(
            self._count,
            self._least,
            self._sum / self._count,
            self._most,
            median,
            tuple(edges.tolist()),
            tuple(bins.tolist()),
        )

    def _keep(self, number: float) -> None:
        if len(self._kept) < _KEPT:
            self._kept.append(number)
        # The n-th number replaces a kept one with probability _KEPT / n, so all numbers are kept with equal
        # probability.
        elif (place := self._random.randrange(self._count)) < _KEPT:
            self._kept[place] = number


def spread_of(numbers: Iterable[float]) -> Spread:
    collected = NumberCounter()
    collected.add(numbers)
    return collected.spread()


def _edges(numbers: Float64[np.ndarray, " numbers"]) -> list[float]:
    """Returns the edges of the bins of a histogram of `numbers`.

    If all numbers are integers in a range of up to 24 values, each value has one bin. In a larger range, several
    integers share a bin. If not all numbers are integers, there are 24 bins of equal width.
    """
    least, most = float(numbers.min()), float(numbers.max())
    if np.all(numbers == np.floor(numbers)) and max(abs(least), abs(most)) < _WHOLE:
        values = int(most - least) + 1
        width = -(-values // _BINS)
        # The edges lie at halves, so that every integer lies inside of a bin.
        return [least - 0.5 + width * step for step in range(-(-values // width) + 1)]
    # Divided by 4, because the difference of two large floats may overflow, and that of their halves may be rounded up.
    edges = np.unique(4 * np.linspace(least / 4, most / 4, _BINS + 1))
    edges[0], edges[-1] = least, most
    if len(edges) > 1:
        return [float(edge) for edge in edges]
    beside = np.nextafter(least, 0.0 if least else 1.0)  # Towards zero: in the other direction there may be infinity.
    return sorted([least, float(beside)])
