"""Images in another format or size."""

import io
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from emocap_shards.errors import RecordError

Extension = Literal["jpg", "png", "webp"]
EXTENSIONS: tuple[Extension, ...] = get_args(Extension)
_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


@dataclass(frozen=True, slots=True)
class EncodingConfig:
    """How every image is written again: upright, in RGB, without metadata, and never larger than it was.

    Args:
        extension: The new format; None keeps each image's own.
        quality: 1 to 100, of JPEG and WebP.
        longest_px: The longer side has at most so many pixels.
        shortest_px: The shorter side has at most so many pixels.
    """

    extension: Extension | None = None
    quality: int = 92
    longest_px: int | None = None
    shortest_px: int | None = None

    def __post_init__(self) -> None:
        if self.extension not in {None, *EXTENSIONS}:
            raise RecordError(f"image format {self.extension!r} is none of {', '.join(EXTENSIONS)}.")
        if not 1 <= self.quality <= 100:
            raise RecordError(f"quality={self.quality}; it goes from 1 to 100.")
        if min(self.longest_px or 1, self.shortest_px or 1) < 1:
            raise RecordError(
                f"longest_px={self.longest_px}, shortest_px={self.shortest_px}: a side has 1 pixel or more."
            )

    def encode(self, pixels: UInt8[np.ndarray, "height width 3"], extension: str) -> tuple[bytes, str]:
        """The encoded image and its extension; `extension` is what it had."""
        new = self.extension or ("jpg" if extension == "jpeg" else extension)
        image = Image.fromarray(pixels)
        size = self._size(image.width, image.height)
        small = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, _FORMATS[new], **({} if new == "png" else {"quality": self.quality}))
        return file.getvalue(), new

    def _size(self, width: int, height: int) -> tuple[int, int]:
        by_longest = (self.longest_px or max(width, height)) / max(width, height)
        by_shortest = (self.shortest_px or min(width, height)) / min(width, height)
        scale = min(1.0, by_longest, by_shortest)
        return max(1, round(width * scale)), max(1, round(height * scale))
