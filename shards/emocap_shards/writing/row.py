"""Defines the rows of a source. They are cheap to make: nothing is loaded or checked yet."""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

from emocap_shards.decode import FORMATS
from emocap_shards.errors import RecordError
from emocap_shards.printable import printable, short

MAX_FILE_BYTES = 1 << 28
_LONGEST = 300  # The number of letters of a path that a message shows at most.


class ImageFolders(NamedTuple):
    """The folders of a table's images. Both are real paths, without links.

    Paths start from `root`, and every image must lie below it. A path that would leave `root` starts from `table`
    instead, the table's own folder, and must then lead below `root`.
    """

    root: str
    table: str


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file below the folder `root`. Somebody wrote `path` into a table, and it may try to leave `root`.

    `root` contains no symbolic link (`os.path.realpath`). An absolute `path` is allowed if it leads below `root`. A
    path that would leave `root` starts from `table` instead, if that is given, and must still lead below `root`.
    """

    root: str
    path: str
    table: str = ""

    def locate(self) -> str:
        """Returns where the file really is.

        Raises:
            RecordError: If that is outside of `root`.
        """
        try:
            # os.path is used because Path takes three times as long.
            found = [os.path.realpath(os.path.join(start, self.path)) for start in (self.root, self.table) if start]  # noqa: PTH118
        except (OSError, ValueError) as error:
            raise RecordError(f"{short(self.path)} is not a path of a file ({error})") from error
        for real in found:
            if real.startswith(self.root.rstrip("/") + "/"):
                return real
        common = os.path.commonpath((self.root, os.path.dirname(found[-1])))  # noqa: PTH120
        cure = f"it leads out of {self.root}; if you trust it, allow its folder, such as with --image-root {common}"
        raise RecordError(f"the file {short(self.path)} is refused: {cure}")

    def read(self) -> bytes:
        """Returns all bytes of the file.

        Raises:
            RecordError: If it lies outside of `root`, is not a plain file, is larger than `MAX_FILE_BYTES`, or
                cannot be read.
        """
        try:
            # Without O_NONBLOCK this would wait for a named pipe.
            descriptor = os.open(self.locate(), os.O_RDONLY | os.O_NONBLOCK)
            with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise RecordError(f"{self.name} cannot be read (it is not a plain file)")
                if status.st_size > MAX_FILE_BYTES:
                    raise RecordError(f"{self.name} has {status.st_size} bytes; the limit is {MAX_FILE_BYTES}")
                return file.read()
        except OSError as error:
            raise RecordError(f"{self.name} cannot be read ({error.strerror or error})") from error

    @property
    def name(self) -> str:
        """The path as a message shows it."""
        return self.path if len(self.path) <= _LONGEST else short(self.path)

    def stamp(self) -> str:
        """Returns a text that changes when the file does: its name, size and time of the last change. The file is not
        read.
        """
        try:
            status = os.stat(self.locate())  # noqa: PTH116
        except (OSError, RecordError):
            return f"{self.path}: none"
        return f"{self.path}: {status.st_size} bytes of {status.st_mtime_ns}"


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One sample as its source holds it.

    Attributes:
        where: Names the row in errors ("faces.csv:12").
        key: The key that the sample gets.
        image: The encoded image.
        annotation: JSON in the form that it has in a shard.
        extension: A hint. The sample gets this extension if it fits the image's format, and otherwise that of the
            format.
    """

    where: str
    key: str
    image: bytes | LocalFile
    annotation: bytes | LocalFile
    extension: str = ""

    def stamp(self) -> bytes:
        """Returns a digest of everything in the row but `where`; it changes when the row does."""
        digest = hashlib.sha256(f"{self.key}\0{self.extension}\0".encode())
        for part in (self.image, self.annotation):
            digest.update(hashlib.sha256(part.stamp().encode() if isinstance(part, LocalFile) else part).digest())
        return digest.digest()


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that must not be written into a shard. `where` is empty if the reason contains the place."""

    where: str
    reason: str
    mark: bytes = b""

    def __str__(self) -> str:
        """Returns the text for a terminal: names in a source may contain characters that control it."""
        return printable(f"{self.where}: {self.reason}" if self.where else self.reason)

    def stamp(self) -> bytes:
        """Returns `mark`, the stamp of the row that turned out to be bad, or a digest of the reason if the row was
        never read.
        """
        return self.mark or hashlib.sha256(self.reason.encode()).digest()


def key_of(path: str) -> str:
    """Returns the key for an image's path: without its suffix, with the folders joined by "_", and without dots."""
    name = PurePath(path)
    stem = name.with_suffix("") if name.suffix[1:].lower() in FORMATS else name
    return "_".join(stem.parts[bool(stem.anchor) :]).replace(".", "_")
