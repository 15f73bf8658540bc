"""Writes prepared samples, in order, into shards of a bounded size, and uploads the shards."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from emocap_shards.errors import RecordError
from emocap_shards.manifest import Shard
from emocap_shards.shard import MOST_SAMPLES
from emocap_shards.store import Store
from emocap_shards.writing.journal import Journal, ShardOriginBuilder
from emocap_shards.writing.prepare import Prepared
from emocap_shards.writing.row import BadRow
from emocap_shards.writing.tar import TarFile, tar_bytes
from emocap_shards.writing.uploads import Uploads

_TAR_END_BYTES = 1024


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
        return len(tar.spans) >= min(self.samples or MOST_SAMPLES, MOST_SAMPLES)

    def has_room(self, tar: TarFile, sample: Prepared) -> bool:
        """Returns whether the sample fits into the tar; any sample fits into an empty tar."""
        end = tar.stop + tar_bytes(sample.image, sample.annotation) + _TAR_END_BYTES
        return self.max_bytes is None or not tar.spans or end <= self.max_bytes


@contextmanager
def _disk() -> Generator[None]:
    """Turns an error of the local disk into a `RecordError` that names the folder of temporary files."""
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        raise RecordError(f"the disk of {folder} fails ({error.strerror}); free some of it, or set TMPDIR.") from error


class ShardWriter:
    """Writes samples into one local tar after the other, and uploads each complete tar in the background.

    `first` is the number of the first shard, which is above 0 if the pack resumes.
    """

    def __init__(self, store: Store, journal: Journal, size: ShardSize, *, first: int) -> None:
        self._size = size
        self._next = first
        self._folder = tempfile.TemporaryDirectory(prefix="emocap-pack-")
        self._uploads = Uploads(store, journal)
        self._tar: TarFile | None = None
        self._stretch = ShardOriginBuilder()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if self._tar:
                with _disk():
                    self._tar.close()
        finally:
            self._uploads.__exit__(*error)
            self._folder.cleanup()

    @property
    def done(self) -> list[Shard]:
        """Returns the shards that are known to be in the store."""
        return self._uploads.done

    def add(self, sample: Prepared) -> None:
        """Writes the sample into the current shard, or into the next shard if it does not fit."""
        if self._tar and not self._size.has_room(self._tar, sample):
            self._hand_over(self._tar)
        if not self._tar:
            self._tar = TarFile(Path(self._folder.name, f"{self._next}.tar"))
        with _disk():
            self._tar.add(sample.key, sample.extension, sample.image, sample.annotation)
        self._stretch.add(sample)
        if self._size.is_full(self._tar):
            self._hand_over(self._tar)

    def pass_over(self, result: Prepared | BadRow) -> None:
        """Records a row that is left out. The journal needs it, because it belongs to the rows of the current shard."""
        self._stretch.add(result)

    def finish(self) -> list[Shard]:
        """Closes the last shard and waits until all shards are stored."""
        if self._tar:
            self._hand_over(self._tar)
        return self._uploads.finish()

    def _hand_over(self, tar: TarFile) -> None:
        stretch, number = self._stretch.done(), self._next
        self._tar, self._stretch, self._next = None, ShardOriginBuilder(), number + 1
        with _disk():
            tar.close()
        self._uploads.submit(number, tar, stretch)
