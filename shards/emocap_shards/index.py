"""Where each sample of a shard lies, and the checksum of its bytes."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt32

from emocap_shards.errors import DamagedShard


@dataclass(frozen=True, slots=True)
class Slot:
    """One sample in its tar: bytes [offset, offset + length), first header to last padding; CRC-32C of them."""

    key: str
    offset: int
    length: int
    crc32c: int

    @property
    def stop(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True, eq=False)
class ShardIndex:
    """The slots of one shard, in the order of the tar. On disk: one structured array in a .npy file."""

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
    """Equal slots are equal bytes."""
    width = max((len(slot.key.encode()) for slot in slots), default=1)
    kind = [("key", f"S{width}"), ("offset", "<i8"), ("length", "<i8"), ("crc32c", "<u4")]
    rows = [(slot.key.encode(), slot.offset, slot.length, slot.crc32c) for slot in slots]
    file = io.BytesIO()
    np.save(file, np.array(rows, dtype=kind), allow_pickle=False)
    return file.getvalue()


def load_index(data: bytes, *, shard: str) -> ShardIndex:
    """The index of `shard` (named in errors) from the bytes of its file.

    Raises:
        DamagedShard: If the bytes are no index, or its samples do not follow one another.
    """
    try:
        rows = _rows(data)
        columns = [np.ascontiguousarray(rows[name]) for name in ("key", "offset", "length", "crc32c")]
        for key in columns[0]:
            key.decode()
        index = ShardIndex(*columns)
        ends = index.offsets + index.lengths
    except (ValueError, TypeError, AttributeError, EOFError, IndexError) as error:
        raise DamagedShard.at(shard, f"its index cannot be read ({error})") from error
    if (
        (np.diff(index.offsets, prepend=0) < 0).any()
        or (index.lengths < 1).any()
        or (index.offsets[1:] < ends[:-1]).any()
    ):
        raise DamagedShard.at(shard, "its index does not go forward through the tar")
    return index


def _rows(data: bytes) -> np.ndarray:
    """The array of a .npy file without a copy, and without the room that a false header asks for."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("it is no .npy file of version 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    rows = np.frombuffer(data, dtype=dtype, offset=file.tell())
    if shape != rows.shape:
        raise ValueError(f"its header says {shape} samples and it holds {rows.shape}")
    return rows
