"""Makes small datasets for the tests of this folder."""

import io

import numpy as np
from emocap_shards.sample import Caption, Record
from PIL import Image


def encode(seed: int, *, size: int = 8, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def record(number: int) -> Record:
    caption = Caption(f"Face {number} is glad.", ("Eyes wide.", "Mouth open.")[: number % 3], f"Glad, number {number}.")
    labels = {"emotion": ("joy", "fear")[number % 2], "valence": number / 10}
    return Record(f"face-{number:04d}", encode(number), "png", caption, labels)


def records(count: int) -> list[Record]:
    return [record(number) for number in range(count)]
