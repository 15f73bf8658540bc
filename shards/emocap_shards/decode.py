"""Decodes images into pixels, with limits on the work that a file may cause."""

import io
import struct

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from emocap_shards.errors import ImageError

# The errors that Pillow 13 raises on broken bytes. They have no common base class.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # raised where warnings are errors
)
FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
MAX_PIXELS = 1 << 26  # 8192 x 8192, 192 MiB decoded
# Encoders write about ten scans. Each scan goes through all pixels, and an empty one takes 100 bytes: decoding a file
# of 300 kB with 400 scans took two minutes.
MAX_SCANS = 64
HEIC = "a HEIC"
# Signatures of other formats: (first byte, signature, name). Files with these often have a name that ends in .jpg.
_OTHERS = (
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (4, b"ftypavi", "an AVIF"),
    (4, b"ftyphei", HEIC),
    (4, b"ftypmif1", f"{HEIC} or AVIF"),
    (4, b"ftyphev", HEIC),
    (4, b"jP  ", "a JPEG 2000"),
    (4, b"JXL ", "a JPEG XL"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%PDF", "a PDF"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x00\x00\x01\x00", "an icon"),
    (0, b"<svg", "an SVG"),
    (0, b"<?xml", "XML, perhaps an SVG"),
    (0, b"<!doctype", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"version https://git-lfs", "a Git LFS pointer"),
)
_CURES = {
    "a web page": "download it again",
    "a Git LFS pointer": "fetch the image with `git lfs pull`",
    HEIC: "convert it, as with `heif-convert FILE FILE.jpg`",
}

_JPEG, _SCAN = b"\xff\xd8\xff", b"\xff\xda"


def decode_image(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the upright image (EXIF orientation applied) in RGB with 8 bits; transparent pixels become white.

    16-bit values are reduced to their high byte. If a CMYK file has Adobe's marker, its values are inverted, because
    Adobe stores them so; otherwise they are read as the standard says. Colour profiles are not applied. If there are
    several frames, the first one is used.

    A complete JPEG in grey or YCbCr without EXIF is decoded by libjpeg-turbo, which returns the same pixels as Pillow
    in half the time. Pillow decodes all other images, and reports what is wrong with a broken one.

    Raises:
        ImageError: If the bytes are not a complete JPEG, PNG or WebP, if the image has more than `max_pixels` pixels,
            or if a JPEG has more than `MAX_SCANS` scans.
    """
    check_scans(data)
    if (pixels := _plain_jpeg(data, max_pixels)) is not None:
        return pixels
    try:
        with _opened(data, max_pixels) as image:
            return np.array(to_rgb(upright(image)))
    except UNREADABLE as error:
        raise _undecodable(error) from error


def check_scans(data: bytes | memoryview) -> None:
    """Checks that a JPEG has at most `MAX_SCANS` scans. Bytes that are not a JPEG pass.

    Raises:
        ImageError: If it has more.
    """
    # The two bytes may also occur in metadata, such as a thumbnail, so this is an upper bound of the scans. Image data
    # cannot contain them, because a JPEG writes FF as FF 00 there.
    if data[:3] == _JPEG and (scans := bytes(data).count(_SCAN)) > MAX_SCANS:
        raise ImageError(f"the JPEG has {scans} scans, more than {MAX_SCANS}: save it again")


def pillow_pixels(image: Image.Image, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the pixels of an image of Pillow, converted as `decode_image` converts them.

    Raises:
        ImageError: If the image has more than `max_pixels` pixels, or if Pillow cannot decode or convert it.
    """
    _check_size(image, max_pixels)
    try:
        return np.array(to_rgb(upright(image)))
    except UNREADABLE as error:
        raise _undecodable(error) from error


def image_header(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> tuple[str, int, int]:
    """Returns (format, width, height) from the header alone. The format is "JPEG", "PNG" or "WEBP".

    Width and height are in pixels of the stored image, before the EXIF orientation is applied.

    Raises:
        ImageError: If the bytes do not begin with a readable header of these formats, or if the image has more than
            `max_pixels` pixels.
    """
    try:
        with _opened(data, max_pixels) as image:
            # MPO is Pillow's name for a JPEG that contains a second one, as some phones write. The first one is used.
            found = "JPEG" if image.format == "MPO" else str(image.format)
            return found, image.width, image.height
    except UNREADABLE as error:
        raise ImageError(f"the image has no readable header ({error})") from error


def checked_header(data: bytes, extension: str) -> tuple[str, int, int]:
    """Returns the result of `image_header`, and checks that `extension`, from the file's name, fits the format.

    Raises:
        ImageError: If the header cannot be read, or if the extension is unknown or belongs to another format.
    """
    if extension not in FORMATS:
        raise ImageError(f"its extension {extension!r} is not one of {', '.join(FORMATS)}")
    header = image_header(data)
    if header[0] != FORMATS[extension]:
        raise ImageError(f"the image is {header[0]}, but its extension is {extension!r}")
    return header


def _plain_jpeg(data: bytes | memoryview, max_pixels: int) -> UInt8[np.ndarray, "height width 3"] | None:
    """Returns the pixels if the bytes are a complete JPEG in grey or YCbCr without EXIF; otherwise None.

    The result is also None if the JPEG has more than `max_pixels` pixels.
    """
    if data[:3] != _JPEG or _may_have_exif(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        # The header alone was read so far. An image with other colours or with too many pixels is left to Pillow, which
        # handles it or refuses it.
        if colours not in {"Gray", "YCbCr"} or int(height) * int(width) > max_pixels:
            return None
        return simplejpeg.decode_jpeg(data)
    except ValueError:  # Pillow will say what is wrong.
        return None


def _may_have_exif(data: bytes | memoryview) -> bool:
    """Returns whether there may be EXIF among the APPn and COM segments at the beginning of a JPEG.

    If this is uncertain, the result is True, and Pillow decodes the image.
    """
    # A segment is FF, its marker, and its length in two bytes that count themselves. E0 to EF are APPn, and FE is COM.
    place = 2
    while place + 4 <= len(data):
        marker = data[place + 1]
        if data[place] != 0xFF or marker == 0xFF or (marker == 0xE1 and data[place + 4 : place + 8] == b"Exif"):
            return True
        if not 0xE0 <= marker <= 0xEF and marker != 0xFE:
            return False
        place += 2 + (data[place + 2] << 8 | data[place + 3])
    return True


def upright(image: Image.Image) -> Image.Image:
    """Returns an image of Pillow turned by its EXIF orientation, if that can be read."""
    try:
        return ImageOps.exif_transpose(image)
    except UNREADABLE:  # The pixels are complete; only the orientation is unknown.
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns an image of Pillow in RGB; `decode_image` describes the result.

    Pillow's own conversion is wrong in three cases, which are handled here. It clips 16-bit values at 255. It shows
    the stored colour of a transparent pixel, although nobody was meant to see this colour; here such a pixel becomes
    white. It inverts the values of every CMYK image, although only images with Adobe's marker contain inverted values.

    Raises:
        ImageError: If the mode is not one in which Pillow decodes a JPEG, PNG or WebP.
    """
    if image.mode in {"I;16", "I"}:
        return _eight_bits(image).convert("RGB")
    if image.mode in {"RGBA", "LA"} or "transparency" in image.info:
        return _on_white(image.convert("RGBA"))
    if image.mode == "CMYK" and "adobe" not in image.info:
        return ImageChops.invert(image).convert("RGB")
    if image.mode not in {"1", "L", "P", "RGB", "CMYK"}:
        raise ImageError(f"the image has the mode {image.mode!r}, which is not known here; save it in RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Returns a 16-bit grey image as an 8-bit image.

    Each value is reduced to its high byte, as in 16-bit colour images. If the file marks a grey value as transparent,
    pixels with this value become white.
    """
    grey = np.asarray(image, dtype=np.uint16)
    high = (grey >> 8).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        high[grey == transparent] = 255
    return Image.fromarray(high)


def _on_white(image: Image.Image) -> Image.Image:
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _opened(data: bytes | memoryview, max_pixels: int) -> Image.Image:
    known = sorted(set(FORMATS.values()))
    try:
        image = Image.open(io.BytesIO(data), formats=known)
    except UnidentifiedImageError:  # Pillow's message contains only an address in memory.
        raise ImageError(_refusal(bytes(data[:64]))) from None
    # Pillow has read only the header so far, and decodes the pixels when they are used.
    _check_size(image, max_pixels)
    return image


def _check_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ImageError(f"the image is {image.width} x {image.height}, more than {max_pixels} pixels; make it smaller")


def _undecodable(error: Exception) -> ImageError:
    return ImageError(f"the image cannot be decoded ({error})")


def _refusal(head: bytes) -> str:
    """Returns the error message for bytes that are not an image of a supported format; `head` is their beginning."""
    if not head:
        return "the image is empty, a file of 0 bytes"
    known = "JPEG, PNG or WebP"
    if name := other_format(head):
        cure = _CURES.get(name, "convert it, as with `magick FILE FILE.png`")
        return f"the image is {name}, not {known}; {cure}"
    if head.startswith((_JPEG, b"\x89PNG", b"RIFF")):
        return "the image cannot be decoded: its header is broken"
    return f"the bytes are not a {known} image"


def other_format(head: bytes) -> str:
    """Returns the name of a format that training cannot read, such as "a TIFF", by its first bytes; otherwise ""."""
    start = head.lstrip().lower() if head.lstrip().startswith(b"<") else head
    return next((name for place, sign, name in _OTHERS if start[place:].startswith(sign)), "")
