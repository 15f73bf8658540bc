"""Defines the rows of a source. A row is cheap to make, because its files are neither loaded nor checked yet."""

import contextlib
import hashlib
import os
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

from emocap_shards.decode import FORMATS
from emocap_shards.errors import RecordError
from emocap_shards.printable import printable, short

MAX_FILE_BYTES = 1 << 28
_LONGEST = 300  # A message shows a path of up to this many characters in full.


class ImageFolders(NamedTuple):
    """Names the two folders to which the paths of a table's images may be relative: `root`, and the table's own folder.

    A path is relative to `root`. If it would then lead out of `root`, as "../x.jpg" does, it is relative to `table`,
    the folder of the table. In both cases the image itself must lie below `root`. Both folders are real paths, without
    symbolic links.
    """

    root: str
    table: str


@dataclass(frozen=True, slots=True)
class LocalFile:
    """Names a file below the folder `root`. `path` comes from a table and is not trusted: it may lead out of `root`.

    `root` contains no symbolic link (`os.path.realpath`). An absolute `path` is allowed if it leads below `root`. A
    relative `path` is relative to `root`. If it would then lead out of `root`, it is relative to the folder `table`, if
    that is given. In both cases the file itself must lie below `root`.
    """

    root: str
    path: str
    table: str = ""

    def locate(self) -> str:
        """Returns the real path of the file, with all symbolic links resolved.

        Raises:
            RecordError: If `path` is not a valid path, or the real path is outside of `root`.
        """
        try:
            # os.path is used because Path takes three times as long.
            found = [os.path.realpath(os.path.join(start, self.path)) for start in (self.root, self.table) if start]  # noqa: PTH118
        except (OSError, ValueError) as error:
            raise RecordError(f"{short(self.path)} is not a path of a file ({error})") from error
        # Links are resolved before the comparison, so a link that leads out of `root` is found too.
        for real in found:
            if real.startswith(self.root.rstrip("/") + "/"):
                return real
        folder = os.path.dirname(found[-1])  # noqa: PTH120
        common = os.path.commonpath((self.root, folder))
        if common == "/" and self.path.startswith("/"):  # An absolute path does not need the folder of the table.
            common = folder
        cure = f"it leads out of {self.root}; if you trust it, allow its folder, such as with --image-root {common}"
        raise RecordError(f"the file {short(self.path)} is refused: {cure}")

    def read(self) -> bytes:
        """Returns all bytes of the file.

        Raises:
            RecordError: If the file lies outside of `root`, is not a plain file, is larger than `MAX_FILE_BYTES`, or
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
        except IsADirectoryError as error:
            cure = "if it holds the frames of a video, --frames takes some of them"
            raise RecordError(f"{self.name} is a folder and not an image; {cure}") from error
        except OSError as error:
            like = self._similar() if isinstance(error, FileNotFoundError) else ""
            raise RecordError(f"{self.name} cannot be read ({error.strerror or error}){like}") from error

    def _similar(self) -> str:
        """Returns a text about a file that the path probably means, or "" if there is none.

        Names differ in the suffix, in its case, or in the form of their umlauts, which macOS writes as two characters.
        """
        stem, suffix = os.path.splitext(self.path)  # noqa: PTH122
        ways = [unicodedata.normalize(form, self.path) for form in ("NFC", "NFD")]
        ways += [stem + suffix.swapcase(), *(f"{self.path}.{each}" for each in FORMATS)]
        for way in ways:
            with contextlib.suppress(RecordError):
                if os.path.isfile(LocalFile(self.root, way, self.table).locate()):  # noqa: PTH113
                    if unicodedata.normalize("NFC", way) == unicodedata.normalize("NFC", self.path):
                        return "; there is a file of this name in another form of Unicode (NFC, NFD): rename it"
                    return f"; there is {short(way)}: correct the name in the table, or give --image-name"
        return ""

    @property
    def name(self) -> str:
        """Returns the path as messages show it; a long path is shortened."""
        return self.path if len(self.path) <= _LONGEST else short(self.path)

    def stamp(self) -> str:
        """Returns a text with the file's path, its size and the time of its last change. The file is not read."""
        try:
            status = os.stat(self.locate())  # noqa: PTH116
        except (OSError, RecordError):
            return f"{self.path}: none"
        return f"{self.path}: {status.st_size} bytes of {status.st_mtime_ns}"


@dataclass(frozen=True, slots=True)
class SourceRow:
    """Describes one sample as its source provides it.

    Attributes:
        where: Place of the row in messages, such as "faces.csv:12".
        key: The key that the sample gets.
        image: The encoded image, or the file that contains it.
        annotation: The annotation as JSON, in the form that it has in a shard, or the file that contains this JSON.
        extension: Extension of the image's name. The sample keeps this extension if it fits the image's format, and
            otherwise gets the usual extension of the format.
    """

    where: str
    key: str
    image: bytes | LocalFile
    annotation: bytes | LocalFile
    extension: str = ""

    def stamp(self) -> bytes:
        """Returns a digest of the key, the extension, the image and the annotation. It changes when the row changes.

        A file is not read; its path, its size and the time of its last change are used instead of its bytes. A pack
        that resumes compares the stamps to find out whether the source has changed.
        """
        digest = hashlib.sha256(_encoded(f"{self.key}\0{self.extension}\0"))
        for part in (self.image, self.annotation):
            digest.update(hashlib.sha256(_encoded(part.stamp()) if isinstance(part, LocalFile) else part).digest())
        return digest.digest()


@dataclass(frozen=True, slots=True)
class BadRow:
    """Describes a row that must not be written into a shard.

    Attributes:
        where: Place of the row in messages; empty if the reason contains the place.
        reason: What is wrong with the row.
        mark: The stamp of the row; empty if the source could not make a row.
        file: The path of the row's image, as the source names it; empty if the image has none or is not known.
    """

    where: str
    reason: str
    mark: bytes = b""
    file: str = ""

    def __str__(self) -> str:
        """Returns a line for the terminal. Control characters, which names in a source may contain, are removed."""
        # A folder's rows have the path as their place, and many reasons name a file that is missing.
        file = "" if self.file in self.where or self.file in self.reason else self.file
        return printable(": ".join(part for part in (self.where, file, self.reason) if part))

    def stamp(self) -> bytes:
        """Returns bytes that change when the row changes: `mark`, or a digest of the reason if there is no `mark`.

        The journal keeps a digest of the stamps of a shard's rows. A pack that resumes computes this digest again from
        the source, and fails if the two differ.
        """
        return self.mark or hashlib.sha256(_encoded(self.reason)).digest()


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")  # The name of a file that is not UTF-8 contains surrogates.


def key_of(path: str) -> str:
    """Returns a key for an image's path: without its suffix, with folders joined by "_", and with "_" instead of dots.

    For example, "joy/a.01.jpg" gives "joy_a_01".
    """
    name = PurePath(path)
    stem = name.with_suffix("") if name.suffix[1:].lower() in FORMATS else name
    return "_".join(stem.parts[bool(stem.anchor) :]).replace(".", "_")
