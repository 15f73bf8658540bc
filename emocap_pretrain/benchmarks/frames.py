"""Reads the pixels of an item: one picture of an image, and one frame of each segment of a video.

A video is divided into segments of equal length, and the middle frame of each segment is read. This is the
protocol of Exp-CLIP (`data_loader/video_dataloader.py` of zengqunzhao/Exp-CLIP at 411b9b4), with which the published
scores on videos were computed. Only one frame is in memory at a time, whether the video is a file or a folder.
"""

import io
import struct
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from emocap_shards.decode import decode_image, pillow_pixels
from emocap_shards.errors import ImageError
from emocap_shards.local_files import open_regular
from jaxtyping import UInt8
from PIL import Image

from emocap_pretrain.benchmarks.item import CroppedImage, FrameFiles, Media, VideoFile
from emocap_pretrain.data import videos
from emocap_pretrain.errors import DataError

SEGMENTS = 16
# The decoder limits the number of pixels. Even an uncompressed file with that many pixels is smaller.
LARGEST_FILE_BYTES = 1 << 28
_TIFF, _BMP = (b"II*\0", b"MM\0*"), b"BM"
# The errors that Pillow raises on broken headers. They have no common base class.
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, struct.error)


def middles(count: int, segments: int = SEGMENTS) -> tuple[int, ...]:
    """Returns the number of the middle frame of each segment, counted from 0.

    A video that has no more frames than segments is not divided: its first frame is returned for each segment. This
    follows the protocol, although the other frames could be used.

    Args:
        count: Number of frames of the video, at least 1.
        segments: Number of segments.
    """
    if count <= segments:
        return (0,) * segments
    # The middle of segment k is at count * (k + 1/2) / segments, rounded down. Whole numbers keep it exact.
    return tuple(count * (2 * segment + 1) // (2 * segments) for segment in range(segments))


def pictures(media: Media, segments: int = SEGMENTS) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """Yields the picture of an image, or `segments` frames of a video in the order of time, in RGB.

    Raises:
        DataError: If the image or a frame cannot be decoded, if the video has no frames or is damaged, or if a
            rectangle lies out of its image. The message names the file.
    """
    match media:
        case VideoFile(path):
            yield from _of_file(path, segments)
        case FrameFiles(paths):
            yield from _of_files(paths, segments)
        case CroppedImage():
            yield _crop(media)
        case Path():
            yield _image(media)
        case _:
            yield np.repeat(media[:, :, None], 3, axis=2)


def _of_file(path: Path, segments: int) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    try:
        chosen = middles(videos.count(path), segments)
        for frame in videos.numbered(path, chosen):
            for _ in range(chosen.count(frame.number)):
                yield frame.pixels
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _of_files(paths: tuple[Path, ...], segments: int) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    if not paths:
        raise DataError("the folder of a video has no frames.")
    for number, group in groupby(middles(len(paths), segments)):
        pixels = _image(paths[number])
        for _ in group:
            yield pixels


def _crop(crop: CroppedImage) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the part of the rectangle that lies in the image. Rectangles of detectors often exceed the image.

    Raises:
        DataError: If the rectangle and the image have no pixel in common, or the image cannot be read.
    """
    pixels = _image(crop.path)
    height, width = pixels.shape[:2]
    rows, columns = slice(max(crop.top, 0), min(crop.bottom, height)), slice(max(crop.left, 0), min(crop.right, width))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        raise DataError(
            f"{crop.path}: the rectangle ({crop.left}, {crop.top}, {crop.right}, {crop.bottom}) has no pixels of the "
            f"image, which is {width} x {height}."
        )
    return pixels[rows, columns]


def _image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    try:
        with open(open_regular(path), "rb") as file:  # noqa: PTH123 - a descriptor
            data = file.read(LARGEST_FILE_BYTES + 1)
        if len(data) > LARGEST_FILE_BYTES:
            raise DataError(f"{path}: the image has more than {LARGEST_FILE_BYTES >> 20} MiB.")
        return _of_old_format(data) if data[:4] in _TIFF or data[:2] == _BMP else decode_image(data)
    except ImageError as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _of_old_format(data: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes a TIFF or BMP, the formats of some old benchmarks and of some face trackers.

    Raises:
        ImageError: If the image cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("TIFF", "BMP")) as image:
            return pillow_pixels(image)
    except _BROKEN as error:
        raise ImageError(f"the image cannot be decoded ({error})") from error
