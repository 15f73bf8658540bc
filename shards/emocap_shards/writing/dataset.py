"""Our own datasets as a source: every sample checked against its checksum, read ahead while others are written."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from emocap_shards.errors import DamagedSample, DamagedShard, RecordError
from emocap_shards.manifest import Manifest, read_manifest
from emocap_shards.order import Ids, ShardLayout, permutation
from emocap_shards.reader import Reader
from emocap_shards.sample import Encoded
from emocap_shards.store import open_store
from emocap_shards.writing.row import BadRow, SourceRow

_TOGETHER_BYTES = 1 << 23
_AHEAD = 2
_MOST_SHUFFLED = 1 << 29  # the order takes 16 bytes for each while it is made


@dataclass(frozen=True, slots=True)
class DatasetSource:
    """The samples of one or more datasets, one behind the other, or in one order shuffled over all of them.

    In memory stand up to three groups of some 8 MiB. Shuffled, each sample is a read of its own, many at a time.
    A damaged sample is a bad row, and so is each sample of a shard that is missing.
    """

    urls: tuple[str, ...]
    manifests: tuple[Manifest, ...]
    seed: int | None = None

    @classmethod
    def open(cls, urls: Sequence[str], *, seed: int | None = None) -> "DatasetSource":
        """Reads the manifests.

        Raises:
            ManifestError: If there is no dataset at a URL.
            RecordError: If the seed is negative, or there is no URL.
        """
        if not urls:
            raise RecordError("there is no dataset to read: name the new dataset behind the old ones.")
        if seed is not None and seed < 0:
            raise RecordError(f"seed={seed}, but a seed is 0 or more.")
        manifests = tuple(map(read_manifest, urls))
        total = sum(manifest.samples for manifest in manifests)
        if seed is not None and total > _MOST_SHUFFLED:
            cure = f"{_MOST_SHUFFLED:,} are the most; shuffle parts of them, or check the manifests"
            raise RecordError(f"{total:,} samples cannot be shuffled in memory: {cure}.")
        return cls(tuple(urls), manifests, seed)

    @property
    def total(self) -> int | None:
        return sum(manifest.samples for manifest in self.manifests)

    def rows(self) -> Iterator[SourceRow | BadRow]:
        for encoded in self.encoded():
            if isinstance(encoded, DamagedSample):
                yield BadRow("", str(encoded).rstrip("."))
            else:
                where = f"sample {encoded.key!r} of {self._url(encoded.index)}"
                yield SourceRow(where, encoded.key, encoded.image, encoded.annotation, encoded.extension)

    def encoded(self) -> Iterator[Encoded | DamagedSample]:
        """The samples as they lie in the shards, or what is wrong with one.

        Raises:
            StoreError: If a store cannot be read.
        """
        parts = zip(self.urls, self.manifests, self._firsts.tolist(), strict=False)
        readers = [Reader(open_store(url), manifest, first=first, place=f"{url}/") for url, manifest, first in parts]
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
            waiting: deque[Future[list[Encoded | DamagedSample]]] = deque()
            groups = self._groups()
            while True:
                for ids in islice(groups, _AHEAD + 1 - len(waiting)):
                    waiting.append(thread.submit(self._fetch, readers, ids))
                if not waiting:
                    return
                yield from waiting.popleft().result()

    @property
    def _firsts(self) -> Ids:
        return np.concatenate([[0], np.cumsum([manifest.samples for manifest in self.manifests])]).astype(np.int64)

    def _url(self, index: int) -> str:
        return self.urls[int(np.searchsorted(self._firsts, index, side="right")) - 1]

    def _groups(self) -> Iterator[Ids]:
        """All ids, counted over all datasets, in groups of some megabytes by the mean size."""
        total = int(self._firsts[-1])
        mean = sum(manifest.total_bytes for manifest in self.manifests) / total
        size = max(1, min(2048, int(_TOGETHER_BYTES / mean)))
        starts = range(0, total, size)
        if self.seed is None:
            return (np.arange(start, min(start + size, total)) for start in starts)
        order = permutation(self.seed, 0, 0, total)
        return (order[start : start + size] for start in starts)

    def _read(self, reader: Reader, manifest: Manifest, ids: Ids) -> list[Encoded | DamagedSample]:
        """What the reader fetches; a shard that it cannot read takes none but its own samples along."""
        try:
            return reader.fetch(ids)
        except DamagedShard as error:
            shards = ShardLayout(manifest.counts).shard_of(ids)
            if (shards == shards[0]).all():
                return [DamagedSample(f"sample {index}: {error}", shard=error.shard) for index in ids.tolist()]
        found: dict[int, Encoded | DamagedSample] = {}
        for shard in np.unique(shards).tolist():
            own = ids[shards == shard]
            found |= zip(own.tolist(), self._read(reader, manifest, own), strict=True)
        return [found[index] for index in ids.tolist()]

    def _fetch(self, readers: Sequence[Reader], ids: Ids) -> list[Encoded | DamagedSample]:
        """The samples in the order of `ids`, each dataset asked once."""
        firsts = self._firsts
        numbers = np.searchsorted(firsts, ids, side="right") - 1
        found: dict[int, Encoded | DamagedSample] = {}
        for number in np.unique(numbers).tolist():
            own = ids[numbers == number]
            found |= zip(
                own.tolist(), self._read(readers[number], self.manifests[number], own - firsts[number]), strict=True
            )
        return [found[index] for index in ids.tolist()]
