"""Lists the items of an input: of a packed dataset, a folder, a table, or one image or video.

Only paths are kept in memory, so a million images need about 200 MB. A slice of an input is a small value that can be
pickled and sent to another process.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from emocap_shards.errors import DamagedSample, DamagedShard
from emocap_shards.library import Library
from emocap_shards.manifest import MANIFEST, read_manifest
from emocap_shards.sample import Encoded
from emocap_shards.writing.row import BadRow, LocalFile
from emocap_shards.writing.row_source import leave_out
from emocap_shards.writing.sources.choice import open_source
from emocap_shards.writing.sources.columns import TableColumns
from emocap_shards.writing.sources.folder import IMAGES, split_name, walk_images

from emocap_pretrain.bulk.parts import VIDEO_WEIGHT
from emocap_pretrain.bulk.pictures import Cropper, Picture
from emocap_pretrain.data import videos
from emocap_pretrain.data.videos import Sampling
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.inference.images import UNREADABLE, reason

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_READ = IMAGES | {suffix[1:] for suffix in videos.SUFFIXES}
_TOGETHER = 64  # Samples of a dataset that are fetched together.

Entry: TypeAlias = str | tuple[str, str]
"""The path of an image or video; for a wrong row of a table, the place of the row and the reason."""


@runtime_checkable
class BulkInput(Protocol):
    """Provides pictures. Its items are images, samples and videos; a video gives many pictures.

    Attributes:
        digest: A digest that changes when the input changes; empty for a slice.
        has_videos: Whether there is at least one video.
        left_out: The number of files that are not read, by the kind of file, such as ".txt".
    """

    @property
    def digest(self) -> str: ...
    @property
    def has_videos(self) -> bool: ...
    @property
    def left_out(self) -> Mapping[str, int]: ...

    def weights(self) -> Iterator[int]:
        """Yields the weight of each item (`bulk/parts.py`)."""
        ...

    def slice(self, start: int, stop: int) -> "BulkInput":
        """Returns an input of the items `start` to `stop - 1`, which is small enough to be sent to another process."""
        ...

    def pictures(self, cropper: Cropper, sampling: Sampling) -> Iterator[Picture]:
        """Yields the pictures of all items in order.

        Of frames, only the part that `cropper` chooses is yielded, because whole frames would need much memory. If an
        image or a sample cannot be read, the content of its picture is the error.

        Raises:
            ShardsError: If a packed dataset cannot be opened.
        """
        ...


@dataclass(frozen=True, slots=True)
class FileInput:
    """Reads images and videos from files.

    Attributes:
        root: The folder to which paths are relative.
        entries: The items.
        table: The folder of the table that names the paths. Such a path must not lead out of `root` (`LocalFile`).
            Empty if the paths come from the listing of a folder.
    """

    root: str
    entries: Sequence[Entry]
    table: str = ""
    digest: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def has_videos(self) -> bool:
        return any(map(_is_video, self.entries))

    def weights(self) -> Iterator[int]:
        return (VIDEO_WEIGHT if _is_video(entry) else 1 for entry in self.entries)

    def slice(self, start: int, stop: int) -> "FileInput":
        return replace(self, entries=tuple(self.entries[start:stop]), digest="", left_out={})

    def pictures(self, cropper: Cropper, sampling: Sampling) -> Iterator[Picture]:
        for entry in self.entries:
            if not isinstance(entry, str):
                yield Picture(_encodable(entry[0]), DataError(entry[1]))
            elif _is_video(entry):
                yield from self._frames(entry, cropper, sampling)
            else:
                yield Picture(_encodable(entry), self._file(entry))

    def _file(self, path: str) -> Path | LocalFile:
        return LocalFile(self.root, path, self.table) if self.table else Path(self.root, path)

    def _frames(self, path: str, cropper: Cropper, sampling: Sampling) -> Iterator[Picture]:
        name, file, share = _encodable(path), self._file(path), 0.0
        try:
            place = file.locate() if isinstance(file, LocalFile) else file
            for frame in videos.frames(place, sampling):
                weight = (frame.share - share) * VIDEO_WEIGHT
                share = frame.share
                yield Picture(name, cropper.square(frame.pixels), weight, frame.time_s, frame.number)
        except UNREADABLE as error:
            yield Picture(name, DataError(reason(error)), (1 - share) * VIDEO_WEIGHT)


@dataclass(frozen=True, slots=True)
class DatasetInput:
    """Reads the samples `start` to `stop - 1` of a packed dataset, in the order of the manifest."""

    url: str = field(repr=False)  # It may hold a password.
    start: int
    stop: int
    digest: str = ""

    @property
    def has_videos(self) -> bool:
        return False

    @property
    def left_out(self) -> Mapping[str, int]:
        return {}

    def weights(self) -> Iterator[int]:
        return (1 for _ in range(self.start, self.stop))

    def slice(self, start: int, stop: int) -> "DatasetInput":
        return DatasetInput(self.url, self.start + start, self.start + stop)

    def pictures(self, cropper: Cropper, sampling: Sampling) -> Iterator[Picture]:  # noqa: ARG002 - there are no frames
        library = _library(self.url)
        for first in range(self.start, self.stop, _TOGETHER):
            numbers = range(first, min(first + _TOGETHER, self.stop))
            for number, found in zip(numbers, _fetched(library, numbers), strict=True):
                if isinstance(found, Encoded):
                    yield Picture(found.key, found.image)
                elif isinstance(found, DamagedSample):
                    yield Picture(found.key, DataError(f"{found.shard}: {found.reason}"))
                else:
                    yield Picture(f"sample {number}", DataError(str(found)))


def open_input(where: str, *, image: str = "image", image_root: Path | None = None) -> BulkInput:
    """Lists the items at a path or URL.

    Args:
        where: A packed dataset (folder or URL), a folder, a table, an image or a video.
        image: Column of a table with the paths of images or videos.
        image_root: Folder to which the paths of a table are relative, and which they must not leave; by default the
            table's own folder.

    Raises:
        ConfigError: If there is nothing that can be read.
        ShardsError: If the dataset, the table, the folder or a folder below it cannot be read.
    """
    path = Path(where).expanduser()
    if "://" in where or (path / MANIFEST).is_file():
        manifest = read_manifest(where)
        return DatasetInput(where, 0, manifest.samples, manifest.digest)
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() in TABLES:
        return _table(path, image, image_root)
    if not path.is_file() or split_name(path.name)[1] not in _READ:
        known = f"a dataset, a folder, a table ({', '.join(TABLES)}), an image or a video"
        raise ConfigError(f"{where} is not {known}.")
    return _listed(str(path.parent.absolute()), [path.name], _stamps(path.parent, [path.name]))


def _folder(folder: Path) -> FileInput:
    left_out: Counter[str] = Counter()
    root = str(folder.absolute())
    paths = list(_walk(root, left_out))
    if not paths:
        found = "; it holds packed tars without a manifest, so unpack them" if left_out[".tar"] else ""
        raise ConfigError(f"{folder} holds no image and no video{found}.")
    return _listed(root, paths, _stamps(folder, paths), left_out=left_out)


def _table(path: Path, image: str, image_root: Path | None) -> FileInput:
    # `open_source` requires a column of captions. The column of paths is given as one, and no caption is read.
    columns = TableColumns(image=image, global_=image, local="", summary="", further=(), key="")
    entries: list[Entry] = []
    root = os.path.realpath(image_root or path.parent)
    for row in open_source(path, columns, image_root=image_root).rows():
        if isinstance(row, BadRow):
            entries.append((row.where, row.reason))
        elif isinstance(row.image, LocalFile):
            entries.append(row.image.path)
    if not any(isinstance(entry, str) for entry in entries):
        reason = f" ({entries[0][0]}: {entries[0][1]})" if entries else ""
        cure = "make a dataset of a table with encoded images by `emocap pack`"
        raise ConfigError(f"{path} has no row with the path of an image or video{reason}; {cure}.")
    return _listed(root, entries, (repr(entry) for entry in entries), table=os.path.realpath(path.parent))


def _listed(
    root: str,
    entries: Sequence[Entry],
    stamps: Iterable[str],
    *,
    table: str = "",
    left_out: Mapping[str, int] | None = None,
) -> FileInput:
    digest = hashlib.sha256()
    for stamp in stamps:
        digest.update(f"{stamp}\0".encode(errors="surrogateescape"))
    return FileInput(root, entries, table, digest.hexdigest(), dict(left_out or {}))


def _stamps(root: Path, paths: Iterable[str]) -> Iterator[str]:
    """Yields a text for each file: its path, its size and the time of its last change. The file itself is not read."""
    for path in paths:
        try:
            status = (root / path).stat()
        except OSError:  # Reading the file will fail too, and the output will contain that error.
            yield f"{path}: none"
        else:
            yield f"{path}: {status.st_size} bytes of {status.st_mtime_ns}"


def _walk(root: str, left_out: Counter[str]) -> Iterator[str]:
    """Yields the paths of images and videos below `root`; the entries of each folder are sorted by name.

    Links to folders are not followed, and hidden files and folders are not read.

    Args:
        root: The folder.
        left_out: Counts the files and links that are not read, by their kind.

    Raises:
        RecordError: If a folder cannot be read.
    """
    for found in walk_images(root, left_out, extensions=_READ):
        if isinstance(found, str):
            yield found
        else:
            leave_out(left_out, "link to a folder")


def _is_video(entry: Entry) -> bool:
    return isinstance(entry, str) and f".{split_name(entry)[1]}" in videos.SUFFIXES


def _encodable(name: str) -> str:
    """Returns a name that can be written as UTF-8. A byte that is not UTF-8 becomes \\x with two hexadecimal digits."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@lru_cache(maxsize=1)
def _library(url: str) -> Library:
    return Library.open(url)


def _fetched(library: Library, numbers: range) -> Iterator[Encoded | DamagedSample | DamagedShard]:
    """Yields each sample, or what is wrong with it or with its shard.

    Raises:
        StoreError: If the store does not answer.
    """
    try:
        yield from library.fetch(np.asarray(numbers), direct=True)
    except DamagedShard as error:
        if len(numbers) == 1:
            yield error
        else:  # The other samples may be in another shard.
            for number in numbers:
                yield from _fetched(library, range(number, number + 1))
