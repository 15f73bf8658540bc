"""Makes small datasets for the tests of this folder."""

import io
import tarfile

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


def tar_of(path, members, mode="w"):
    """Writes a tar with members of the given names and contents, and returns its path."""
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
