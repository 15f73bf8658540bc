"""A folder of images, each with an annotation of the same name and the suffix .json."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emocap_shards.decode import FORMATS
from emocap_shards.errors import RecordError
from emocap_shards.writing.row import BadRow, LocalFile, Row, key_of

ORDER = "order.txt"


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Every image below a folder, sorted by path. A file `order.txt`, one path a line, puts those it names first.

    Links to folders are not followed, and an annotation without an image is a bad row: nothing is lost unseen.
    """

    folder: Path

    @property
    def total(self) -> int | None:
        return None

    def rows(self) -> Iterator[Row | BadRow]:
        root = os.path.realpath(self.folder)
        ordered = _ordered(self.folder)
        for path in ordered:
            yield _row(root, path)
        known = frozenset(ordered)
        for found in _walk(root, ""):
            if isinstance(found, BadRow):
                yield found
            elif found not in known:
                yield _row(root, found)


def _row(root: str, path: str) -> Row:
    stem, extension = os.path.splitext(path)  # noqa: PTH122 - as text; a Path for each costs more than the rest
    where = os.path.join(root, path)  # noqa: PTH118
    return Row(where, key_of(path), LocalFile(root, path), LocalFile(root, f"{stem}.json"), extension[1:].lower())


def _ordered(folder: Path) -> list[str]:
    file = folder / ORDER
    try:
        return [line for line in file.read_text(encoding="utf-8").split("\n") if line] if file.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{file} cannot be read ({error}).") from error


def _walk(root: str, below: str) -> Iterator[str | BadRow]:
    """Paths of images relative to `root`, in the order of their parts, one folder at a time in memory."""
    try:
        with os.scandir(f"{root}/{below}") as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise RecordError(f"the folder {root}/{below} cannot be read ({error.strerror}).") from error
    stems = {stem for entry in entries for stem, extension in [_split(entry.name)] if extension in FORMATS}
    for entry in entries:
        stem, extension = _split(entry.name)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, f"{below}{entry.name}/")
        elif entry.is_dir():
            yield BadRow(entry.path, "it is a link to a folder, which is not followed; copy the folder, or pack it too")
        elif extension in FORMATS:
            yield below + entry.name
        elif extension == "json" and stem not in stems:
            yield BadRow(entry.path, f"it has no image of its name ({', '.join(FORMATS)}); add it, or move this away")


def _split(name: str) -> tuple[str, str]:
    stem, extension = os.path.splitext(name)  # noqa: PTH122
    return stem, extension[1:].lower()
