"""Groups neighbouring samples of a shard into segments. A segment is fetched in one request, and the cache stores it as
one file.

A shard is divided into intervals of `SEGMENT_BYTES` bytes, and a segment contains the samples that begin in one
interval. So no sample is cut in two, and the segments of a shard are the same for every rank and every run (decision
13).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import google_crc32c
import numpy as np

from emocap_shards.index import ShardIndex, Slot
from emocap_shards.manifest import Shard
from emocap_shards.order import Ids

# The path, the first byte and the byte after the last one of a range that is requested from a store.
Span = tuple[str, int, int]

# Large enough that the latency and the cost of a request are small for its bytes. Small enough that a rank that needs
# a part of a shard reads few other bytes.
SEGMENT_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, eq=False)
class ShardRows:
    """Some samples of one shard; `rows` are their indices within the shard, in ascending order."""

    shard: Shard
    index: ShardIndex
    rows: Ids

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def starts(self) -> Ids:
        return self.index.offsets[self.rows]

    @property
    def stops(self) -> Ids:
        return self.starts + self.index.lengths[self.rows]

    @property
    def start(self) -> int:
        return int(self.index.offsets[self.rows[0]])

    @property
    def stop(self) -> int:
        last = self.rows[-1]
        return int(self.index.offsets[last] + self.index.lengths[last])

    def slots(self) -> list[Slot]:
        index, rows = self.index, self.rows
        columns = (index.encoded_keys, index.offsets, index.lengths, index.crc32c)
        values = zip(*(column[rows].tolist() for column in columns), strict=True)
        return [Slot(key.decode(), offset, length, crc32c) for key, offset, length, crc32c in values]

    def runs(self, gap_bytes: int) -> tuple[list[Span], list[tuple[int, int, int]]]:
        """Joins neighbouring samples into ranges of bytes, one for each request. If more than `gap_bytes` bytes lie
        between two samples, the second one begins a new range.

        Returns:
            The ranges, and for each sample (index of its range, start and stop within the range).
        """
        starts, stops = self.starts, self.stops
        # `breaks` are the rows that begin a new range, `run` is the number of each row's range, and `origin` the first
        # byte of that range.
        breaks = np.flatnonzero(starts[1:] - stops[:-1] > gap_bytes) + 1
        heads, tails = np.append(0, breaks), np.append(breaks, len(starts)) - 1
        ranges = zip(starts[heads].tolist(), stops[tails].tolist(), strict=True)
        run = np.searchsorted(breaks, np.arange(len(starts)), side="right")
        origin = starts[heads][run]
        cuts = zip(run.tolist(), (starts - origin).tolist(), (stops - origin).tolist(), strict=True)
        return [(self.shard.path, start, stop) for start, stop in ranges], list(cuts)

    def segments(self) -> Iterator[tuple["Segment", "ShardRows"]]:
        """Yields (segment, part) for each segment that contains some of these samples. `part` holds the samples of this
        object that lie in the segment.
        """
        # Rows are ascending, so the rows of one segment are neighbours, among the wanted ones and among all of the
        # shard.
        numbers = self.starts // SEGMENT_BYTES
        every = self.index.offsets // SEGMENT_BYTES
        for rows in np.split(self.rows, np.flatnonzero(np.diff(numbers)) + 1):
            part = ShardRows(self.shard, self.index, rows)
            number = part.start // SEGMENT_BYTES
            first, last = np.searchsorted(every, [number, number + 1])
            yield Segment(ShardRows(self.shard, self.index, np.arange(first, last)), number), part


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """All samples of a shard that begin in the same interval of `SEGMENT_BYTES` bytes; `number` is the index of the
    interval, from 0.
    """

    samples: ShardRows
    number: int

    @property
    def name(self) -> str:
        """The name of the segment's file in a cache, made of the shard's digest, `SEGMENT_BYTES` and `number`.

        Equal shards in two places therefore share a file, and another `SEGMENT_BYTES` gives another name.
        """
        return f"{self.samples.shard.sha256}-{SEGMENT_BYTES}-{self.number:06d}"

    @property
    def span(self) -> Span:
        return self.samples.shard.path, self.samples.start, self.samples.stop

    @property
    def size_bytes(self) -> int:
        return self.samples.stop - self.samples.start

    def places(self, wanted: ShardRows) -> list[tuple[int, int]]:
        """Returns, for each wanted sample, the position of its first byte in the segment, and its length."""
        starts = (wanted.starts - self.samples.start).tolist()
        return list(zip(starts, (wanted.stops - wanted.starts).tolist(), strict=True))

    def pieces(self, wanted: ShardRows, data: bytes) -> list[bytes]:
        """Returns the bytes of each wanted sample, cut out of `data`, the bytes of the segment. If `data` is too short,
        some samples are incomplete.
        """
        return [data[start : start + length] for start, length in self.places(wanted)]

    def is_intact(self, data: bytes) -> bool:
        """Returns whether every sample in `data`, the bytes of the segment, has the checksum that the shard's index
        states.
        """
        sums = self.samples.index.crc32c[self.samples.rows].tolist()
        return [google_crc32c.value(block) for block in self.pieces(self.samples, data)] == sums
