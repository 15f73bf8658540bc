"""Defines the index of a shard, with the byte range and checksum of each sample, and reads indexes from a store.

With the index, a reader finds a single sample of a tar as one range of bytes, and can verify these bytes alone. The
index comes from the store of the dataset and is not trusted: its digest must be the one in the manifest, and the range
of every number in it is checked before the number is used.
"""

import hashlib
import io
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt32

from emocap_shards.background import concurrently
from emocap_shards.errors import DamagedShard, NotFound
from emocap_shards.manifest import Shard, Shards
from emocap_shards.store import Store

_MOST_BYTES = 1 << 40
_MOST_SAMPLE_BYTES = 1 << 30
# Format 1.0 of .npy has a magic number, two bytes for the length of the header, and the header padded with blanks.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?s:..)\{'descr': \[\('key', '\|S(?P<width>[1-9]\d{0,3})'\), \('offset', '<i8'\), "
    rb"\('length', '<i8'\), \('crc32c', '<u4'\)\], 'fortran_order': False, 'shape': \((?P<samples>\d{1,12}),\), \} *\n"
)
# The kept indexes have at most this many samples together, about 100 bytes each.
KEPT_SAMPLES = 1 << 21
AT_ONCE = 16
# A row of an index is a key of at most 9999 bytes and three numbers.
MOST_ROW_BYTES, HEADER_BYTES = 10_020, 4096
MOST_INDEX_BYTES = 1 << 28
READS_AGAIN = 4


@dataclass(frozen=True, slots=True)
class Slot:
    """The byte range of one sample in its tar, [offset, offset + length), and the CRC-32C of these bytes.

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
    """The keys, byte ranges and checksums of the samples of one shard, as columns in the order of the tar.

    The file of an index is a .npy file with one structured array. Offsets and lengths are in bytes. In an index from
    `load_index`, the offsets ascend, the samples do not overlap, and the keys are valid UTF-8.
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
    """Returns the index of a shard from the bytes of the index file. Error messages name the shard as `shard`.

    Raises:
        DamagedShard: If the bytes are not an index, or its samples overlap or are not in the order of the tar.
    """
    try:
        rows = _rows(data)
        columns = [np.ascontiguousarray(rows[name]) for name in ("key", "offset", "length", "crc32c")]
        # A key that is not UTF-8 is found here, and not when its sample is read.
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
    """Returns the array in `data`, the bytes of a .npy file that `dump_index` wrote, without a copy.

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


class Indexes:
    """Reads the indexes of the shards of one dataset, and keeps the last used ones. Threads may share an instance."""

    def __init__(self, store: Store, shards: Shards) -> None:
        self._store = store
        self._shards = shards
        self._kept: OrderedDict[int, ShardIndex] = OrderedDict()
        self._samples = 0
        # It protects `_kept` and `_samples`, and is not held while indexes are read, so that threads read at the same
        # time. Two threads may then read the same index, which is harmless: both get the same content.
        self._lock = threading.Lock()

    def of(self, numbers: Sequence[int]) -> list[ShardIndex]:
        """Returns the index of each shard in `numbers`, in the same order.

        The number of a shard is its position in the manifest, counted from 0.

        Raises:
            DamagedShard: If an index is missing, its digest is not the one in the manifest, or it contradicts the
                manifest.
        """
        with self._lock:
            found = {number: self._kept[number] for number in numbers if number in self._kept}
        missing = [number for number in dict.fromkeys(numbers) if number not in found]
        found |= zip(missing, self._read(missing), strict=True)
        with self._lock:
            for number in numbers:
                self._keep(number, found[number])
        return [found[number] for number in numbers]

    def _read(self, numbers: Sequence[int]) -> list[ShardIndex]:
        read = partial(read_index, self._store)
        shards = [self._shards[number] for number in numbers]
        if self._store.is_near or len(shards) < 2:
            return list(map(read, shards))
        return concurrently(read, shards, at_once=AT_ONCE)

    def _keep(self, number: int, index: ShardIndex) -> None:
        if number not in self._kept:
            self._samples += len(index)
        self._kept[number] = index
        self._kept.move_to_end(number)
        while self._samples > KEPT_SAMPLES:
            self._samples -= len(self._kept.popitem(last=False)[1])


def read_index(store: Store, shard: Shard) -> ShardIndex:
    """Returns the index of a shard.

    Raises:
        DamagedShard: If the index is missing, its digest is not the one in the manifest, or it contradicts the
            manifest.
    """
    before: bytes | None = None
    data, is_right = b"", False
    try:
        # Bits that flip on the way are not damage, so wrong bytes are read again until they are the same twice.
        for _ in range(1 + READS_AGAIN):
            data = store.read(shard.index_path, limit_bytes=most_index_bytes(shard))
            is_right = hashlib.sha256(data).hexdigest() == shard.index_sha256
            if is_right or data == before:
                break
            before = data
    except NotFound as error:
        raise DamagedShard.at(shard.path, f"its index {shard.index_path} is missing") from error
    if not is_right:
        raise DamagedShard.at(shard.path, f"its index {shard.index_path} is not the one in the manifest")
    index = load_index(data, shard=shard.path)
    if len(index) != shard.samples:
        raise DamagedShard.at(shard.path, f"its index has {len(index)} samples, the manifest {shard.samples}")
    if index[len(index) - 1].stop > shard.bytes:
        raise DamagedShard.at(shard.path, f"its index goes beyond the {shard.bytes} bytes of the shard")
    return index


def most_index_bytes(shard: Shard) -> int:
    """Returns an upper bound on the size of a shard's index. A reader reads no more bytes than this.

    The bound follows from the number of samples in the manifest. A forged manifest cannot raise it above
    `MOST_INDEX_BYTES`.
    """
    return min(shard.samples * MOST_ROW_BYTES + HEADER_BYTES, MOST_INDEX_BYTES)
