"""Defines the pictures that an input provides, and prefetches them in threads."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar, cast

import numpy as np
from emocap_shards.background import in_order
from emocap_shards.decode import decode_image
from emocap_shards.writing.row import LocalFile

from emocap_pretrain.errors import DataError
from emocap_pretrain.inference.embedder import Crop
from emocap_pretrain.inference.images import READERS, UNREADABLE, pixels_of, reason

Item = TypeVar("Item")

Content: TypeAlias = Path | LocalFile | bytes | Crop | DataError
"""A file, a file that a table names, an encoded image, the crop of a frame, or the reason why there is no image."""


class Cropper(Protocol):
    """Decides which part of an image is read, such as the embedder of a model."""

    def square(self, image: Crop) -> Crop: ...


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One row of the output before it is computed.

    Attributes:
        name: The name of the image or video: its path in the folder or table, or the key of a sample.
        content: The image, or the error that takes its place.
        weight: The share of this picture in the weight of its item (`bulk/parts.py`). The display of progress adds up
            these shares.
        time_s: The time of a frame from the start of its video; None for an image.
        frame: The number of a frame in its video, counted from 0; None for an image.
    """

    name: str
    content: Content
    weight: float = 1.0
    time_s: float | None = None
    frame: int | None = None


def crop_of(content: Content, cropper: Cropper) -> Crop | DataError:
    """Returns the part of an image that is read, or an error with the reason why the image cannot be read.

    The error is returned and not raised, so that one unreadable image among many does not end the command.
    """
    if isinstance(content, DataError | np.ndarray):
        return content
    try:
        return cropper.square(_pixels(content))
    except UNREADABLE as error:
        return DataError(reason(error))


def _pixels(content: Path | LocalFile | bytes) -> Crop:
    if isinstance(content, Path):
        return pixels_of(content)
    return decode_image(content.read() if isinstance(content, LocalFile) else content)


def prefetched(items: Iterator[Item], act: Callable[[Item], Item], *, ahead: int) -> Generator[Item]:
    """Yields `act(item)` for each item in order. Threads call `next(items)` and `act` in advance.

    A single thread iterates over `items`, so `items` may decode a video or wait for a store. `items` must not yield
    None. At most `2 * ahead` items are in memory.
    """

    def take(_number: int) -> Item | None:
        return next(items, None)

    with ThreadPoolExecutor(1, "emocap-take") as taker, ThreadPoolExecutor(READERS, "emocap-read") as readers:
        taken = takewhile(lambda item: item is not None, in_order(taker, take, count(), ahead=ahead))
        yield from in_order(readers, act, cast("Iterator[Item]", taken), ahead=ahead)
