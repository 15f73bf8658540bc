"""Writes prepared samples, in order, into shards of a bounded size, and uploads the shards."""

import hashlib
import tempfile
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from emocap_shards.errors import RecordError
from emocap_shards.index import MOST_INDEX_BYTES, dump_index
from emocap_shards.manifest import MOST_SAMPLES, Shard, refuse_dataset
from emocap_shards.store import Store
from emocap_shards.writing.journal import Journal, JournalEntry, ShardOrigin, ShardOriginBuilder
from emocap_shards.writing.prepare import Prepared
from emocap_shards.writing.row import BadRow
from emocap_shards.writing.tar import TarFile, seal

_WAITING = 2


@dataclass(frozen=True, slots=True)
class ShardSize:
    """Limits the number of samples in a shard and the bytes of its complete tar. None sets no limit.

    A shard has at least one sample, even if that sample alone exceeds `max_bytes`.
    """

    samples: int | None = 1000
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.samples is not None and not 1 <= self.samples <= MOST_SAMPLES:
            raise RecordError(f"samples_per_shard={self.samples}, but a shard holds 1 to {MOST_SAMPLES:,} samples.")
        if self.samples is None and self.max_bytes is None:
            raise RecordError("a shard needs a limit: give its samples, its bytes or both.")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise RecordError(f"a shard of {self.max_bytes} bytes cannot hold a sample; give at least 1 MB.")

    def is_full(self, tar: TarFile) -> bool:
        """Returns whether the tar has as many samples as a shard may have."""
        return len(tar.spans) >= (self.samples or MOST_SAMPLES)

    def has_room(self, tar: TarFile, sample: Prepared) -> bool:
        """Returns whether the sample fits into the tar; any sample fits into an empty tar."""
        if self.max_bytes is None or not tar.spans:
            return True
        return tar.bytes_with(sample.image, sample.annotation) <= self.max_bytes


@contextmanager
def _disk() -> Generator[None]:
    """Turns an error of the local disk into a `RecordError` that names the folder of temporary files."""
    try:
        yield
    except OSError as error:
        folder = tempfile.tempdir or "temporary files"  # None if no folder can be used.
        raise RecordError(f"the disk of {folder} fails ({error.strerror}); free some of it, or set TMPDIR.") from error


class ShardWriter:
    """Writes samples into one local tar after the other, and uploads each complete tar in the background.

    One thread uploads the shards in their order. While one shard is written, at most two others wait for their upload
    or are being uploaded, so at most three tars are on the local disk. The end of the `with` block waits for these
    uploads, also after an error.

    `first` is the number of the first shard that is written; it is above 0 if an interrupted pack resumes. `done` lists
    the shards that are known to be in the store, and `on_stored` is called with each of them in the calling thread.

    If an upload fails, a later call of `add` or `finish` raises its error. This is usually a `StoreError`. It is a
    `ManifestError` if another pack has written a dataset to the store in the meantime, and a `RecordError` if the index
    of the shard is too large. An error of the local disk is a `RecordError` too.
    """

    def __init__(
        self, store: Store, journal: Journal, size: ShardSize, *, first: int, on_stored: Callable[[Shard], None]
    ) -> None:
        self._store = store
        self._journal = journal
        self._size = size
        self._next = first
        self._on_stored = on_stored
        with _disk():
            self._folder = tempfile.TemporaryDirectory(prefix="emocap-pack-")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._pending: deque[Future[Shard]] = deque()
        self._tar: TarFile | None = None
        self._origin = ShardOriginBuilder()
        self._without_caption = 0  # Samples of the current tar.
        self.done: list[Shard] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if self._tar:
                with _disk():
                    self._tar.close()
        finally:
            # The uploads read from the folder, so it is deleted after they have ended.
            self._thread.shutdown(wait=True)
            with _disk():
                self._folder.cleanup()

    def add(self, sample: Prepared) -> None:
        """Writes the sample into the current shard, or into the next shard if it does not fit."""
        # The sample that does not fit begins the next shard. Rows that were left out before it belong to the shard that
        # is closed here.
        if self._tar and not self._size.has_room(self._tar, sample):
            self._hand_over(self._tar)
        with _disk():
            if not self._tar:
                self._tar = TarFile(Path(self._folder.name, f"{self._next}.tar"))
            self._tar.add(sample.key, sample.extension, sample.image, sample.annotation)
        self._origin.add(sample)
        self._without_caption += not sample.has_caption
        if self._size.is_full(self._tar):
            self._hand_over(self._tar)

    def pass_over(self, result: Prepared | BadRow) -> None:
        """Records a row that is left out. The journal counts it among the rows of the current shard."""
        self._origin.add(result)

    def finish(self) -> None:
        """Closes the last shard and waits until all shards are stored."""
        if self._tar:
            self._hand_over(self._tar)
        while self._pending:
            self._collect()

    def _hand_over(self, tar: TarFile) -> None:
        """Closes the tar and submits it for upload. Then waits until at most two shards remain to be stored."""
        origin, number = self._origin.done(), self._next
        bare = self._without_caption
        self._tar, self._origin, self._next, self._without_caption = None, ShardOriginBuilder(), number + 1, 0
        with _disk():
            tar.close()
        self._pending.append(self._thread.submit(self._upload, number, tar, origin, bare))
        # Uploads that have ended are collected at once, for the report of progress; others only if too many wait.
        while len(self._pending) > _WAITING or (self._pending and self._pending[0].done()):
            self._collect()

    def _collect(self) -> None:
        self.done.append(self._pending.popleft().result())
        self._on_stored(self.done[-1])

    def _upload(self, number: int, tar: TarFile, origin: ShardOrigin, without_caption: int) -> Shard:
        """Stores a shard, its index and then its journal entry, and deletes the tar. It runs in the upload thread."""
        with _disk():
            sealed = seal(tar.path, tar.spans)
        index = dump_index(sealed.slots)
        if len(index) > MOST_INDEX_BYTES:
            raise RecordError(f"the index of shard {number} has {len(index)} bytes: put fewer samples into a shard.")
        path, index_path = f"shard-{number:06d}.tar", f"shard-{number:06d}.npy"
        digest = hashlib.sha256(index).hexdigest()
        shard = Shard(path, len(sealed.slots), sealed.bytes, sealed.sha256, index_path, digest, without_caption)
        # Another pack may have finished at this URL meanwhile, and its shards have the same names.
        refuse_dataset(self._store)
        # The journal entry is the last of the three: after a crash before it, the shard is written again.
        self._store.put_file(path, tar.path)
        self._store.put(index_path, index)
        self._journal.put(number, JournalEntry(shard, origin))
        with _disk():
            tar.path.unlink()
        return shard
