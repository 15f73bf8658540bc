"""Writes records into shards, for code that makes its samples itself. Tables and folders are packed by
`writing.packing`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from emocap_shards.annotation import dump_annotation
from emocap_shards.decode import checked_header
from emocap_shards.errors import AnnotationError, ImageError
from emocap_shards.manifest import Manifest
from emocap_shards.sample import Record
from emocap_shards.writing.packing import PackConfig, PackProgress, pack
from emocap_shards.writing.row import BadRow, SourceRow
from emocap_shards.writing.shards import ShardSize


def write_shards(
    records: Iterable[Record],
    url: str | Path,
    *,
    samples_per_shard: int = 1000,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Writes a dataset; equal records in equal order give equal bytes.

    While one shard is written, at most two finished shards wait for their upload or are being uploaded. All keys are
    kept in memory. An interrupted call leaves shards, and a journal that lists the finished ones. Readers do not see
    these shards, because there is no manifest. A second call with the same records keeps the finished shards.

    Args:
        records: The samples, in their order.
        url: The new dataset.
        samples_per_shard: Samples in each shard but the last.
        progress: Called with the number of samples in finished shards, whenever this number grows.

    Returns:
        The manifest that was written.

    Raises:
        ManifestError: If there is a dataset at the URL already.
        RecordError: If there is no record, one of them cannot be written (the message names its key), or the URL
            holds an unfinished dataset of other records.

    Example:
        ```python
        caption = Caption("a joyful face", ("raised corners of the mouth",), "a joyful face with a broad smile")
        record = Record("face-0001", Path("face.jpg").read_bytes(), "jpg", caption, {"emotion": "joy"})
        write_shards([record], "data/train")
        ```
    """
    size = ShardSize(samples_per_shard)
    reported = 0

    def report(now: PackProgress) -> None:
        nonlocal reported
        # `pack` reports every row; this caller is interested in stored shards alone.
        if progress and now.stored > reported:
            progress(now.stored)
            reported = now.stored

    return pack(_Records(records), url, PackConfig(size), progress=report).manifest


@dataclass(frozen=True, slots=True)
class _Records:
    records: Iterable[Record]

    def rows(self) -> Iterator[SourceRow | BadRow]:
        return map(_row, self.records)


def _row(record: Record) -> SourceRow | BadRow:
    where = f"record {record.key!r}"
    try:
        checked_header(record.image, record.extension)
        annotation = dump_annotation(record.caption, record.labels, record.further)
    except (AnnotationError, ImageError) as error:
        return BadRow(where, str(error))
    return SourceRow(where, record.key, record.image, annotation, record.extension)
