"""What a source gives: rows, cheap to make, of which nothing is loaded or checked yet."""

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
_LONGEST = 300  # Letters of a path that a message shows.


class ImageFolders(NamedTuple):
    """Where the images of a table lie: below `root`, which paths start from. Both are real paths, without links.

    A path that leads out of `root` counts from `table`, the table's own folder, and must then lead below `root`.
    """

    root: str
    table: str


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file below the folder `root`; `path` is what somebody wrote into a table, and may try to lead out of it.

    `root` has no symbolic link in it (`os.path.realpath`). An absolute `path` is fine if it leads below `root`. A
    path that leads out of `root` counts from `table` instead, if that is given, and must still lead below `root`.
    """

    root: str
    path: str
    table: str = ""

    def locate(self) -> str:
        """Where the file really is.

        Raises:
            RecordError: If that is outside of `root`.
        """
        try:
            # os.path, because Path costs three times as much.
            found = [os.path.realpath(os.path.join(start, self.path)) for start in (self.root, self.table) if start]  # noqa: PTH118
        except (OSError, ValueError) as error:
            raise RecordError(f"{short(self.path)} is no path of a file ({error})") from error
        for real in found:
            if real.startswith(self.root.rstrip("/") + "/"):
                return real
        common = os.path.commonpath((self.root, os.path.dirname(found[-1])))  # noqa: PTH120
        cure = f"it leads out of {self.root}; if you trust it, allow its folder, such as with --image-root {common}"
        raise RecordError(f"the file {short(self.path)} is refused: {cure}")

    def read(self) -> bytes:
        """All bytes of the file.

        Raises:
            RecordError: If it leads out of `root`, is no plain file, larger than `MAX_FILE_BYTES`, or unreadable.
        """
        try:
            # Without O_NONBLOCK a named pipe would be waited for.
            descriptor = os.open(self.locate(), os.O_RDONLY | os.O_NONBLOCK)
            with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise RecordError(f"{self.name} cannot be read (it is no plain file)")
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
        """Changes when the file does: name, size and time of its last change, without reading it."""
        try:
            status = os.stat(self.locate())  # noqa: PTH116
        except (OSError, RecordError):
            return f"{self.path}: none"
        return f"{self.path}: {status.st_size} bytes of {status.st_mtime_ns}"


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One sample as its source holds it.

    `where` names the row in errors ("faces.csv:12"). `annotation` is JSON in the form of a shard. `extension` is a
    hint: the sample gets it if the image is of its format, and otherwise that of the image's own.
    """

    where: str
    key: str
    image: bytes | LocalFile
    annotation: bytes | LocalFile
    extension: str = ""

    def stamp(self) -> bytes:
        """Digest of all that the row holds, apart from where it stands: changes when the row does."""
        digest = hashlib.sha256(f"{self.key}\0{self.extension}\0".encode())
        for part in (self.image, self.annotation):
            digest.update(hashlib.sha256(part.stamp().encode() if isinstance(part, LocalFile) else part).digest())
        return digest.digest()


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that may not enter a shard. `where` is empty where the reason itself says it."""

    where: str
    reason: str
    mark: bytes = b""

    def __str__(self) -> str:
        """For a terminal: names in a source may hold what moves its cursor."""
        return printable(f"{self.where}: {self.reason}" if self.where else self.reason)

    def stamp(self) -> bytes:
        """`mark`, the stamp of the row that turned out bad; a row that was never read has its reason instead."""
        return self.mark or hashlib.sha256(self.reason.encode()).digest()


def key_of(path: str) -> str:
    """The key that an image's path gives: its suffix off, folders joined by "_", no dots."""
    name = PurePath(path)
    stem = name.with_suffix("") if name.suffix[1:].lower() in FORMATS else name
    return "_".join(stem.parts[bool(stem.anchor) :]).replace(".", "_")
