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


@dataclass(frozen=True, slots=True, eq=False)
class ShardIndex:
    """The slots of one shard, in the order of the tar. On disk: one structured array in a .npy file."""

    keys: tuple[str, ...]
    offsets: Int64[np.ndarray, " samples"]
    lengths: Int64[np.ndarray, " samples"]
    crc32c: UInt32[np.ndarray, " samples"]

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Slot]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> Slot:
        return Slot(self.keys[row], int(self.offsets[row]), int(self.lengths[row]), int(self.crc32c[row]))


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
        DamagedShard: If the bytes are no index.
    """
    try:
        rows = np.load(io.BytesIO(data), allow_pickle=False)
        keys = tuple(key.decode() for key in rows["key"].tolist())
        columns = [np.ascontiguousarray(rows[name]) for name in ("offset", "length", "crc32c")]
    except (ValueError, EOFError, IndexError, OSError) as error:
        raise DamagedShard.at(shard, f"its index cannot be read ({error})") from error
    return ShardIndex(keys, *columns)
