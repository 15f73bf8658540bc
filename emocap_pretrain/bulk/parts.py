"""Divides the items of an input into parts. A part is computed as a whole, and is the unit of resuming."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

PART_WEIGHT = 1024
VIDEO_WEIGHT = 128
"""The weight of a video, where an image has the weight 1: about the frames of two minutes at 1 frame/s."""


class OutputPart(NamedTuple):
    """Holds the number of a part, counted from 0, its range of items (`stop` is excluded), and their total weight."""

    number: int
    start: int
    stop: int
    weight: int


def cut(weights: Iterable[int], most: int) -> Iterator[OutputPart]:
    """Yields parts that cover all items in order. The parts depend on the arguments alone.

    A part ends when its weight reaches `most`. So it has at least one item, and without its last item it weighs less
    than `most`.

    Args:
        weights: The weight of each item, at least 1.
        most: The weight at which a part ends, at least 1.
    """
    number = start = stop = weight = 0
    for stop, each in enumerate(weights, 1):
        weight += each
        if weight >= most:
            yield OutputPart(number, start, stop, weight)
            number, start, weight = number + 1, stop, 0
    if start < stop:
        yield OutputPart(number, start, stop, weight)
