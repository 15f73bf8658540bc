"""Neighbouring samples of a shard that travel together: what one request brings, and what the cache keeps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np

from emocap_shards.index import ShardIndex, Slot
from emocap_shards.order import Ids
from emocap_shards.shard import Shard

# Path, first byte, and the byte behind the last one: what a store is asked for.
Span = tuple[str, int, int]

# Large enough that a request's latency and cost are small beside its bytes, small enough that a rank that wants a
# part of a shard reads little else.
SEGMENT_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, eq=False)
class ShardRows:
    """Some samples of one shard: `rows` counts within the shard and ascends."""

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
        """Ranges of the shard, cut where more than `gap_bytes` lie between two samples, and how to take them apart.

        Returns:
            The ranges, and for each sample (number of its range, start and stop within it).
        """
        starts, stops = self.starts, self.stops
        breaks = np.flatnonzero(starts[1:] - stops[:-1] > gap_bytes) + 1
        heads, tails = np.append(0, breaks), np.append(breaks, len(starts)) - 1
        ranges = zip(starts[heads].tolist(), stops[tails].tolist(), strict=True)
        run = np.searchsorted(breaks, np.arange(len(starts)), side="right")
        origin = starts[heads][run]
        cuts = zip(run.tolist(), (starts - origin).tolist(), (stops - origin).tolist(), strict=True)
        return [(self.shard.path, start, stop) for start, stop in ranges], list(cuts)

    def segments(self) -> Iterator[tuple["Segment", "ShardRows"]]:
        """The segments that hold these samples, each with the ones that it holds."""
        numbers = self.starts // SEGMENT_BYTES
        every = self.index.offsets // SEGMENT_BYTES
        for part in self._cut(np.flatnonzero(np.diff(numbers)) + 1):
            number = part.start // SEGMENT_BYTES
            first, last = np.searchsorted(every, [number, number + 1])
            yield Segment(ShardRows(self.shard, self.index, np.arange(first, last)), number), part

    def pieces(self, data: bytes) -> list[bytes]:
        """The bytes of each sample out of the shard's bytes [start, stop), or as much as there is of them."""
        bounds = zip((self.starts - self.start).tolist(), (self.stops - self.start).tolist(), strict=True)
        return [data[start:stop] for start, stop in bounds]

    def _cut(self, places: Sequence[int] | Ids) -> Iterator["ShardRows"]:
        return (ShardRows(self.shard, self.index, rows) for rows in np.split(self.rows, places) if len(rows))


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """All samples of a shard that begin in the same `SEGMENT_BYTES` of it."""

    samples: ShardRows
    number: int

    @property
    def name(self) -> str:
        """By content and cut, so that equal shards at two places are one, and another `SEGMENT_BYTES` another."""
        return f"{self.samples.shard.sha256}-{SEGMENT_BYTES}-{self.number:06d}"

    @property
    def span(self) -> Span:
        return self.samples.shard.path, self.samples.start, self.samples.stop

    @property
    def size_bytes(self) -> int:
        return self.samples.stop - self.samples.start

    def places(self, wanted: ShardRows) -> list[tuple[int, int]]:
        """First byte within the segment, and length, of some of its samples."""
        starts = (wanted.starts - self.samples.start).tolist()
        return list(zip(starts, (wanted.stops - wanted.starts).tolist(), strict=True))

    def pieces(self, wanted: ShardRows, data: bytes) -> list[bytes]:
        """The bytes of some of its samples out of its own, or as much as there is of them."""
        return [data[start : start + length] for start, length in self.places(wanted)]

    def is_intact(self, data: bytes) -> bool:
        """Whether every sample in the segment's bytes is what was written."""
        sums = self.samples.index.crc32c[self.samples.rows].tolist()
        return [google_crc32c.value(block) for block in self.samples.pieces(data)] == sums
