"""Compares JPEG decoders, and functions that crop and resize images, on one core."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emocap_shards.sample import Record
from PIL import Image

from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement, measured, ratios
from benchmarks.harness.rounds import Skipped

from .host import Pythons

QUALITY = 90


@dataclass(frozen=True, slots=True)
class Lineup:
    """A group of decoders or of resizers that `hosts.pictures` compares.

    Attributes:
        name: The name of the group in `hosts.pictures`.
        what: The measured quantity in the records.
        base: The name of the decoder or resizer with whose times the others are compared.
        sizes: The sides of the images in pixels.
    """

    name: str
    what: str
    base: str
    sizes: tuple[int, ...]


DECODERS = Lineup("decoders", "seconds to decode a JPEG", "simplejpeg", (112, 256, 1024))
RESIZERS = Lineup("resizers", "seconds to crop and resize to 224 px", "Pillow, bicubic", (256, 1024))


def measure(
    lineup: Lineup, faces: Sequence[Record], work: Path, pythons: Pythons, rounds: int, occasion: Occasion
) -> Iterator[Measurement]:
    """Writes the faces as JPEG files of all sizes, and measures the decoders or resizers of `lineup` in one process.

    The process runs in the Python environment of the other libraries, if it exists, and otherwise in ours.
    """
    folder = work / "pictures" / lineup.name
    for size in lineup.sizes:
        _write(faces[: max(8, 64 * 256 // size)], folder / str(size), size)
    command = pythons.command("pictures", [lineup.name, str(folder), str(rounds)], is_peer=pythons.has_peers)
    answers = json.loads(pythons.call(command))
    base = {each["pixels"]: each["seconds"] for each in answers if each["contender"] == lineup.base}
    for each in answers:
        about: dict[str, Any] = {
            "what": lineup.what,
            "contender": each["contender"],
            "setting": {"pixels": each["pixels"], "quality": QUALITY},
            "unit": "s",
            "more": each["more"],
            "versions": each["versions"],
        }
        if each["skipped"]:
            yield measured(occasion, Skipped(each["skipped"]), **about)
        else:
            over = {f"over {lineup.base}": ratios(each["seconds"], base[each["pixels"]])}
            yield measured(occasion, each["seconds"], ratios=over, **about)


def _write(faces: Sequence[Record], folder: Path, size: int) -> None:
    """Writes the faces as JPEG files with a side of `size` pixels and the quality `QUALITY`.

    Chroma is subsampled 4:2:0, which is Pillow's default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jpg"):
        old.unlink()
    for number, face in enumerate(faces):
        with Image.open(io.BytesIO(face.image)) as image:
            small = image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        small.save(folder / f"{number:03d}.jpg", quality=QUALITY)
