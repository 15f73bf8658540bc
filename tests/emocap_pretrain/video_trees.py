"""Writes tiny copies of benchmarks with videos, for the tests of their readers and frames."""

from pathlib import Path

import av
import numpy as np
from PIL import Image

CODECS = {".mp4": "libx264", ".avi": "mpeg4", ".webm": "libvpx-vp9", ".mkv": "libx264", ".flv": "flv"}


def a_video_file(path: Path, count: int = 4) -> Path:
    """Writes a video whose frame n is grey with the value 4 n, from 0 again after 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix], rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(count):
            grey = np.full((32, 32, 3), 4 * number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


def a_frame_folder(path: Path, names: list[str]) -> Path:
    """Writes the frames of a video as images. The grey value of each is its place in `names`."""
    path.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        Image.new("RGB", (8, 8), (place, place, place)).save(path / name)
    return path


def a_text(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path
