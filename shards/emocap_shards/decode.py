"""Encoded image bytes -> pixels, with bounds on what is decoded."""

import io
import struct

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from emocap_shards.errors import ImageError

# What Pillow raises on broken bytes; it has no common root.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # where warnings are errors
)
FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
MAX_PIXELS = 1 << 26  # 8192 x 8192, 192 MiB decoded


_JPEG = b"\xff\xd8\xff"


def decode_image(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "height width 3"]:
    """The upright image (EXIF orientation applied) in RGB; transparency is dropped.

    A plain JPEG goes straight to libjpeg-turbo, which gives Pillow's pixels in half the time; all that is less plain,
    and all that is broken, goes to Pillow.

    Raises:
        ImageError: If the bytes are no whole JPEG, PNG or WebP, or the image has more than `max_pixels` pixels.
    """
    if (pixels := _plain_jpeg(data, max_pixels)) is not None:
        return pixels
    try:
        with _opened(data, max_pixels) as image:
            return np.array(_rgb(_upright(image)))
    except _BROKEN as error:
        raise ImageError(f"the image cannot be decoded ({error})") from error


def image_header(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> tuple[str, int, int]:
    """("JPEG", "PNG" or "WEBP", width, height) from the header alone; pixels as stored.

    Raises:
        ImageError: As `decode_image`, as far as the header tells.
    """
    try:
        with _opened(data, max_pixels) as image:
            return str(image.format), image.width, image.height
    except _BROKEN as error:
        raise ImageError(f"the image has no readable header ({error})") from error


def _plain_jpeg(data: bytes | memoryview, max_pixels: int) -> UInt8[np.ndarray, "height width 3"] | None:
    """The pixels of a whole JPEG in grey or YCbCr without EXIF; None for anything else."""
    if data[:3] != _JPEG or _may_have_exif(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in {"Gray", "YCbCr"} or int(height) * int(width) > max_pixels:
            return None
        return simplejpeg.decode_jpeg(data)
    except ValueError:  # Pillow says what is wrong.
        return None


def _may_have_exif(data: bytes | memoryview) -> bool:
    """Whether EXIF stands among the APPn and COM segments that a JPEG begins with."""
    place = 2
    while place + 4 <= len(data):
        marker = data[place + 1]
        if data[place] != 0xFF or marker == 0xFF or (marker == 0xE1 and data[place + 4 : place + 8] == b"Exif"):
            return True
        if not 0xE0 <= marker <= 0xEF and marker != 0xFE:
            return False
        place += 2 + (data[place + 2] << 8 | data[place + 3])
    return True


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:  # an unreadable EXIF block tells no orientation, and the pixels are whole
        return image


def _rgb(image: Image.Image) -> Image.Image:
    """By way of RGBA where a palette holds transparency, which Pillow warns about otherwise."""
    through = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
    return through.convert("RGB")


def _opened(data: bytes | memoryview, max_pixels: int) -> Image.Image:
    known = sorted(set(FORMATS.values()))
    try:
        image = Image.open(io.BytesIO(data), formats=known)
    except UnidentifiedImageError:  # Pillow names an address in memory.
        raise ImageError(f"the bytes are no {', '.join(known[:-1])} or {known[-1]} image") from None
    if image.width * image.height > max_pixels:
        raise ImageError(f"the image is {image.width} x {image.height}, more than {max_pixels} pixels")
    return image
