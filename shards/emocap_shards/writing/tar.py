"""Writes one tar on the local disk with the webdataset library; equal samples give equal bytes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from emocap_shards.index import Slot

_BLOCK = 512
_END = 2 * _BLOCK


@dataclass(frozen=True, slots=True)
class SampleSpan:
    """The range of bytes [start, stop) that a sample occupies in its tar. It begins with the header of the sample's
    first member, and ends with the padding of its last member.
    """

    key: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SealedTar:
    """Describes a finished tar, as read back from the disk: its size, its digest, and the place and checksum of each
    sample.
    """

    bytes: int
    sha256: str
    slots: tuple[Slot, ...]


class TarFile:
    """Writes a tar to a local file. Owner, mode and time of its members are constant, so that equal samples give equal
    bytes.
    """

    def __init__(self, path: Path) -> None:
        from webdataset.writer import TarWriter  # The library imports torch, which nothing else here needs.

        self.path = path
        self._file = path.open("wb")
        self._writer = TarWriter(self._file, user="", group="", mode=0o644, mtime=0, encoder=False)
        self.spans: list[SampleSpan] = []

    @property
    def stop(self) -> int:
        """Returns the position at which the next sample will begin."""
        return self._writer.tarstream.offset

    def bytes_with(self, image: bytes, annotation: bytes) -> int:
        """Returns the size in bytes that the closed tar would have if a sample with these members were its last one."""
        # Each member is a header and its contents, padded to whole blocks; two blocks of zeros end the tar.
        return self.stop + sum(_BLOCK + len(data) + -len(data) % _BLOCK for data in (image, annotation)) + _END

    def add(self, key: str, extension: str, image: bytes, annotation: bytes) -> None:
        """Writes the image and then the annotation.

        The library is called twice, because it would sort the members of a single call.
        """
        start = self.stop
        self._writer.write({"__key__": key, extension: image})
        self._writer.write({"__key__": key, "json": annotation})
        self.spans.append(SampleSpan(key, start, self.stop))

    def close(self) -> None:
        """Ends the tar with two blocks of zeros. The tar is not padded to a multiple of 10,240 bytes, as it would be on
        a tape.
        """
        end = self.stop + _END
        with self._file:
            self._writer.close()
            self._file.truncate(end)


def seal(path: Path, spans: Sequence[SampleSpan]) -> SealedTar:
    """Reads a closed tar back from the disk once, so that the returned checksums describe the bytes on the disk."""
    digest = hashlib.sha256()
    slots: list[Slot] = []
    with path.open("rb") as file:
        for span in spans:
            block = file.read(span.stop - span.start)
            digest.update(block)
            slots.append(Slot(span.key, span.start, len(block), google_crc32c.value(block)))
        end = file.read()
        digest.update(end)
        return SealedTar(file.tell(), digest.hexdigest(), tuple(slots))
