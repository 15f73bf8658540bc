"""Defines the items of a benchmark: an image or a video on the user's disk, with its labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True, slots=True)
class FrameFiles:
    """A video whose frames are files. `paths` has them in the order of time, and contains at least one."""

    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A video in one file, which PyAV reads."""

    path: Path


@dataclass(frozen=True, slots=True)
class CroppedImage:
    """A rectangle of an image file in pixels, from `left` and `top` (inclusive) to `right` and `bottom` (exclusive)."""

    path: Path
    left: int
    top: int
    right: int
    bottom: int


Media: TypeAlias = Path | CroppedImage | FrameFiles | VideoFile | UInt8[np.ndarray, "height width"]
"""An image file, a rectangle of one, a video, or the pixels of a grey image that a table contains."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its answers. `right` is the position of the right one, counted from 0."""

    text: str
    answers: tuple[str, ...]
    right: int


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """Holds one item of a split of a benchmark.

    Attributes:
        key: A name that is unique within the benchmark: the path of the medium, a row of its table, or both. Paths use
            "/".
        media: The image or video.
        class_name: The name of the class; None if the target is not a class.
        numbers: Numbers by their names, after division by the target's divisor. Invalid ones are left out.
        units: Whether each action unit is shown, by its number.
        caption: The caption; None if there is none.
        question: The question; None if there is none.
        group: The person or the clip to which the item belongs; None if the layout does not say it.
    """

    key: str
    media: Media
    class_name: str | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[int, bool] = field(default_factory=dict)
    caption: str | None = None
    question: Question | None = None
    group: str | None = None
