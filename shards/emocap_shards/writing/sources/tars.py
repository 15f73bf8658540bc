"""Reads WebDatasets of other programs: tars in which the members of a sample are neighbours, and have the same name
apart from the extension.
"""

import io
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from tarfile import HeaderError, ReadError
from typing import Any

import pyarrow as pa
from webdataset.tariterators import base_plus_ext, group_by_keys

from emocap_shards.decode import FORMATS
from emocap_shards.errors import NotFound, RecordError
from emocap_shards.store import Store
from emocap_shards.writing.reading import matching, open_object
from emocap_shards.writing.row import MAX_FILE_BYTES, BadRow, ImageFolders, SourceRow, key_of
from emocap_shards.writing.row_source import leave_out
from emocap_shards.writing.sources.columns import TableColumns, row_of
from emocap_shards.writing.sources.folder import MACOS, is_hidden
from emocap_shards.writing.sources.values import object_of, text_of

# typeshed does not declare these two classes.
_BROKEN = (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)  # pyright: ignore[reportAttributeAccessIssue]
# Limit for a header with long names or attributes, which tarfile reads into memory at once.
_MAX_HEADER_BYTES = 1 << 20
_HEADERS = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}
# Members that webdataset itself skips.
_META = re.compile(r"__[^/]*__($|/)")
_MACOS = re.compile(r"(^|/)(\._|__MACOSX/)")  # Files that macOS adds to an archive.


@dataclass(frozen=True, slots=True)
class TarsSource:
    """Reads the samples of tars. The webdataset library groups the members of a tar into samples.

    `pattern` is a path or URL with {braces} and wild cards. Each sample becomes a row. The fields of the sample's
    "json" member become columns of the row. Each further member that is needed becomes a column with the member's text;
    its extension, such as "txt" or "cls", is the name of the column. The image is the member that the image column
    names, or else the first JPEG, PNG or WebP.

    The key of a row is read from the key column; if the row has no such column, the key is the common name of the
    members. Members that are not needed are counted in `left_out`.

    `most_bytes` is the largest size of the members of a sample together.
    """

    pattern: str
    columns: TableColumns
    left_out: Counter[str] = field(default_factory=Counter[str], compare=False)
    most_bytes: int = MAX_FILE_BYTES

    def rows(self) -> Iterator[SourceRow | BadRow]:
        self.left_out.clear()
        number = 0
        for store, path in matching(self.pattern):
            stray: list[BadRow] = []
            for group in group_by_keys(self.members(store, path, stray.append)):
                yield from stray
                stray.clear()
                yield self.row(group, number=number)
                number += 1
            yield from stray

    def members(self, store: Store, path: str, on_bad: Callable[[BadRow], None]) -> Iterator[dict[str, Any]]:
        """Yields the members of a tar in the form that webdataset's `group_by_keys` takes.

        `on_bad` is called for each member that cannot be part of a sample, and if the tar cannot be read to its end.

        Raises:
            RecordError: If the tar does not exist.
        """
        needed = self.columns.used | {"json", *FORMATS}
        return _members(store, path, on_bad, needed, self.left_out, self.most_bytes)

    def row(self, group: Mapping[str, Any], *, number: int) -> SourceRow | BadRow:
        """Returns the row of a sample, which `group_by_keys` has made from its members.

        `number` becomes the key if the sample has no other.
        """
        name = str(group["__key__"])
        where = f"{group['__url__']}: {name}"
        if name.startswith("/") or ".." in name.split("/"):
            return BadRow(where, "the name of its members leads out of the tar")
        members = {extension: data for extension, data in group.items() if not extension.startswith("__")}
        try:
            values = self._values(members, name)
        except RecordError as error:
            return BadRow(where, str(error))
        row = row_of(values, self.columns, where=where, number=number, images=ImageFolders("/", "/"))
        if isinstance(row, BadRow) and "/" in name and len(members) == 1:
            cure = "if the folders in the tar are classes, unpack it, and pack its folder with --label"
            return replace(row, reason=f"{row.reason}; {cure}")
        if isinstance(row, SourceRow) and not isinstance(row.image, bytes):
            return BadRow(where, "its image is a path, but in a tar the image must be one of the members")
        return row

    def _values(self, members: Mapping[str, bytes | None], name: str) -> dict[str, Any]:
        """Returns the values of the row by column: the JSON's fields, the other members as texts, the image and a key.

        `name` is the common name of the members.

        Raises:
            RecordError: If there is no image, a text is not UTF-8, or the members are too large together.
        """
        if None in members.values():
            raise RecordError(f"its members together have more than {self.most_bytes} bytes; make them smaller")
        image = self.columns.image if self.columns.image in members else next(filter(FORMATS.get, members), None)
        if image is None:
            dots = any("." in extension for extension in members)
            why = " (what follows the first dot of a name is its extension: other dots split samples)" if dots else ""
            found = ", ".join(members) or "nothing"
            cure = self.columns.cure or "rename the members, or name one with --image"
            raise RecordError(f"it has no image, but {found}{why}; {cure}")
        values: dict[str, Any] = {self.columns.key: key_of(name)}
        if (data := members.get("json")) is not None:
            values |= object_of(data, 'its "json" member')
        for each in self.columns.used & members.keys() - {image, "json"}:
            values[each] = text_of(members[each] or b"", f"its member {each!r}")
        return values | {self.columns.image: members[image]}


def _members(
    store: Store,
    path: str,
    on_bad: Callable[[BadRow], None],
    needed: Collection[str],
    left_out: Counter[str],
    most_bytes: int,
) -> Iterator[dict[str, Any]]:
    """Yields the members of a tar; `TarsSource.members` describes them.

    A member whose extension is not in `needed` is yielded without its bytes, and counted in `left_out`. If the members
    of a sample together exceed `most_bytes`, None replaces the bytes of the member that exceeds the limit and of those
    that follow.
    """
    url = f"{store.url}/{path}"
    seen: set[str] = set()
    sample, sample_bytes = "", 0
    try:
        # In the mode "r|*" the tar is read once from front to back, whatever its compression.
        with (
            open_object(store, path) as stored,
            _unpacked(stored, path) as file,
            tarfile.open(fileobj=file, mode="r|*", tarinfo=_StrictInfo) as tar,
        ):
            for member in tar:
                if member.isdir() or _META.match(member.name):
                    continue
                if _MACOS.search(member.name):
                    leave_out(left_out, f"{MACOS}* of macOS")
                    continue
                if is_hidden(PurePath(member.name).name):
                    leave_out(left_out, "hidden")
                    continue
                if reason := _fault(member, seen, most_bytes):
                    on_bad(BadRow(f"{url}: {member.name}", reason))
                    continue
                key, extension = base_plus_ext(member.name)
                wanted = str(extension).lower() in needed
                if not wanted:
                    leave_out(left_out, f".{extension}")
                if str(extension).startswith("__"):
                    # `group_by_keys` stores facts of its own about a sample under such names, such as "__key__".
                    continue
                size = member.size if wanted else 0
                # The members of a sample are neighbours, so the sum begins again where the key changes.
                sample, sample_bytes = key, size + (sample_bytes if key == sample else 0)
                fits = sample_bytes <= most_bytes
                data = (_content(tar, member) if size else b"") if fits else None
                yield {"fname": member.name, "data": data, "__url__": url}
                # Without this, tarfile would keep the headers of the whole tar in memory.
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
    except NotFound as error:
        raise RecordError(f"{url} does not exist; correct its name, or copy the file there.") from error
    except (tarfile.TarError, EOFError, OSError) as error:
        on_bad(BadRow(url, f"the tar cannot be read to its end, and the samples that follow are lost ({error})"))


def _unpacked(file: io.BufferedReader, path: str) -> AbstractContextManager[Any]:
    """Returns the file that is read as a tar: `file`, or what Zstandard has compressed, which `tarfile` cannot read."""
    return (
        pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") if path.endswith(".zst") else nullcontext(file)
    )


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    return content.read() if content else b""


def _fault(member: tarfile.TarInfo, seen: set[str], most_bytes: int) -> str:
    """Returns why a member cannot be part of a sample, or "" if it can.

    `seen` holds the names of earlier members; the function adds the name of this one. A member must not have more than
    `most_bytes` bytes.
    """
    key, extension = base_plus_ext(member.name)
    if not member.isreg():
        return "it is not a plain file, but a link or a device"
    if key is None:
        return "its name has no extension, so that it belongs to no sample"
    if member.size > most_bytes:
        return f"it has {member.size} bytes; the limit is {most_bytes}"
    # webdataset's `group_by_keys` would end the whole tar at a second member of the same name. It ignores the case of
    # the extension alone.
    name = f"{key}.{str(extension).lower()}"
    if name in seen:
        return "the tar has two members of this name"
    seen.add(name)
    return ""


class _StrictInfo(tarfile.TarInfo):
    """The header of a member of a tar. Raises an error if the header is broken or has more than `_MAX_HEADER_BYTES`
    bytes.

    By itself, `tarfile` raises an error only if the first header is broken. It takes any later broken header for the
    end of the tar.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictInfo":
        info = super().frombuf(buf, encoding, errors)
        if info.type in _HEADERS and info.size > _MAX_HEADER_BYTES:
            raise ReadError(f"a header has {info.size} bytes; the limit is {_MAX_HEADER_BYTES}")
        return info

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tarfile)
        except HeaderError as error:
            if isinstance(error, _BROKEN):
                raise ReadError(str(error)) from error
            raise
