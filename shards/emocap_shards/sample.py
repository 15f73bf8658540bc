"""What one sample is: an image, its caption in three parts, its labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True, slots=True)
class Caption:
    """A structured emotion caption.

    `global_` is one sentence about the intensity and the nuance of the emotion, without cues. Its name ends in "_"
    because `global` is a Python keyword; the field is called "global" on disk. `local` holds one sentence for each
    facial region that is described, and may be empty. `summary` is one long sentence about the emotion and the cues
    that show it.
    """

    global_: str
    local: tuple[str, ...]
    summary: str


@dataclass(frozen=True, slots=True)
class Record:
    """A sample on its way into a shard: the encoded image as it will stand in the tar.

    `extension` names the encoding ("jpg", "png", "webp"). `key` has no dot and no slash. `further` holds other
    captions of the same image: a stream shows one of all of them each time.
    """

    key: str
    image: bytes
    extension: str
    caption: Caption
    labels: Mapping[str, str | float] = field(default_factory=dict[str, str | float])
    further: tuple[Caption, ...] = ()


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sample as it stands in its shard: nothing decoded yet, every byte checked.

    `index` is its number in the manifest's order, stable over epochs and world sizes; `shard` is the path of its tar,
    `block` its stretch of it. `image_at` and `annotation_at` say from where to where the two members go in the block.
    """

    index: int
    key: str
    shard: str
    extension: str
    block: bytes = field(repr=False)
    image_at: tuple[int, int]
    annotation_at: tuple[int, int]

    @property
    def image(self) -> bytes:
        return self.block[slice(*self.image_at)]

    @property
    def annotation(self) -> bytes:
        return self.block[slice(*self.annotation_at)]


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample out of a shard, decoded.

    `index` is its number in the order of the manifests, stable over epochs and world sizes; `epoch` is how often its
    dataset was passed before. `further` holds the captions of the image that are not shown this time.
    """

    index: int
    key: str
    image: UInt8[np.ndarray, "height width 3"]
    caption: Caption
    labels: Mapping[str, str | float]
    further: tuple[Caption, ...] = ()
    epoch: int = 0
