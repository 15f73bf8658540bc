"""Finds the files of a user's copy, and never leaves its folder.

The paths come from tables and records that somebody else has written. So an absolute path, a path with ".." and a link
that leads out of the folder are refused, and only regular files count as images: a named pipe would block the reader
without end.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath

from emocap_shards.writing.sources.folder import natural_order

from emocap_pretrain.benchmarks.item import FrameFiles, Media, VideoFile
from emocap_pretrain.benchmarks.reading.layout_reader import Problem
from emocap_pretrain.data.videos import SUFFIXES
from emocap_pretrain.errors import DataError

FIELD = re.compile(r"\{([A-Za-z_][\w.]*)(?::0([1-9])d)?\}")
"""A field of a template: its name, and the number of digits or None."""


class BadPath(ValueError):  # noqa: N818 - it becomes a `Problem`
    """A value does not fit into the template of a path. The text says why."""


def filled(template: str, values: Mapping[str, str]) -> str:
    """Returns a template with the values in place of its fields.

    >>> filled("{split}/{clip:05d}.jpg", {"split": "test", "clip": "7"})
    'test/00007.jpg'

    Raises:
        BadPath: If a field has no value, or if a field with a number of digits has a value that is not a whole number.
    """

    def value(field: re.Match[str]) -> str:
        if field[1] not in values:
            raise BadPath(f"no {field[1]}")
        text = values[field[1]]
        if field[2] is None:
            return text
        if re.fullmatch(r"[0-9]{1,18}", text.strip()) is None:
            raise BadPath(f"{field[1]} is not a whole number")
        return text.strip().zfill(int(field[2]))

    return FIELD.sub(value, template)


def fixed_folder(template: str) -> str:
    """Returns the folders at the beginning of a template or pattern that have neither fields nor wildcards."""
    parts: list[str] = []
    for part in PurePosixPath(template).parts[:-1]:
        if set(part) & set("{*?["):
            break
        parts.append(part)
    return "/".join(parts)


def is_contained(path: str) -> bool:
    """Returns whether a relative path stays in its folder as far as its text says."""
    parts = path.split("/")
    return bool(parts[0]) and ".." not in parts and "\0" not in path and any(part != "." for part in parts if part)


class Tree:
    """Holds the folder of a copy. All paths are relative to it, and use "/"."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._root = str(root)
        self._real = os.path.realpath(root)
        # The folders of a benchmark are few, so that most files cost one call of the system.
        self._contains = lru_cache(maxsize=4096)(self._contains_folder)

    def exists(self, path: str) -> bool:
        """Returns whether a file or folder lies at the path, within the copy. The folder of the copy always counts."""
        return path in {"", "."} or not isinstance(self._mode(path, "missing"), Problem)

    def folder(self, path: str) -> Path:
        """Returns the place of a folder.

        Raises:
            DataError: If the folder is missing, if it is not a folder, or if it lies out of the copy.
        """
        if not self.exists(path):
            raise DataError(f"{self.root / path} is missing, or leads out of {self.root}.")
        if not (self.root / path).is_dir():
            raise DataError(f"{self.root / path} is not a folder.")
        return self.root / path

    def labels(self, path: str) -> Path:
        """Returns the place of a file of labels.

        Raises:
            DataError: If the file is missing, if it is not a regular file, or if it lies out of the copy.
        """
        found = self.file(path, missing="missing file")
        if isinstance(found, Problem):
            raise DataError(f"{self.root / path} cannot be read: {found.kind}.")
        return found

    def file(self, path: str, *, missing: str = "missing image") -> Path | Problem:
        """Returns the place of a regular file, or the problem. `missing` is the kind of problem if nothing is there."""
        mode = self._mode(path, missing)
        if isinstance(mode, Problem):
            return mode
        return self.root / path if stat.S_ISREG(mode) else Problem("not a regular file", path)

    def media(self, path: str, frames: str | None) -> Media | Problem:
        """Returns the image, the video file, or the frames of a folder, or the problem.

        Args:
            path: The file, or the folder of the frames.
            frames: Pattern of the names of frames; None if the path is one file.

        Raises:
            DataError: If the folder of the frames cannot be listed.
        """
        if frames is None:
            found = self.file(path)
            if isinstance(found, Path) and found.suffix.lower() in SUFFIXES:
                return VideoFile(found)
            return found
        paths = self.frames(path, frames)
        return paths if isinstance(paths, Problem) else FrameFiles(paths)

    def frames(self, path: str, pattern: str) -> tuple[Path, ...] | Problem:
        """Returns the frames in a folder in the order of time, or the problem. There is at least one frame.

        Raises:
            DataError: If the folder cannot be listed.
        """
        mode = self._mode(path, "missing folder of frames")
        if isinstance(mode, Problem):
            return mode
        if not stat.S_ISDIR(mode):
            return Problem("not a folder of frames", path)
        found: list[Path] = []
        for name in self.names(path, pattern):
            frame = self.file(f"{path}/{name}")
            if isinstance(frame, Problem):
                return frame
            found.append(frame)
        return tuple(found) if found else Problem("no frames", path)

    def names(self, path: str, pattern: str = "*") -> list[str]:
        """Returns the names in a folder that match a pattern, in order, without hidden ones.

        Raises:
            DataError: If the folder cannot be listed.
        """
        try:
            found = [name for name in os.listdir(self.root / path) if _matches(name, pattern)]  # noqa: PTH208 - fast
        except OSError as error:
            raise DataError(f"{self.root / path} cannot be listed: {error.strerror}.") from error
        return sorted(found, key=natural_order)

    def matches(self, path: str, pattern: str) -> bool:
        """Returns whether the last part of a path matches a pattern."""
        return _matches(path.rpartition("/")[2], pattern)

    def glob(self, pattern: str) -> Iterator[str]:
        """Yields the paths that match a pattern such as "Emotion/*/*.txt", in order.

        Each part of the pattern matches the name of one folder or file. A folder that is a link out of the copy is not
        entered: it is yielded itself, so that `file` reports it.
        """
        yield from self._glob("", PurePosixPath(pattern).parts)

    def _glob(self, folder: str, parts: tuple[str, ...]) -> Iterator[str]:
        if not os.path.isdir(self.root / folder):  # noqa: PTH112 - it raises nothing
            return
        if not self.exists(folder):
            yield folder
            return
        for name in self.names(folder, parts[0]):
            path = f"{folder}/{name}" if folder else name
            if len(parts) == 1:
                yield path
            else:
                yield from self._glob(path, parts[1:])

    def _mode(self, path: str, missing: str) -> int | Problem:
        # Every image of a copy passes here, and the functions of `os` are several times as fast as those of pathlib.
        if not is_contained(path):
            return Problem("path leads out of the folder", path)
        place = f"{self._root}/{path}"
        try:
            mode = os.lstat(place).st_mode
            is_link = stat.S_ISLNK(mode)
            if is_link:
                mode = os.stat(place).st_mode  # noqa: PTH116 - fast
        except (FileNotFoundError, NotADirectoryError):
            return Problem(missing, path)
        except (OSError, ValueError) as error:  # Too long, not permitted, or not a name on this system.
            return Problem(f"unreadable path ({getattr(error, 'strerror', None) or 'not a name'})", path)
        is_inside = self._has(os.path.realpath(place)) if is_link else self._contains(path.rpartition("/")[0])
        return mode if is_inside else Problem("path leads out of the folder", path)

    def _contains_folder(self, path: str) -> bool:
        return self._has(os.path.realpath(f"{self._root}/{path}"))

    def _has(self, real: str) -> bool:
        return real == self._real or real.startswith(self._real.rstrip("/") + "/")


def _matches(name: str, pattern: str) -> bool:
    return not name.startswith(".") and fnmatchcase(name.lower(), pattern.lower())
