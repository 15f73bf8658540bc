"""Makes a contact sheet: randomly chosen faces as small JPEGs, with their captions and labels."""

import io
import random
from dataclasses import dataclass

from PIL import Image

from emocap_shards.annotation import Labels
from emocap_shards.decode import decode_image
from emocap_shards.errors import ImageError
from emocap_shards.inspecting.look import HeaderSample
from emocap_shards.sample import Caption

MOST_PX = 160
_QUALITY = 80


@dataclass(frozen=True, slots=True)
class SheetFace:
    """Holds one sample of the contact sheet. `jpeg` is its image as a JPEG, with no side longer than 160 pixels."""

    shard: str
    key: str
    jpeg: bytes
    captions: tuple[Caption, ...]
    labels: Labels


class ContactSheet:
    """Keeps `size` of the added samples, each with equal probability (reservoir sampling, Vitter 1985)."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._count = 0
        self._faces: list[SheetFace] = []
        self._random = random.Random(0)

    def add(self, sample: HeaderSample) -> bool:
        """Adds a sample. Returns False if the sample was chosen for the sheet and its image cannot be decoded."""
        self._count += 1
        # Only a chosen face is decoded, so the cost does not grow with the dataset.
        place = len(self._faces) if len(self._faces) < self._size else self._random.randrange(self._count)
        if place >= self._size:
            return True
        try:
            face = SheetFace(sample.shard, sample.key, _thumbnail(sample.image), sample.captions, sample.labels)
        except ImageError:
            return False
        # This replaces the face at this place, or appends it if there is none yet.
        self._faces[place : place + 1] = [face]
        return True

    def faces(self) -> tuple[SheetFace, ...]:
        """Returns the chosen samples, sorted by shard and key."""
        return tuple(sorted(self._faces, key=lambda face: (face.shard, face.key)))


def _thumbnail(image: bytes) -> bytes:
    small = Image.fromarray(decode_image(image))
    small.thumbnail((MOST_PX, MOST_PX))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_QUALITY, optimize=True)
    return file.getvalue()
