"""Decodes images that a pack makes smaller or writes in another format.

A dataset holds JPEG, PNG and WebP images of at most `MAX_PIXELS` pixels, because `decode_image` reads no others in
training. A pack that encodes its images again can take more: images of other formats, and larger ones if they become
small enough.

HEIC, the format of many phones, needs the library pillow-heif (the extra `heic`). It is no requirement, because its
wheels contain an encoder under the GPL, which is not used here.
"""

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from emocap_shards.decode import (
    FORMATS,
    HEIC,
    MAX_PIXELS,
    UNREADABLE,
    check_scans,
    image_header,
    other_format,
    to_rgb,
    upright,
)
from emocap_shards.errors import ImageError

CONVERTED = {
    "AVIF": "an AVIF",
    "BMP": "a BMP",
    "GIF": "a GIF",
    "HEIF": HEIC,
    "JPEG2000": "a JPEG 2000",
    "PPM": "a PPM",
    "TIFF": "a TIFF",
}
"""Pillow's names of the formats that a pack can convert, and how messages name them."""
# pillow-heif passes on errors of libheif as RuntimeError.
_UNREADABLE = (*UNREADABLE, RuntimeError)
# Pillow keeps 4 bytes for each pixel of an RGB image, so this is 512 MiB. It is below the number of pixels from which
# Pillow itself refuses an image.
MAX_SHRUNK_PIXELS = 1 << 27
FIRST_FRAME = "the first of several frames"
_STRIP_PIXELS = 1 << 22
_BITS, _SAMPLE_FORMAT, _PHOTOMETRIC = 258, 339, 262  # Tags of TIFF.
_KIND, _DNG_VERSION = 254, 50706
_UNSIGNED, _WHITE_IS_ZERO, _PREVIEW = 1, 0, 1

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ImageLook:
    """Describes an image, as read from its header.

    Attributes:
        format: Pillow's name of the format, such as "JPEG" or "TIFF".
        width: Width of the stored image in pixels, before the EXIF orientation is applied.
        height: Its height in pixels.
        has_frames: Whether the file holds several frames or pages, of which only the first is used.
    """

    format: str
    width: int
    height: int
    has_frames: bool

    @property
    def is_foreign(self) -> bool:
        """Returns whether training cannot read the format, so that the image has to be converted."""
        return self.format in CONVERTED

    @property
    def is_large(self) -> bool:
        """Returns whether the image has more pixels than a dataset may hold, so that it has to be made smaller."""
        return self.width * self.height > MAX_PIXELS


def look(data: bytes) -> ImageLook:
    """Returns what the header of an image says.

    Raises:
        ImageError: If the bytes do not begin with the header of an image that a pack can take, or if the image has more
            than `MAX_SHRUNK_PIXELS` pixels.
    """
    try:
        with _opened(data) as image:
            if image.width * image.height > MAX_SHRUNK_PIXELS:
                raise ImageError(
                    f"the image is {image.width} x {image.height}, more than {MAX_SHRUNK_PIXELS} pixels; make it "
                    "smaller with another program"
                )
            # MPO is Pillow's name for a JPEG with a second picture, such as a map of depths, which is not a frame.
            if image.format == "MPO":
                return ImageLook("JPEG", image.width, image.height, has_frames=False)
            if image.format == "TIFF" and _is_raw(data, image):
                raise ImageError(
                    "the image is a raw photograph of a camera, of which only a preview could be read; write it as a "
                    "JPEG with the program that develops it"
                )
            has_frames = bool(getattr(image, "is_animated", False))
            return ImageLook(str(image.format), image.width, image.height, has_frames)
    except UnidentifiedImageError as error:
        name = other_format(data[:64])
        if HEIC in name and not _reads_heic():
            raise ImageError(
                f"the image is {name}, not JPEG, PNG or WebP; --format jpg (or png, webp) converts it after "
                "pip install 'emocap-pretrain[heic]'"
            ) from error
        if name in CONVERTED.values():
            raise ImageError(f"the image is {name} that cannot be decoded: its header is broken") from error
        image_header(data)  # It raises an error that names the format, if it knows one.
        raise ImageError("the bytes are not an image") from error
    except _UNREADABLE as error:
        raise ImageError(f"the image has no readable header ({error})") from error


def _is_raw(data: bytes, image: Image.Image) -> bool:
    """Returns whether a TIFF is a raw photograph (ARW, CR2, DNG, NEF). The first image in such a file is a preview."""
    tags = getattr(image, "tag_v2", {})
    return bool(int(tags.get(_KIND, 0)) & _PREVIEW) or _DNG_VERSION in tags or data[8:10] == b"CR"


def convert(data: bytes, new_size: Callable[[int, int], Size]) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the upright RGB image with 8 bits. An image with more than `MAX_PIXELS` pixels is made smaller.

    The rules are those of `decode_image`. In addition, grey values of 12, 16 or 32 bits are reduced to their 8 highest
    bits, and CIE L*a*b* is converted to sRGB. If the file holds several frames, the first one is used.

    A large JPEG is decoded at a half, a quarter or an eighth of its size. Other large images are decoded completely,
    and converted and averaged in strips, so that at most one copy of all pixels is in memory.

    Args:
        data: An encoded image; `look` accepts it.
        new_size: Gets the width and height of an upright image, and returns those that the caller will give it. The
            result of `convert` has at least this size, and usually two or more times this width and height.

    Raises:
        ImageError: If the image is broken, if its new size has more than `MAX_PIXELS` pixels, or if its values have no
            known range, such as floating-point numbers.
    """
    try:
        with _opened(data) as image:
            if image.width * image.height <= MAX_PIXELS:
                image.load()
                return np.array(_rgb(upright(image), of=image))
            return np.array(_shrunk(data, image, new_size))
    except _UNREADABLE as error:
        raise ImageError(f"the image cannot be decoded ({error})") from error


def _opened(data: bytes) -> Image.Image:
    others = [name for name in CONVERTED if name != "HEIF" or _reads_heic()]
    return Image.open(io.BytesIO(data), formats=[*sorted(set(FORMATS.values())), *others])


@functools.cache
def _reads_heic() -> bool:
    """Returns whether pillow-heif is installed. If it is, Pillow then knows the format HEIF in this process."""
    if find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    # Of a file, only its primary image is used. The processes of a pack already use all cores.
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return True


def _shrunk(data: bytes, image: Image.Image, new_size: Callable[[int, int], Size]) -> Image.Image:
    orientation = _orientation(image)
    is_turned = orientation in {5, 6, 7, 8}
    size = (image.height, image.width) if is_turned else image.size
    wanted = new_size(*size)
    if wanted[0] * wanted[1] > MAX_PIXELS:
        raise ImageError(
            f"the image is {size[0]} x {size[1]}, more than {MAX_PIXELS} pixels; make it smaller with "
            "--longest-px, such as --longest-px 2048"
        )
    stored = (wanted[1], wanted[0]) if is_turned else wanted
    if image.format in {"JPEG", "MPO"}:
        check_scans(data)
        # The result of `draft` is at least as large as what it is asked for.
        image.draft(None, (2 * stored[0], 2 * stored[1]))
    image.load()
    factor = max(1, min(image.width // (2 * stored[0]), image.height // (2 * stored[1])))
    small = _in_strips(image, factor)
    small.getexif()[ExifTags.Base.Orientation] = orientation
    return upright(small)


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation of an image that is not loaded yet, if its size is that before it is turned."""
    # Pillow turns a TIFF itself when it loads it, and gives the size of the result before.
    if image.format == "TIFF":
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _UNREADABLE:
        return 1


def _in_strips(image: Image.Image, factor: int) -> Image.Image:
    """Returns the RGB image, in which each pixel is the mean of `factor` x `factor` pixels of `image`."""
    rows = max(1, _STRIP_PIXELS // (image.width * factor)) * factor
    whole = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        whole.paste(_rgb(strip, of=image).reduce(factor), (0, top // factor))
    return whole


def _rgb(image: Image.Image, *, of: Image.Image | None = None) -> Image.Image:
    """Returns the image in RGB. `of` is the image of a file from which `image` was cut, if that is another one."""
    of = image if of is None else of
    tags = getattr(of, "tag_v2", {})
    # Only TIFF has such values, and Pillow reads them as if they were positive.
    if any(each != _UNSIGNED for each in _tuple(tags.get(_SAMPLE_FORMAT, 1))) or image.mode == "F":
        raise ImageError("the image has negative or floating-point values, whose range is not known; save it in 8 bits")
    if of.format in CONVERTED and (image.mode == "I" or image.mode.startswith("I;")):
        return _grey(image, _tuple(tags.get(_BITS, 16))[0], inverted=tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)
    if image.mode == "LAB":
        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        return ImageCms.applyTransform(image, transform) or image
    if image.mode in {"YCbCr", "RGBX"} or (image.mode == "CMYK" and of.format not in {"JPEG", "MPO"}):
        return image.convert("RGB")
    if image.mode in {"La", "PA"}:
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    elif image.mode == "RGBa":
        image = image.convert("RGBA")
    # Programs that write a BMP with 32 bits for each pixel often leave the byte of the alpha at 0.
    if of.format == "BMP" and image.mode == "RGBA" and of.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")
    return to_rgb(image)


def _grey(image: Image.Image, bits: int, *, inverted: bool) -> Image.Image:
    """Returns a grey image of more than 8 bits as an RGB image of the 8 highest bits."""
    values = np.asarray(image)
    # Pillow stores unsigned numbers of 32 bits as signed ones.
    values = values.view(np.uint32) if values.dtype == np.int32 else values.astype(np.uint32)
    high = (values >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(255 - high if inverted else high).convert("RGB")


def _tuple(value: object) -> tuple[int, ...]:
    """Returns the values of a tag of TIFF, which is a number or several numbers."""
    return tuple(value) if isinstance(value, tuple) else (int(str(value)),)
