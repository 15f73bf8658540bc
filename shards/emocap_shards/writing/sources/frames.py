"""Takes some frames of each video of a table or list, if the video is a folder of images."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from emocap_shards.errors import RecordError
from emocap_shards.writing.row import BadRow, LocalFile, SourceRow
from emocap_shards.writing.row_source import RowSource, left_out_of
from emocap_shards.writing.sources.folder import is_image, natural_order, split_name

CLIP = "clip"
"""The label that holds the key of the video from which a frame is taken."""


@dataclass(frozen=True, slots=True)
class FrameSource:
    """Replaces each row whose image is a folder by rows of `count` frames of it, at equal distances.

    The folder is cut into `count` equal parts, and the frame in the middle of each part is taken; with 1, it is the
    middle frame. A folder with fewer frames gives all of them. Each frame has the caption and the labels of its row,
    and the label `CLIP`, by which frames of one video can be grouped. Rows with other images are not changed.
    """

    source: RowSource
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise RecordError(f"frames={self.count}; at least one frame of each video is taken (--frames 1).")

    @property
    def left_out(self) -> Mapping[str, int]:
        return left_out_of(self.source)

    def rows(self) -> Iterator[SourceRow | BadRow]:
        for row in self.source.rows():
            folder = _folder_of(row)
            if folder is None or not isinstance(row, SourceRow) or not isinstance(row.image, LocalFile):
                yield row
            else:
                yield from self._frames(row, row.image, folder)

    def _frames(self, row: SourceRow, image: LocalFile, folder: str) -> Iterator[SourceRow | BadRow]:
        try:
            names = sorted(filter(is_image, os.listdir(folder)), key=natural_order)  # noqa: PTH208
        except OSError as error:
            yield BadRow(row.where, f"the folder cannot be read ({error.strerror})", file=image.name)
            return
        if not names or not isinstance(row.annotation, bytes):
            yield BadRow(row.where, "the folder has no images", file=image.name)
            return
        annotation: dict[str, Any] = orjson.loads(row.annotation)
        annotation["labels"] = {CLIP: row.key, **annotation.get("labels", {})}
        data = orjson.dumps(annotation)
        count = min(self.count, len(names))
        for number in range(count):
            name = names[(2 * number + 1) * len(names) // (2 * count)]
            stem, extension = split_name(name)
            frame = replace(image, path=f"{image.path.rstrip('/')}/{name}")
            yield SourceRow(row.where, f"{row.key}-{stem.replace('.', '_')}", frame, data, extension)


def _folder_of(row: SourceRow | BadRow) -> str | None:
    """Returns the real path of the row's image if it is a folder."""
    if not isinstance(row, SourceRow) or not isinstance(row.image, LocalFile):
        return None
    try:
        place = row.image.locate()
    except RecordError:  # `prepare` raises it again for this row.
        return None
    return place if os.path.isdir(place) else None  # noqa: PTH112
