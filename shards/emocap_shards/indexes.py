"""Reads the indexes of shards when they are needed, several at a time, and keeps the recently used ones in memory."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from emocap_shards.background import concurrently
from emocap_shards.errors import DamagedShard, NotFound
from emocap_shards.index import ShardIndex, load_index
from emocap_shards.manifest import Manifest
from emocap_shards.shard import Shard
from emocap_shards.store import Store

# The kept indexes have at most this many samples together, about 100 bytes each.
KEPT_SAMPLES = 1 << 21
AT_ONCE = 16
# A row of an index is a key of at most 9999 bytes and three numbers.
MOST_ROW_BYTES, HEADER_BYTES = 10_020, 4096
MOST_INDEX_BYTES = 1 << 28
READS_AGAIN = 4


class Indexes:
    """Reads and keeps the indexes of the shards of one dataset. Threads may share an instance."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store = store
        self._manifest = manifest
        self._kept: OrderedDict[int, ShardIndex] = OrderedDict()
        self._samples = 0
        self._lock = threading.Lock()

    def of(self, numbers: Sequence[int]) -> list[ShardIndex]:
        """Returns the indexes of the shards with these numbers in the manifest, in the given order.

        Raises:
            DamagedShard: If an index is missing, or differs from the one that the manifest names.
        """
        with self._lock:
            found = {number: self._kept[number] for number in numbers if number in self._kept}
        missing = [number for number in dict.fromkeys(numbers) if number not in found]
        found |= zip(missing, self._read_all(missing), strict=True)
        with self._lock:
            for number in numbers:
                self._keep(number, found[number])
        return [found[number] for number in numbers]

    def _read_all(self, numbers: Sequence[int]) -> list[ShardIndex]:
        if self._store.is_near or len(numbers) < 2:
            return [self._read(number) for number in numbers]
        return concurrently(self._read, numbers, at_once=AT_ONCE)

    def _read(self, number: int) -> ShardIndex:
        return read_index(self._store, self._manifest.shards[number])

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

    def is_right(data: bytes) -> bool:
        return hashlib.sha256(data).hexdigest() == shard.index_sha256

    def read() -> bytes:
        return store.read(shard.index_path, limit_bytes=most_index_bytes(shard))

    try:
        data = read()
        if not is_right(data):
            data = settled(data, read, is_right)
    except NotFound as error:
        raise DamagedShard.at(shard.path, f"its index {shard.index_path} is missing") from error
    if not is_right(data):
        raise DamagedShard.at(shard.path, f"its index {shard.index_path} is not the one in the manifest")
    index = load_index(data, shard=shard.path)
    if len(index) != shard.samples:
        raise DamagedShard.at(shard.path, f"its index has {len(index)} samples, the manifest {shard.samples}")
    if index[len(index) - 1].stop > shard.bytes:
        raise DamagedShard.at(shard.path, f"its index goes beyond the {shard.bytes} bytes of the shard")
    return index


def most_index_bytes(shard: Shard) -> int:
    """Returns an upper bound on the size of a shard's index, used as the limit of a read.

    A forged manifest cannot raise the bound above `MOST_INDEX_BYTES`.
    """
    return min(shard.samples * MOST_ROW_BYTES + HEADER_BYTES, MOST_INDEX_BYTES)


def settled(found: bytes, read: Callable[[], bytes], is_right: Callable[[bytes], bool]) -> bytes:
    """Reads an object again after wrong bytes were `found`, because bits that flip on the way are not damage.

    It stops when the bytes are right, when they are wrong in the same way twice, or after `READS_AGAIN` reads. The
    bytes of the last read are returned.
    """
    for _ in range(READS_AGAIN):
        before, found = found, read()
        if is_right(found) or found == before:
            break
    return found
