"""Turns a row into a sample: loads the files, decodes every pixel as a check, and encodes the image again if requested.

This code runs in worker processes, or in the calling process if there are none.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import PIL
from jaxtyping import UInt8
from PIL import Image

from emocap_shards.annotation import load_annotation, normal_annotation
from emocap_shards.decode import FORMATS, MAX_PIXELS, checked_header, decode_image
from emocap_shards.errors import AnnotationError, ImageError, RecordError
from emocap_shards.printable import short
from emocap_shards.sample import Caption
from emocap_shards.writing.conversion import CONVERTED, FIRST_FRAME, ImageLook, convert, look
from emocap_shards.writing.duplicates import fingerprint
from emocap_shards.writing.row import MAX_FILE_BYTES, BadRow, LocalFile, SourceRow

Extension = Literal["jpg", "png", "webp"]
EXTENSIONS: tuple[Extension, ...] = get_args(Extension)
MAX_KEY_BYTES = 80


@dataclass(frozen=True, slots=True)
class EncodingConfig:
    """Says how every image is encoded again: upright, in RGB, without metadata, and never with more pixels than before.

    Args:
        extension: The new format; None keeps each image's own format.
        quality: Quality of JPEG and WebP, 1 to 100.
        longest_px: Largest length of the longer side in pixels; None sets no limit.
        shortest_px: Largest length of the shorter side in pixels; None sets no limit.
    """

    extension: Extension | None = None
    quality: int = 92
    longest_px: int | None = None
    shortest_px: int | None = None

    def __post_init__(self) -> None:
        if self.extension not in {None, *EXTENSIONS}:
            raise RecordError(f"image format {self.extension!r} is not one of {', '.join(EXTENSIONS)}.")
        if not 1 <= self.quality <= 100:
            raise RecordError(f"quality={self.quality}; it must be 1 to 100.")
        if min(self.longest_px or 1, self.shortest_px or 1) < 1:
            raise RecordError(
                f"longest_px={self.longest_px}, shortest_px={self.shortest_px}: a side has 1 pixel or more."
            )

    def encode(self, pixels: UInt8[np.ndarray, "height width 3"], extension: str) -> tuple[bytes, str]:
        """Returns the encoded image and its new extension. `extension` is the extension that the image had before."""
        new = self.extension or ("jpg" if extension == "jpeg" else extension)
        image = Image.fromarray(pixels)
        size = self.size(image.width, image.height)
        small = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, FORMATS[new], **({} if new == "png" else {"quality": self.quality}))
        return file.getvalue(), new

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Returns the new width and height of an image, in pixels."""
        by_longest = (self.longest_px or max(width, height)) / max(width, height)
        by_shortest = (self.shortest_px or min(width, height)) / min(width, height)
        scale = min(1.0, by_longest, by_shortest)
        return max(1, round(width * scale)), max(1, round(height * scale))


@dataclass(frozen=True, slots=True)
class PrepareConfig:
    """Says how a row is turned into a sample.

    Args:
        encoding: Settings for encoding every image again; None keeps the bytes of the images.
        fingerprints: Whether to compute a fingerprint of each image before the image is encoded again. The fingerprints
            serve to find duplicates.
        trusted: Whether the samples come from a dataset and have passed its checksums. If so, only their annotations
            and the headers of their images are checked again.
        captions: Changes each caption, and gives equal captions for equal ones; None keeps the captions. Worker
            processes find this function by its module and name.
    """

    encoding: EncodingConfig | None = None
    fingerprints: bool = False
    trusted: bool = False
    captions: Callable[[Caption], Caption] | None = None

    def describe(self) -> dict[str, Any]:
        """Returns the settings that determine the bytes of a dataset, with Pillow's version if it encodes images."""
        # Another version of Pillow may encode the same pixels to other bytes.
        encoding = self.encoding and {**asdict(self.encoding), "pillow": PIL.__version__}
        settings: dict[str, Any] = {"encoding": encoding, "fingerprints": self.fingerprints}
        if self.captions:  # It is left out otherwise, because version 0.1.0 did not have it.
            settings["captions"] = f"{self.captions.__module__}.{self.captions.__qualname__}"
        return settings


@dataclass(frozen=True, slots=True)
class Prepared:
    """Holds a sample that is ready to be written into a shard. `mark` is the stamp of its row (`SourceRow.stamp`).

    `notes` says what of the image is not used, such as "the first of several frames". The pack counts equal notes.

    `has_caption` is false if the annotation has labels alone.
    """

    where: str
    key: str
    extension: str
    image: bytes
    annotation: bytes
    mark: bytes
    fingerprint: bytes = b""
    notes: tuple[str, ...] = ()
    has_caption: bool = True


def prepare(row: SourceRow | BadRow, recipe: PrepareConfig) -> Prepared | BadRow:
    """Returns the sample of a row, or a bad row with the reason why no sample can be made from it."""
    mark = row.stamp()
    if isinstance(row, BadRow):
        return replace(row, mark=mark)
    try:
        return _prepare(row, recipe, mark)
    except (RecordError, AnnotationError, ImageError) as error:
        return BadRow(row.where, str(error), mark, file=row.image.name if isinstance(row.image, LocalFile) else "")


def prepare_all(rows: list[SourceRow | BadRow], recipe: PrepareConfig) -> list[Prepared | BadRow]:
    """Prepares several rows. A worker process of `workers.prepared` calls this function."""
    with warnings.catch_warnings():
        # Pillow warns about images with too many pixels, which `decode_image` refuses anyway.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return [prepare(row, recipe) for row in rows]


def check_key(key: str) -> None:
    """Checks that `key` may be the key of a sample.

    Raises:
        RecordError: If the key is empty, too long, or contains a character that is not printable or has a meaning in a
            path or a tar.
    """
    if not key or not key.isprintable() or set(key) & set("./\\") or len(key.encode()) > MAX_KEY_BYTES:
        rule = f"1 to {MAX_KEY_BYTES} bytes of printable text without dot, slash and backslash"
        raise RecordError(f"{short(key)} is an unusable key; a key has {rule} (--number-keys makes such keys)")


def _prepare(row: SourceRow, recipe: PrepareConfig, mark: bytes) -> Prepared:
    check_key(row.key)
    annotation = _annotation(row.annotation) if isinstance(row.annotation, LocalFile) else row.annotation
    image = row.image.read() if isinstance(row.image, LocalFile) else row.image
    if len(image) > MAX_FILE_BYTES:
        raise RecordError(f"the image has {len(image)} bytes; the limit is {MAX_FILE_BYTES}")
    if recipe.trusted:
        # The checksum has shown that the bytes are those that were packed, so no pixel is decoded again.
        checked_header(image, row.extension)
        captions, _ = load_annotation(annotation)
        return Prepared(row.where, row.key, row.extension, image, annotation, mark, has_caption=bool(captions))
    annotation = normal_annotation(annotation, recipe.captions)
    captions, _ = load_annotation(annotation)
    seen = look(image)
    # A truncated image has an intact header, and would fail only in training.
    pixels = _pixels(image, seen, recipe.encoding)
    extension = _extension(seen, row.extension)
    print_ = fingerprint(image, pixels) if recipe.fingerprints else b""
    if recipe.encoding:
        image, extension = recipe.encoding.encode(pixels, extension)
    notes = (FIRST_FRAME,) if seen.has_frames else ()
    return Prepared(row.where, row.key, extension, image, annotation, mark, print_, notes, has_caption=bool(captions))


def _annotation(file: LocalFile) -> bytes:
    """Reads the annotation of an image.

    Raises:
        RecordError: If the file cannot be read. If it is missing, the message also says what to do with folders of
            classes, and with captions in other places.
    """
    try:
        return file.read()
    except RecordError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise RecordError(
            f"{file.path} is missing, the annotation of the image; if its folder has the name of its class, give "
            "the name of that label (--label emotion); for captions in another place, "
            "write a table with the columns image and global, and pack that"
        ) from error


def _pixels(image: bytes, seen: ImageLook, encoding: EncodingConfig | None) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the pixels of an image, which is converted or made smaller if the encoding allows it.

    Raises:
        ImageError: If the image is broken, or if it could only be packed with another encoding. Then the message names
            the option to use.
    """
    if seen.is_foreign and (encoding is None or encoding.extension is None):
        ours = "JPEG, PNG or WebP"
        raise ImageError(
            f"the image is {CONVERTED[seen.format]}, not {ours}; convert it with --format jpg (or png, webp)"
        )
    if seen.is_large and encoding is None:
        raise ImageError(
            f"the image is {seen.width} x {seen.height}, more than {MAX_PIXELS} pixels; make it smaller with "
            "--longest-px, such as --longest-px 2048"
        )
    if encoding is None or not (seen.is_foreign or seen.is_large):
        return decode_image(image)
    return convert(image, encoding.size)


def _extension(seen: ImageLook, hint: str) -> str:
    """Returns the extension for the image's format: `hint` if it fits the format, and otherwise the usual extension."""
    if FORMATS.get(hint) == seen.format:
        return hint
    # An image of another format gets the extension of its encoding.
    return next((extension for extension, format_ in FORMATS.items() if format_ == seen.format), "")
