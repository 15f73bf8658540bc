"""Decoders and ways to crop and resize, side by side on one core."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from emocap_shards.sample import Record
from PIL import Image

from benchmarks.harness.measurement import ratios, spread
from benchmarks.harness.record import Line, Occasion, line

from .host import Pythons, call, python_command

QUALITY = 90
WHAT = {"decoders": "seconds to decode a JPEG", "resizers": "seconds to crop and resize to 224 px"}
BASE = {"decoders": "simplejpeg", "resizers": "Pillow, bicubic"}


def measure(
    module: str,
    faces: Sequence[Record],
    sizes: Sequence[int],
    work: Path,
    pythons: Pythons,
    rounds: int,
    occasion: Occasion,
) -> Iterator[Line]:
    """Args: `module` is "decoders" or "resizers"."""
    folder = work / "pictures"
    for size in sizes:
        _write(faces[: max(8, 64 * 256 // size)], folder / module / str(size), size)
    words = [str(folder / module), str(rounds)]
    answers = json.loads(call(python_command(pythons, module, words, of_peers=pythons.has_peers), pythons))
    base = {each["pixels"]: each["seconds"] for each in answers if each["contender"] == BASE[module]}
    for each in answers:
        about = {"what": WHAT[module], "contender": each["contender"], "unit": "s", "versions": each["versions"]}
        about["setting"] = {"pixels": each["pixels"], "quality": QUALITY}
        if each["skipped"]:
            yield line(occasion, **about, skipped=each["skipped"])
            continue
        yield line(
            occasion,
            **about,
            value=spread(each["seconds"]),
            repetitions=rounds,
            ratios={f"over {BASE[module]}": spread(ratios(each["seconds"], base[each["pixels"]]))},
            more={name: each[name] for name in ("greatest_difference", "mean_difference")},
        )


def _write(faces: Sequence[Record], folder: Path, size: int) -> None:
    """The faces at another size, in Pillow's usual JPEG: colours at half the resolution."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jpg"):
        old.unlink()
    for number, face in enumerate(faces):
        with Image.open(io.BytesIO(face.image)) as image:
            small = image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        small.save(folder / f"{number:03d}.jpg", quality=QUALITY)
