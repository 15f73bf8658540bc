"""Defines the index of a shard: the place and the checksum of each sample in the tar."""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt32

from emocap_shards.errors import DamagedShard

_MOST_BYTES = 1 << 40
_MOST_SAMPLE_BYTES = 1 << 30
# Format 1.0 of .npy has a magic number, two bytes for the length of the header, and the header padded with blanks.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?s:..)\{'descr': \[\('key', '\|S(?P<width>[1-9]\d{0,3})'\), \('offset', '<i8'\), "
    rb"\('length', '<i8'\), \('crc32c', '<u4'\)\], 'fortran_order': False, 'shape': \((?P<samples>\d{1,12}),\), \} *\n"
)


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one sample in its tar, bytes [offset, offset + length), and the CRC-32C of these bytes.

    The bytes reach from the header of the sample's first member to the padding of its last member.
    """

    key: str
    offset: int
    length: int
    crc32c: int

    @property
    def stop(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True, eq=False)
class ShardIndex:
    """The slots of one shard, stored as columns in the order of the tar.

    The file of an index is one structured array in a .npy.
    """

    encoded_keys: np.ndarray
    offsets: Int64[np.ndarray, " samples"]
    lengths: Int64[np.ndarray, " samples"]
    crc32c: UInt32[np.ndarray, " samples"]

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[Slot]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> Slot:
        return Slot(
            self.encoded_keys[row].decode(), int(self.offsets[row]), int(self.lengths[row]), int(self.crc32c[row])
        )


def dump_index(slots: Sequence[Slot]) -> bytes:
    """Returns the bytes of an index file; equal slots give equal bytes."""
    width = max((len(slot.key.encode()) for slot in slots), default=1)
    rows = [(slot.key.encode(), slot.offset, slot.length, slot.crc32c) for slot in slots]
    file = io.BytesIO()
    np.save(file, np.array(rows, dtype=_dtype(width)), allow_pickle=False)
    return file.getvalue()


def load_index(data: bytes, *, shard: str) -> ShardIndex:
    """Returns the index of `shard` (named in errors) from the bytes of its file.

    Raises:
        DamagedShard: If the bytes are not an index, or its samples overlap or are not in the order of the tar.
    """
    try:
        rows = _rows(data)
        columns = [np.ascontiguousarray(rows[name]) for name in ("key", "offset", "length", "crc32c")]
        for key in columns[0]:
            key.decode()
        index = ShardIndex(*columns)
    except ValueError as error:
        raise DamagedShard.at(shard, f"its index cannot be read ({error})") from error
    starts, lengths = index.offsets, index.lengths
    # Each number is bounded before the sum is computed, because int64 overflows silently.
    bounded = ((starts >= 0) & (starts < _MOST_BYTES) & (lengths > 0) & (lengths <= _MOST_SAMPLE_BYTES)).all()
    if not bounded or (starts[1:] < (starts + lengths)[:-1]).any():
        raise DamagedShard.at(shard, "the samples of its index overlap, or are not in the order of the tar")
    return index


def _rows(data: bytes) -> np.ndarray:
    """Returns the array of a .npy file that `dump_index` wrote, without a copy.

    NumPy's own reader is not used here, because it evaluates the header as Python literals and allocates as much memory
    as the header requests.
    """
    found = _HEADER.match(data)
    if not found:
        raise ValueError("it does not begin with the header of an index")
    rows = np.frombuffer(data, dtype=_dtype(int(found["width"])), offset=found.end())
    if len(rows) != int(found["samples"]):
        raise ValueError(f"its header says {int(found['samples'])} samples, but it holds {len(rows)}")
    return rows


def _dtype(width: int) -> np.dtype[Any]:
    return np.dtype([("key", f"S{width}"), ("offset", "<i8"), ("length", "<i8"), ("crc32c", "<u4")])
