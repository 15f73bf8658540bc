"""Compares decoders and ways to crop and resize on one core."""

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

from .host import Pythons, call, python_command

QUALITY = 90


@dataclass(frozen=True, slots=True)
class Lineup:
    """A module of `hosts` with several ways to do the same.

    Attributes:
        module: In `hosts`.
        what: Its ways do, in the records.
        base: The way with which the others are compared.
        sizes: Sides of the images, in pixels.
    """

    module: str
    what: str
    base: str
    sizes: tuple[int, ...]


DECODERS = Lineup("decoders", "seconds to decode a JPEG", "simplejpeg", (112, 256, 1024))
RESIZERS = Lineup("resizers", "seconds to crop and resize to 224 px", "Pillow, bicubic", (256, 1024))


def measure(
    lineup: Lineup, faces: Sequence[Record], work: Path, pythons: Pythons, rounds: int, occasion: Occasion
) -> Iterator[Measurement]:
    folder = work / "pictures" / lineup.module
    for size in lineup.sizes:
        _write(faces[: max(8, 64 * 256 // size)], folder / str(size), size)
    command = python_command(pythons, lineup.module, [str(folder), str(rounds)], of_peers=pythons.has_peers)
    answers = json.loads(call(command, pythons))
    base = {each["pixels"]: each["seconds"] for each in answers if each["contender"] == lineup.base}
    for each in answers:
        about: dict[str, Any] = {
            "what": lineup.what,
            "contender": each["contender"],
            "setting": {"pixels": each["pixels"], "quality": QUALITY},
            "unit": "s",
            "versions": each["versions"],
        }
        if each["skipped"]:
            yield measured(occasion, Skipped(each["skipped"]), **about)
            continue
        over = {f"over {lineup.base}": ratios(each["seconds"], base[each["pixels"]])}
        more = {name: each[name] for name in ("greatest_difference", "mean_difference")}
        yield measured(occasion, each["seconds"], **about, ratios=over, more=more)


def _write(faces: Sequence[Record], folder: Path, size: int) -> None:
    """The faces at another size, in Pillow's usual JPEG: colours at half the resolution."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jpg"):
        old.unlink()
    for number, face in enumerate(faces):
        with Image.open(io.BytesIO(face.image)) as image:
            small = image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        small.save(folder / f"{number:03d}.jpg", quality=QUALITY)
