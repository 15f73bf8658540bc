"""JPEG decoders side by side, one thread each: `... decoders FOLDER ROUNDS` prints JSON.

FOLDER holds a folder of JPEG files for each size.
"""
# pyright: reportMissingImports=false, reportMissingTypeStubs=false

import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import torch_vision  # noqa: F401 - before torchvision

Decode = Callable[[bytes], np.ndarray]


def pillow() -> Decode:
    return lambda data: np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def simple_jpeg() -> Decode:
    import simplejpeg

    return simplejpeg.decode_jpeg


def simple_jpeg_fast() -> Decode:
    """A coarser cosine transform, and colours of a pixel for its neighbours."""
    import simplejpeg

    return lambda data: simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=True)


def py_turbo_jpeg() -> Decode:
    from turbojpeg import TJPF_RGB, TurboJPEG

    turbo = TurboJPEG()
    return lambda data: turbo.decode(data, pixel_format=TJPF_RGB)


def open_cv() -> Decode:
    import cv2

    cv2.setNumThreads(1)
    return lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def torch_vision_io() -> Decode:
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(data: bytes) -> np.ndarray:
        pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        return np.ascontiguousarray(pixels.numpy().transpose(1, 2, 0))

    return decode


def torch_codec() -> Decode:
    from torchcodec.decoders import decode_image

    return lambda data: np.ascontiguousarray(decode_image(data).numpy().transpose(1, 2, 0))


def spdl() -> Decode:
    import spdl.io

    def decode(data: bytes) -> np.ndarray:
        packets = spdl.io.demux_image(data)
        frames = spdl.io.decode_packets(packets, filter_desc=spdl.io.get_video_filter_desc(pix_fmt="rgb24"))
        return np.array(spdl.io.to_numpy(spdl.io.convert_frames(frames)))

    return decode


CONTENDERS: dict[str, tuple[Callable[[], Decode], str]] = {
    "Pillow": (pillow, "pillow"),
    "simplejpeg": (simple_jpeg, "simplejpeg"),
    "simplejpeg, fast and coarse": (simple_jpeg_fast, "simplejpeg"),
    "PyTurboJPEG": (py_turbo_jpeg, "PyTurboJPEG"),
    "OpenCV": (open_cv, "opencv-python-headless"),
    "torchvision.io": (torch_vision_io, "torchvision"),
    "torchcodec": (torch_codec, "torchcodec"),
    "spdl": (spdl, "spdl-io"),
}


def main() -> None:
    torch.set_num_threads(1)
    folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
    answers = [each for size in sorted(folder.iterdir(), key=lambda path: int(path.name)) for each in of_size(size, rounds)]
    sys.stdout.write(json.dumps(answers))


def of_size(folder: Path, rounds: int) -> list[dict[str, Any]]:
    data = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    truth = list(map(pillow(), data))
    found = [{"contender": name, "pixels": int(folder.name)} | probe(name, data, truth) for name in CONTENDERS]
    working = [each for each in found if "skipped" not in each]
    for number in range(rounds):
        first = number % len(working)
        for each in working[first:] + working[:first]:
            each.setdefault("seconds", []).append(seconds_each(CONTENDERS[each["contender"]][0](), data))
    return found


def probe(name: str, data: Sequence[bytes], truth: Sequence[np.ndarray]) -> dict[str, Any]:
    """Versions and differences to Pillow's pixels, or why it cannot take part."""
    make, package = CONTENDERS[name]
    try:
        decode = make()
        apart = [np.abs(decode(each).astype(int) - pixels) for each, pixels in zip(data, truth, strict=True)]
        versions = {package: version(package)}
    except Exception as error:  # noqa: BLE001 - a peer may raise anything; the record says what
        text = str(error).strip()
        return {"skipped": f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"[:160], "versions": {}}
    mean = float(np.mean([each.mean() for each in apart]))
    return {"greatest_difference": int(max(each.max() for each in apart)), "mean_difference": mean, "versions": versions}


def seconds_each(decode: Decode, data: Sequence[bytes]) -> float:
    """One after another, none kept; at least 0.2 s of them."""
    decode(data[0])
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.2:
        for each in data:
            decode(each)
        count += len(data)
    return (time.perf_counter() - begin) / count


if __name__ == "__main__":
    main()
