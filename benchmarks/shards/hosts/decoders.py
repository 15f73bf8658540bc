"""Measures JPEG decoders: `... decoders FOLDER ROUNDS` prints JSON. FOLDER has a folder of JPEG files for each size."""
# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportUnusedImport=false
# pyright: reportUnknownLambdaType=false

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import torch_vision  # noqa: F401 - before torchvision
from .lineup import Way, answer

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
        pixels: Any = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
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


WAYS: tuple[Way[bytes], ...] = (
    Way("Pillow", pillow, "pillow"),
    Way("simplejpeg", simple_jpeg, "simplejpeg"),
    Way("simplejpeg, fast and coarse", simple_jpeg_fast, "simplejpeg"),
    Way("PyTurboJPEG", py_turbo_jpeg, "PyTurboJPEG"),
    Way("OpenCV", open_cv, "opencv-python-headless"),
    Way("torchvision.io", torch_vision_io, "torchvision"),
    Way("torchcodec", torch_codec, "torchcodec"),
    Way("spdl", spdl, "spdl-io"),
)


def files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]


if __name__ == "__main__":
    answer(WAYS, files)
