"""Reads a folder of images, each with an annotation of the same name and the suffix .json."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from emocap_shards.decode import FORMATS
from emocap_shards.errors import RecordError
from emocap_shards.writing.row import BadRow, LocalFile, SourceRow, key_of
from emocap_shards.writing.row_source import leave_out

ORDER = "order.txt"
# Extensions of other images. Such a file is a row, because the user may expect it to be a sample. `prepare` converts it
# or says why it cannot be taken.
OTHER_IMAGES = frozenset(
    {
        *("arw", "avif", "bmp", "cr2", "dib", "dng", "gif", "heic", "heif", "ico", "j2k", "jfif", "jp2", "jpe", "jxl"),
        *("nef", "pbm", "pgm", "pnm", "ppm", "psd", "svg", "tga", "tif", "tiff"),
    }
)
MACOS = "._"  # macOS adds a file with this prefix to each file in an archive or on a foreign file system.


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Provides every image below a folder, sorted by path. If a file `order.txt` lists paths, these come first.

    An image in a format that training cannot read is a row too: whether it can be converted depends on the options of
    the pack. Two things are reported as bad rows, which cannot be packed: a link to a folder (links are not followed)
    and an annotation without an image. Other files are counted in `left_out`, so that no file is left out without a
    notice.
    """

    folder: Path
    left_out: Counter[str] = field(default_factory=Counter[str], compare=False)
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int | None:
        return None

    def rows(self) -> Iterator[SourceRow | BadRow]:
        self.left_out.clear()
        root = os.path.realpath(self.folder)
        ordered = _ordered(self.folder)
        for path in ordered:
            yield _row(root, path)
        known = frozenset(ordered)
        for found in walk_images(root, "", self.left_out):
            if isinstance(found, BadRow):
                yield found
            elif found not in known:
                yield _row(root, found)


def _row(root: str, path: str) -> SourceRow:
    stem, extension = _split(path)
    where = os.path.join(root, path)  # noqa: PTH118
    return SourceRow(where, key_of(path), LocalFile(root, path), LocalFile(root, f"{stem}.json"), extension)


def _ordered(folder: Path) -> list[str]:
    """Returns the paths that the folder's `order.txt` lists, one in each line, or nothing if there is no such file."""
    file = folder / ORDER
    try:
        return [line for line in file.read_text(encoding="utf-8").split("\n") if line] if file.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{file} cannot be read ({error}).") from error


def walk_images(root: str, below: str, left_out: Counter[str]) -> Iterator[str | BadRow]:
    """Yields the paths of images relative to `root`, sorted folder by folder, and bad rows.

    Only the entries of the current folder and its parents are in memory.
    """
    try:
        with os.scandir(f"{root}/{below}") as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise RecordError(f"the folder {root}/{below} cannot be read ({error.strerror}).") from error
    images = FORMATS.keys() | OTHER_IMAGES
    stems = {stem for entry in entries for stem, extension in [_split(entry.name)] if extension in images}
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from walk_images(root, f"{below}{entry.name}/", left_out)
        elif entry.is_dir():
            yield BadRow(entry.path, "it is a link to a folder and not followed; copy the folder, or pack it too")
        elif below + entry.name != ORDER and (found := _file(entry, below, stems, left_out)) is not None:
            yield found


def _file(entry: "os.DirEntry[str]", below: str, stems: set[str], left_out: Counter[str]) -> str | BadRow | None:
    """Returns the path relative to the root if the file is an image.

    Returns a `BadRow` for an annotation without an image, and None for any other file.

    Args:
        entry: The file.
        below: Path of the file's folder relative to the root, with a slash at the end; empty for the root itself.
        stems: Names, without extensions, of the images in this folder.
        left_out: Counts the files that are neither images nor annotations.
    """
    stem, extension = _split(entry.name)
    if entry.name.startswith(MACOS):
        leave_out(left_out, f"{MACOS}* of macOS")
    elif extension in FORMATS or extension in OTHER_IMAGES:
        return below + entry.name
    elif extension != "json":
        leave_out(left_out, f".{extension}" if extension else "without an extension")
    elif stem not in stems:
        return BadRow(entry.path, f"there is no image with its name ({', '.join(FORMATS)}); add it, or move this away")
    return None


def _split(name: str) -> tuple[str, str]:
    stem, extension = os.path.splitext(name)  # noqa: PTH122 - a Path for each file would take most of the time
    return stem, extension[1:].lower()
