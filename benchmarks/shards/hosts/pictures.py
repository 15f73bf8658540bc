"""Compares JPEG decoders, or functions that crop and resize images, on one core, and prints the results as JSON.

The command line is `python -m benchmarks.shards.hosts.pictures LINEUP FOLDER ROUNDS`. LINEUP is `decoders` or
`resizers`, and FOLDER has a folder of JPEG files for each size. Each of ROUNDS rounds times all decoders or resizers
one after another. Their pixels are compared with those of the first one. The first decoder is Pillow's. The first
resizer is Pillow's bicubic filter, which avoids aliasing: the smaller the output, the more pixels of the input it
averages.
"""
# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportUnknownLambdaType=false

import io
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image

import emocap_torchvision
from benchmarks.harness.rounds import complete, in_rounds

emocap_torchvision.install()
Item = TypeVar("Item")
Make = Callable[[Item], np.ndarray]
# The shortest time of a reading.
READING_S = 0.2


@dataclass(frozen=True, slots=True)
class Way(Generic[Item]):
    """One of the decoders, or of the functions that crop and resize images, which are compared with each other.

    Attributes:
        name: The name in the records.
        build: Returns the function that is timed. Raises an error if its package is missing.
        package: The distribution whose version is recorded.
    """

    name: str
    build: Callable[[], Make[Item]]
    package: str


def pillow() -> Make[bytes]:
    """Returns Pillow's decoder."""
    return lambda data: np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def simple_jpeg(**settings: bool) -> Make[bytes]:
    """Returns the decoder of simplejpeg."""
    import simplejpeg

    return partial(simplejpeg.decode_jpeg, **settings)


def py_turbo_jpeg() -> Make[bytes]:
    """Returns the decoder of PyTurboJPEG."""
    from turbojpeg import TJPF_RGB, TurboJPEG

    return partial(TurboJPEG().decode, pixel_format=TJPF_RGB)


def open_cv() -> Make[bytes]:
    """Returns OpenCV's decoder on one thread."""
    import cv2

    cv2.setNumThreads(1)
    return lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def torch_vision_io() -> Make[bytes]:
    """Returns torchvision's decoder."""
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(data: bytes) -> np.ndarray:
        pixels: Any = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        return np.ascontiguousarray(pixels.numpy().transpose(1, 2, 0))

    return decode


def torch_codec() -> Make[bytes]:
    """Returns the decoder of torchcodec."""
    from torchcodec.decoders import decode_image

    return lambda data: np.ascontiguousarray(decode_image(data).numpy().transpose(1, 2, 0))


def spdl() -> Make[bytes]:
    """Returns spdl's decoder."""
    import spdl.io

    def decode(data: bytes) -> np.ndarray:
        packets = spdl.io.demux_image(data)
        frames = spdl.io.decode_packets(packets, filter_desc=spdl.io.get_video_filter_desc(pix_fmt="rgb24"))
        return np.array(spdl.io.to_numpy(spdl.io.convert_frames(frames)))

    return decode


def files(folder: Path) -> list[bytes]:
    """Returns the JPEG files of a folder."""
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]


SIDE = 224
# An image, and the left, top, right and bottom of the square.
Crop = tuple[np.ndarray, tuple[int, int, int, int]]


def by_pillow(kind: Image.Resampling, reducing_gap: float | None = None) -> Make[Crop]:
    """Returns a function that crops and resizes with Pillow's filter `kind`.

    With `reducing_gap`, Pillow first reduces the image by an integer factor. The reduced image is at least
    `reducing_gap` times as large as the final one.
    """

    def resize(crop: Crop) -> np.ndarray:
        image, box = crop
        return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), kind, box=box, reducing_gap=reducing_gap))

    return resize


def by_open_cv(name: str) -> Make[Crop]:
    """Returns a function that crops and resizes with OpenCV's interpolation `name`, on one thread."""
    import cv2

    cv2.setNumThreads(1)

    def resize(crop: Crop) -> np.ndarray:
        image, (left, top, right, bottom) = crop
        return cv2.resize(image[top:bottom, left:right], (SIDE, SIDE), interpolation=getattr(cv2, name))

    return resize


def by_torchvision(crop: Crop) -> np.ndarray:
    """Crops and resizes with torchvision's bicubic filter."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as f

    image, (left, top, right, bottom) = crop
    picture = torch.from_numpy(image).permute(2, 0, 1)
    bicubic = InterpolationMode.BICUBIC
    small = f.resized_crop(picture, top, left, bottom - top, right - left, [SIDE, SIDE], bicubic, antialias=True)
    return small.permute(1, 2, 0).numpy()


def crops(folder: Path) -> list[Crop]:
    """Returns each image of a folder with a random square to crop, as in training.

    The side of the square is at least half the shorter side of the image.
    """
    found: list[Crop] = []
    for number, image in enumerate(map(pillow(), files(folder))):
        random = np.random.default_rng(number)
        height, width = image.shape[:2]
        side = round(min(height, width) * random.uniform(0.5, 1.0))
        left, top = (int(random.integers(0, extent - side + 1)) for extent in (width, height))
        found.append((image, (left, top, left + side, top + side)))
    return found


DECODERS: tuple[Way[bytes], ...] = (
    Way("Pillow", pillow, "pillow"),
    Way("simplejpeg", simple_jpeg, "simplejpeg"),
    # A less exact cosine transform, and colours that are repeated instead of interpolated.
    Way("simplejpeg, fast and coarse", partial(simple_jpeg, fastdct=True, fastupsample=True), "simplejpeg"),
    Way("PyTurboJPEG", py_turbo_jpeg, "PyTurboJPEG"),
    Way("OpenCV", open_cv, "opencv-python-headless"),
    Way("torchvision.io", torch_vision_io, "torchvision"),
    Way("torchcodec", torch_codec, "torchcodec"),
    Way("spdl", spdl, "spdl-io"),
)
RESIZERS: tuple[Way[Crop], ...] = (
    Way("Pillow, bicubic", partial(by_pillow, Image.Resampling.BICUBIC), "pillow"),
    Way("Pillow, bicubic, reducing gap", partial(by_pillow, Image.Resampling.BICUBIC, 2.0), "pillow"),
    Way("Pillow, bilinear", partial(by_pillow, Image.Resampling.BILINEAR), "pillow"),
    Way("OpenCV, area", partial(by_open_cv, "INTER_AREA"), "opencv-python-headless"),
    Way("OpenCV, cubic (aliases)", partial(by_open_cv, "INTER_CUBIC"), "opencv-python-headless"),
    Way("torchvision v2, bicubic", lambda: by_torchvision, "torchvision"),
)
LINEUPS: Mapping[str, tuple[Sequence[Way[Any]], Callable[[Path], list[Any]]]] = {
    "decoders": (DECODERS, files),
    "resizers": (RESIZERS, crops),
}


def main(lineup: str, folder: Path, rounds: int) -> None:
    """Prints JSON with the results of the group `lineup` ("decoders" or "resizers") at all image sizes."""
    torch.set_num_threads(1)
    ways, load = LINEUPS[lineup]
    answers: list[dict[str, Any]] = []
    for size in sorted(folder.iterdir(), key=lambda path: int(path.name)):
        answers += [{"pixels": int(size.name), **each} for each in _compared(ways, load(size), rounds)]
    sys.stdout.write(json.dumps(answers))


def _compared(ways: Sequence[Way[Item]], items: Sequence[Item], rounds: int) -> list[dict[str, Any]]:
    """Returns the results of each decoder or resizer in `ways` on the images `items`.

    All pixels are compared with those of the first one in `ways`.
    """
    right = [ways[0].build()(each) for each in items]
    found = {way.name: _probed(way, items, right) for way in ways}
    calls = {way.name: partial(_seconds_each, way.build(), items) for way in ways if found[way.name]["skipped"] is None}
    seconds = complete(in_rounds(calls, rounds=rounds))
    return [{"contender": name, "seconds": seconds.get(name, []), **each} for name, each in found.items()]


def _probed(way: Way[Item], items: Sequence[Item], right: Sequence[np.ndarray]) -> dict[str, Any]:
    """Returns the version of the package of a decoder or resizer (`way`), and the error of its pixels.

    `right` contains the correct pixels of each image in `items`. If `way` does not run, the reason is returned instead
    of the error.
    """
    found: dict[str, Any] = {"versions": {}, "skipped": None, "more": None}
    try:
        found["versions"] = {way.package: version(way.package)}
        make = way.build()
        apart = [np.abs(make(item).astype(int) - pixels) for item, pixels in zip(items, right, strict=True)]
    except Exception as error:  # noqa: BLE001 - a peer may raise any exception, and the record holds its message
        found["skipped"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
    else:
        found["more"] = {
            "greatest_difference": int(max(each.max() for each in apart)),
            "mean_difference": float(np.mean([each.mean() for each in apart])),
        }
    return found


def _seconds_each(make: Make[Item], items: Sequence[Item]) -> float:
    """Returns the mean seconds for one item.

    `make` processes all items repeatedly for at least READING_S seconds, and no result is kept.
    """
    make(items[0])
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < READING_S:
        for each in items:
            make(each)
        count += len(items)
    return (time.perf_counter() - begin) / count


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
