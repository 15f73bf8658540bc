"""Reads a folder of images, each with an annotation of the same name and the suffix .json.

Other sources find the images of a folder with the functions of this module.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
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
IMAGES = FORMATS.keys() | OTHER_IMAGES
_DIGITS = re.compile(r"(\d+)")
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

    def rows(self) -> Iterator[SourceRow | BadRow]:
        self.left_out.clear()
        root = os.path.realpath(self.folder)
        ordered = _ordered(self.folder)
        for path in ordered:
            yield _row(root, path)
        known = frozenset(ordered)
        for found in walk_images(root, self.left_out, has_pairs=True):
            if isinstance(found, BadRow):
                yield found
            elif found not in known:
                yield _row(root, found)


def _row(root: str, path: str) -> SourceRow:
    stem, extension = split_name(path)
    where = os.path.join(root, path)  # noqa: PTH118
    return SourceRow(where, key_of(path), LocalFile(root, path), LocalFile(root, f"{stem}.json"), extension)


def _ordered(folder: Path) -> list[str]:
    """Returns the paths that the folder's `order.txt` lists, one in each line, or nothing if there is no such file."""
    file = folder / ORDER
    try:
        return [line for line in file.read_text(encoding="utf-8-sig").split("\n") if line] if file.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{file} cannot be read ({error}).") from error


def walk_images(
    root: str,
    left_out: Counter[str],
    *,
    extensions: Collection[str] = IMAGES,
    has_pairs: bool = False,
    below: str = "",
) -> Iterator[str | BadRow]:
    """Yields the paths of images relative to `root`, sorted folder by folder, and bad rows.

    Only the entries of the current folder and its parents are in memory.

    Args:
        root: The folder.
        left_out: Counts the other files, and hidden files and folders.
        extensions: The extensions of images.
        has_pairs: Whether `FolderSource` reads the folder. Then `order.txt` and annotations are not counted, and an
            annotation without an image is a bad row.
        below: The folder that is walked, relative to the root, with a slash at the end; empty for the root itself.
    """
    entries = sorted(entries_of(f"{root}/{below}"), key=lambda entry: entry.name)
    stems = {split_name(entry.name)[0] for entry in entries if is_image(entry.name)}
    for entry in entries:
        stem, extension = split_name(entry.name)
        if is_hidden(entry.name):
            leave_out(left_out, f"{MACOS}* of macOS" if entry.name.startswith(MACOS) else "hidden")
        elif entry.is_dir(follow_symlinks=False):
            inner = f"{below}{entry.name}/"
            yield from walk_images(root, left_out, extensions=extensions, has_pairs=has_pairs, below=inner)
        elif _leads_to_folder(entry):
            yield BadRow(entry.path, "it is a link to a folder and not followed; copy the folder, or pack it too")
        elif extension in extensions:
            yield below + entry.name
        elif not has_pairs or (extension != "json" and below + entry.name != ORDER):
            leave_out(left_out, f".{extension}" if extension else "without an extension")
        elif extension == "json" and stem not in stems:
            known = ", ".join(FORMATS)
            yield BadRow(entry.path, f"there is no image with its name ({known}); add it, or move this away")


def _leads_to_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself. Reading it as a file says what is wrong.
        return False


def entries_of(folder: str | Path) -> Iterator["os.DirEntry[str]"]:
    """Yields the entries of a folder in any order.

    Raises:
        RecordError: If the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            yield from found
    except OSError as error:
        raise RecordError(f"the folder {folder} cannot be read ({error.strerror}).") from error


def holds_image(folder: Path) -> bool:
    """Returns whether an image lies in a folder or below it. Entries are read until the first image."""
    folders: list[Path] = []
    for entry in entries_of(folder):
        if entry.is_dir(follow_symlinks=False):
            folders.extend([] if is_hidden(entry.name) else [folder / entry.name])
        elif is_image(entry.name):
            return True
    return any(map(holds_image, folders))


def is_image(name: str) -> bool:
    """Returns whether a file has the name of an image, in any format, and is not hidden."""
    return split_name(name)[1] in IMAGES and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is hidden, such as `.ipynb_checkpoints`, in which Jupyter keeps copies."""
    return name.startswith(".")


def split_name(name: str) -> tuple[str, str]:
    """Returns the name or path of a file without its extension, and the extension in lower case without the dot."""
    stem, extension = os.path.splitext(name)  # noqa: PTH122 - a Path for each file would take most of the time
    return stem, extension[1:].lower()


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Returns the sort key of a name, in which numbers count as numbers: "frame9" is before "frame10"."""
    parts = _DIGITS.split(name)
    return tuple((1, int(part), part) if place % 2 else (0, 0, part) for place, part in enumerate(parts))
