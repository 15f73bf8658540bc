"""Defines the classes for a sample before it is written, encoded in a shard, and decoded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True, slots=True)
class Caption:
    """A structured emotion caption.

    `global_` is one sentence about the intensity and the nuance of the emotion, without cues (visible signs, such as
    raised eyebrows). Its name ends in "_" because `global` is a Python keyword; the field is called "global" on disk.
    `local` holds one sentence for each facial region that is described, and may be empty. `summary` is one long
    sentence about the emotion and the cues that show it.
    """

    global_: str
    local: tuple[str, ...]
    summary: str


@dataclass(frozen=True, slots=True)
class Record:
    """A sample that is about to be written into a shard.

    `image` holds the encoded bytes exactly as they will lie in the tar. `extension` names the encoding ("jpg", "png",
    "webp"). `key` contains no dot and no slash. `further` holds other captions of the same image. In each epoch a
    `Stream` chooses one caption from `caption` and `further`. With None for `caption` the image has labels alone.
    """

    key: str
    image: bytes
    extension: str
    caption: Caption | None
    labels: Mapping[str, str | float] = field(default_factory=dict[str, str | float])
    further: tuple[Caption, ...] = ()


WHOLE_CAPTION, SUMMARY, EVERY_LOCAL = -1, -2, -3
"""The values of `UnusedText.sentence` that are not the index of a local sentence."""


class UnusedText(NamedTuple):
    """Names a text of a sample that a filter leaves out.

    Attributes:
        caption: Index of the caption among all captions of the sample.
        sentence: Index of the local sentence; or `WHOLE_CAPTION`, `SUMMARY` or `EVERY_LOCAL`.
    """

    caption: int
    sentence: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """An undecoded sample of a shard; the sample's checksum has been verified.

    `index` is the number of the sample in the order of the manifests, which does not depend on epochs or world size.
    `shard` is the path of the tar. `block` holds the bytes of the sample in the tar, with the tar headers of its two
    members, the image and the annotation. `image_at` and `annotation_at` are their ranges (start, stop) within `block`,
    without headers. Each use of the properties `image` and `annotation` copies the bytes of such a range. `unused`
    names the texts that the filter of the dataset leaves out. The annotation still has them, and `used_annotation`
    takes them out.
    """

    index: int
    key: str
    shard: str
    extension: str
    block: bytes = field(repr=False)
    image_at: tuple[int, int]
    annotation_at: tuple[int, int]
    unused: tuple[UnusedText, ...] = ()

    @property
    def image(self) -> bytes:
        return self.block[slice(*self.image_at)]

    @property
    def annotation(self) -> bytes:
        return self.block[slice(*self.annotation_at)]


@dataclass(frozen=True, slots=True)
class Sample:
    """A decoded sample of a shard.

    `index` is the number of the sample in the order of the manifests, which does not depend on epochs or world size.
    `image` is upright RGB. `caption` is the caption that was chosen for this epoch, and `further` holds the image's
    other captions; if the image has labels alone, `caption` is None. `epoch` is the number of complete passes over the
    sample's dataset, or over its class if classes are balanced, before the current pass. `shown` is the place of
    `caption` among all captions of the image, in the order in which they are stored.
    """

    index: int
    key: str
    image: UInt8[np.ndarray, "height width 3"]
    caption: Caption | None
    labels: Mapping[str, str | float]
    further: tuple[Caption, ...] = ()
    epoch: int = 0
    shown: int = 0

    @property
    def captions(self) -> tuple[Caption, ...]:
        """Returns all captions of the image, in the order in which they are stored."""
        if self.caption is None:
            return ()
        return (*self.further[: self.shown], self.caption, *self.further[self.shown :])
