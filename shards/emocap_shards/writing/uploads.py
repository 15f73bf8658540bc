"""Uploads finished tars to the store in the background: while one tar is uploaded, the next one is written."""

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from emocap_shards.errors import RecordError
from emocap_shards.index import dump_index
from emocap_shards.indexes import MOST_INDEX_BYTES
from emocap_shards.manifest import Shard, refuse_dataset
from emocap_shards.store import Store
from emocap_shards.writing.journal import Journal, JournalEntry, ShardOrigin
from emocap_shards.writing.tar import TarFile, seal

_WAITING = 2


class Uploads:
    """Uploads shards in their order with one thread. At most two shards wait, so at most three tars are on the local
    disk.

    Leaving the `with` block waits for the submitted shards, also after an error.
    """

    def __init__(self, store: Store, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._pending: deque[Future[Shard]] = deque()
        self.done: list[Shard] = []

    def __enter__(self) -> "Uploads":
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(wait=True)

    def submit(self, number: int, tar: TarFile, stretch: ShardOrigin) -> None:
        """Submits a closed tar, which is deleted once it is in the store. The call blocks while more than two shards
        wait.

        Raises:
            StoreError: If an earlier shard could not be stored.
            ManifestError: If another pack has written a dataset to the store in the meantime.
        """
        self._pending.append(self._thread.submit(self._store_shard, number, tar, stretch))
        while len(self._pending) > _WAITING or (self._pending and self._pending[0].done()):
            self._collect()

    def finish(self) -> list[Shard]:
        """Waits until the last shard is stored, and returns all shards."""
        while self._pending:
            self._collect()
        return self.done

    def _collect(self) -> None:
        self.done.append(self._pending.popleft().result())

    def _store_shard(self, number: int, tar: TarFile, stretch: ShardOrigin) -> Shard:
        """Uploads a shard, its index and then its journal entry. It runs in the thread."""
        sealed = seal(tar.path, tar.spans)
        index = dump_index(sealed.slots)
        if len(index) > MOST_INDEX_BYTES:
            raise RecordError(f"the index of shard {number} has {len(index)} bytes: put fewer samples into a shard.")
        path, index_path = f"shard-{number:06d}.tar", f"shard-{number:06d}.npy"
        shard = Shard(
            path, len(sealed.slots), sealed.bytes, sealed.sha256, index_path, hashlib.sha256(index).hexdigest()
        )
        refuse_dataset(self._store)
        self._store.put_file(path, tar.path)
        self._store.put(index_path, index)
        self._journal.put(number, JournalEntry(shard, stretch))
        tar.path.unlink()
        return shard
