"""Encodes images again, in another format or with fewer pixels."""

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
    """Says how every image is encoded again. The new image is upright, in RGB, without metadata, and never larger in
    pixels.

    Args:
        extension: The new format; None keeps each image's own format.
        quality: Quality of JPEG and WebP, 1 to 100.
        longest_px: Limit for the longer side in pixels; None sets no limit.
        shortest_px: Limit for the shorter side in pixels; None sets no limit.
    """

    extension: Extension | None = None
    quality: int = 92
    longest_px: int | None = None
    shortest_px: int | None = None

    def __post_init__(self) -> None:
        if self.extension not in {None, *EXTENSIONS}:
            raise RecordError(f"image format {self.extension!r} is not one of {', '.join(EXTENSIONS)}.")
        if not 1 <= self.quality <= 100:
            raise RecordError(f"quality={self.quality}; it must be 1 to 100.")
        if min(self.longest_px or 1, self.shortest_px or 1) < 1:
            raise RecordError(
                f"longest_px={self.longest_px}, shortest_px={self.shortest_px}: a side has 1 pixel or more."
            )

    def encode(self, pixels: UInt8[np.ndarray, "height width 3"], extension: str) -> tuple[bytes, str]:
        """Returns the encoded image and its new extension. `extension` is the extension that the image had before."""
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
