"""Reads images from files, arrays or Pillow, and crops them to the squares that the image tower reads.

An image is a file, an array or an image of Pillow. Files are decoded as training decodes them (`emocap_shards.decode`),
and every image is cropped as an evaluation crops it (`Embedder.square`).
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
from emocap_shards.background import in_order
from emocap_shards.decode import decode_image, pillow_pixels
from emocap_shards.errors import ImageError, RecordError
from emocap_shards.local_files import open_regular
from jaxtyping import UInt8
from PIL import Image

from emocap_pretrain.errors import DataError
from emocap_pretrain.inference.embedder import Crop, Embedder

ImageSource: TypeAlias = str | os.PathLike[str] | np.ndarray[Any, Any] | Image.Image
"""A path, an array of 8-bit values [height, width, 3] (RGB) or [height, width] (grey), or an image of Pillow."""

# The decoder limits the number of pixels (`MAX_PIXELS`). Even an uncompressed file with that many pixels is smaller.
LARGEST_FILE_BYTES = 1 << 28
UNREADABLE = (DataError, ImageError, RecordError, OSError, ValueError)
"""The errors that an unreadable image or video may cause. A path with a zero byte is a ValueError."""
READERS = 8  # Threads that read and decode files. The decoders release Python's global interpreter lock.


def crops(
    images: Iterable[ImageSource],
    embedder: Embedder,
    *,
    ahead: int = 1,
    skip: Callable[[int, DataError], object] | None = None,
) -> Iterator[tuple[int, Crop]]:
    """Yields the crop of each image, with the index of the image in `images`, counted from 0.

    Threads read and decode files in advance. Arrays and images of Pillow are cropped in the calling thread, as soon as
    they are taken from `images`. So `images` may write one image after another into the same array.

    Args:
        images: The images. They are taken in the calling thread.
        embedder: The model, which decides the size of the crops and the part of each image.
        ahead: Number of images that are taken before their crops are requested.
        skip: Called with the index of an image that cannot be read, and with the error. The image is then left out.
            If `skip` is None, the error is raised.

    Raises:
        DataError: If an image cannot be read and `skip` is None. The message has the path of the file, or the index
            of the image.
    """

    def taken() -> Iterator[tuple[int, ImageSource | Crop | DataError]]:
        for number, image in enumerate(images):
            yield number, image if _is_file(image) else _cropped(number, image, embedder)

    def read(item: tuple[int, Any]) -> tuple[int, Crop | DataError]:
        number, image = item
        return number, _cropped(number, image, embedder) if _is_file(image) else image

    with ThreadPoolExecutor(READERS, "emocap-read") as pool:
        for number, found in in_order(pool, read, taken(), ahead=ahead):
            if not isinstance(found, DataError):
                yield number, found
            elif skip is None:
                raise found
            else:
                skip(number, found)


def _cropped(number: int, image: ImageSource, embedder: Embedder) -> Crop | DataError:
    try:
        return embedder.square(pixels_of(image))
    except UNREADABLE as error:
        failure = DataError(f"{_name(image, number)}: {reason(error)}.")
        failure.__cause__ = error
        return failure


def _is_file(image: object) -> TypeGuard["str | os.PathLike[str]"]:
    return isinstance(image, str | os.PathLike)


def pixels_of(image: ImageSource) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the upright pixels of an image in RGB with 8 bits.

    Raises:
        ImageError: If the image cannot be decoded, has another type or shape than `ImageSource` allows, or is a file of
            more than `LARGEST_FILE_BYTES` bytes.
        OSError: If the file cannot be read.
        ValueError: If the path contains a zero byte.
    """
    if _is_file(image):
        return decode_image(_bytes(Path(image)))
    if isinstance(image, Image.Image):
        return pillow_pixels(image)
    if isinstance(image, np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance] - users may pass anything
        return _colours(image)
    raise ImageError(f"an image must be a path, a numpy array or an image of Pillow, not {type(image).__name__}")


def _bytes(path: Path) -> bytes:
    with open(open_regular(path), "rb") as file:  # noqa: PTH123 - a descriptor
        data = file.read(LARGEST_FILE_BYTES + 1)
    if len(data) > LARGEST_FILE_BYTES:
        raise ImageError(f"the file has more than {LARGEST_FILE_BYTES >> 20} MiB")
    return data


def _colours(array: "np.ndarray[Any, Any]") -> UInt8[np.ndarray, "height width 3"]:
    is_grey = array.ndim == 2
    if array.dtype != np.uint8 or not (is_grey or (array.ndim == 3 and array.shape[2] == 3)) or 0 in array.shape:
        raise ImageError(
            f"the array is {array.dtype} of shape {list(array.shape)}: give uint8 values of shape [height, width, 3] "
            "or [height, width]"
        )
    # torch refuses an array with a negative stride, such as BGR values that were reversed to RGB.
    return np.repeat(array[:, :, None], 3, axis=2) if is_grey else np.ascontiguousarray(array)


def _name(image: ImageSource, number: int) -> str:
    return os.fspath(image) if _is_file(image) else f"image {number}"


def reason(error: Exception) -> str:
    """Returns why an image or video cannot be read, without its path, which the message of an `OSError` contains."""
    said = error.strerror if isinstance(error, OSError) else None
    return said or str(error)
