"""Splits the bytes that one sample takes in a tar into its image and its annotation."""

import io
import tarfile
from dataclasses import dataclass

from emocap_shards.decode import FORMATS, image_header
from emocap_shards.errors import ImageError

_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class Members:
    """Holds the two files of a sample, and the key that their names contain."""

    key: str
    extension: str
    image: bytes
    annotation: bytes


def members(block: bytes) -> Members:
    """Returns the image and the annotation in `block`, which holds the bytes of one sample in a tar.

    Raises:
        ValueError: If the block is not one image and one annotation with the same key; the message says what was found.
    """
    files = _files(block)
    names = [name.rpartition("/")[2].partition(".") for name in files]
    if sorted(extension == "json" for _, _, extension in names) != [False, True]:
        raise ValueError(f"it is {_listed(list(files))}, not one image and one annotation")
    if len({key for key, _, _ in names}) != 1:
        raise ValueError(f"its members {_listed(list(files))} have different keys")
    annotation = next(data for name, data in files.items() if name.endswith(".json"))
    image_name, image = next((name, data) for name, data in files.items() if not name.endswith(".json"))
    key, _, extension = image_name.rpartition("/")[2].partition(".")
    return Members(key, extension, image, annotation)


def checked_header(image: bytes, extension: str) -> tuple[str, int, int]:
    """Returns (format, width, height) of the image.

    Raises:
        ImageError: If the header cannot be read, or shows another format than the extension.
    """
    kind, width, height = image_header(image)
    if FORMATS.get(extension) != kind:
        raise ImageError(f"the image is {kind}, but its extension is {extension!r}")
    return kind, width, height


def _files(block: bytes) -> dict[str, bytes]:
    try:
        with tarfile.open(fileobj=io.BytesIO(block), mode="r:") as tar:
            found = tar.getmembers()
            if any(not member.isreg() for member in found):
                raise ValueError("one of its members is not a regular file")
            if (end := _end(found)) != len(block):
                raise ValueError(f"its tar members end at byte {end} of {len(block)}")
            return {member.name: block[member.offset_data : member.offset_data + member.size] for member in found}
    except tarfile.TarError as error:
        raise ValueError(f"its tar header is damaged ({error})") from error


def _end(found: list[tarfile.TarInfo]) -> int:
    if not found:
        return 0
    return found[-1].offset_data + -(-found[-1].size // _BLOCK) * _BLOCK


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names)) or "empty"
