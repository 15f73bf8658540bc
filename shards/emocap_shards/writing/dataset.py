"""Provides the samples of existing datasets as rows, so that `pack` can write them again in other shards.

The checksum of every sample is verified, and a background thread reads ahead of the consumer.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from emocap_shards.annotation import shorter_annotation
from emocap_shards.background import in_order
from emocap_shards.dataset_filter import DatasetFilter
from emocap_shards.errors import DamagedSample, DamagedShard, RecordError
from emocap_shards.manifest import Manifest, read_manifest
from emocap_shards.order import Ids, ShardLayout, permutation
from emocap_shards.reader import Reader, used_annotation
from emocap_shards.sample import Encoded
from emocap_shards.store import open_store
from emocap_shards.writing.row import BadRow, SourceRow

_TOGETHER_BYTES = 1 << 23
_GROUPS = 3
_MOST_SHUFFLED = 1 << 29  # A shuffled order takes 16 bytes for each sample while it is computed.

Fetched = Encoded | DamagedSample


@dataclass(frozen=True, slots=True)
class DatasetSource:
    """Reads the samples of one or more datasets: one dataset after the other, or all samples in one shuffled order.

    Up to three groups of samples, of about 8 MiB each, are in memory. In a shuffled order each sample needs a read of
    its own, and many of these reads run at the same time. A damaged sample becomes a bad row, and so does each sample
    of a missing shard. A sample that a filter leaves out is not read.

    Args:
        urls: The datasets, in the order in which they are read.
        manifests: The manifest of each dataset.
        seed: Seed of the shuffled order; None keeps the order of the datasets.
        filters: The filter of each dataset; None for one whose samples are all used. Empty for no filter at all.
    """

    urls: tuple[str, ...]
    manifests: tuple[Manifest, ...]
    seed: int | None = None
    filters: tuple[DatasetFilter | None, ...] = ()

    @classmethod
    def open(cls, urls: Sequence[str], *, seed: int | None = None) -> "DatasetSource":
        """Reads the manifests of the datasets.

        Raises:
            ManifestError: If there is no dataset at one of the URLs.
            RecordError: If there is no URL, the seed is negative, or there are too many samples to shuffle in memory.
        """
        if not urls:
            raise RecordError("there is no dataset to read: name the new dataset after the old ones.")
        if seed is not None and seed < 0:
            raise RecordError(f"seed={seed}, but a seed is 0 or more.")
        manifests = tuple(map(read_manifest, urls))
        total = sum(manifest.samples for manifest in manifests)
        if seed is not None and total > _MOST_SHUFFLED:
            cure = f"the limit is {_MOST_SHUFFLED:,}; shuffle parts of them, or check the manifests"
            raise RecordError(f"{total:,} samples cannot be shuffled in memory: {cure}.")
        return cls(tuple(urls), manifests, seed)

    @property
    def total(self) -> int:
        return sum(manifest.samples for manifest in self.manifests) - sum(
            len(each.left_out) for each in self.filters if each
        )

    def rows(self) -> Iterator[SourceRow | BadRow]:
        for encoded in self.encoded():
            if isinstance(encoded, DamagedSample):
                yield BadRow("", str(encoded).rstrip("."))
            else:
                where = f"sample {encoded.key!r} of {self._url(encoded.index)}"
                yield SourceRow(where, encoded.key, encoded.image, _annotation(encoded), encoded.extension)

    def encoded(self) -> Iterator[Fetched]:
        """Yields the samples without decoding or changing them. Instead of a damaged sample it yields the error that
        describes the damage.

        Raises:
            StoreError: If a store cannot be read.
        """
        filters = self.filters or (None,) * len(self.urls)
        parts = zip(self.urls, self.manifests, self._firsts.tolist(), filters, strict=False)
        readers = [
            Reader(open_store(url), manifest, first=first, place=f"{url}/", filter_=each)
            for url, manifest, first, each in parts
        ]
        # One thread fetches the groups in their order, while the consumer writes the ones before.
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
            for group in in_order(thread, partial(self._fetch, readers), self._groups(), ahead=_GROUPS):
                yield from group

    @property
    def _firsts(self) -> Ids:
        return np.concatenate([[0], np.cumsum([manifest.samples for manifest in self.manifests])]).astype(np.int64)

    def _url(self, index: int) -> str:
        return self.urls[int(np.searchsorted(self._firsts, index, side="right")) - 1]

    def _groups(self) -> Iterator[Ids]:
        """Yields the ids of all samples in groups. The ids are numbered consecutively over all datasets.

        A group has about 8 MiB, estimated from the mean size of a sample, and at most 2,048 samples.
        """
        total = int(self._firsts[-1])
        mean = sum(manifest.total_bytes for manifest in self.manifests) / total
        size = max(1, min(2048, int(_TOGETHER_BYTES / mean)))
        starts = range(0, total, size)
        if self.seed is None:
            groups = (np.arange(start, min(start + size, total)) for start in starts)
        else:
            order = permutation(self.seed, 0, 0, total)
            groups = (order[start : start + size] for start in starts)
        if not any(self.filters):
            return groups
        parts = zip(self.manifests, self.filters, strict=True)
        is_used = np.concatenate(
            [each.is_used() if each else np.ones(manifest.samples, dtype=np.bool_) for manifest, each in parts]
        )
        used = (group[is_used[group]] for group in groups)
        return (group for group in used if len(group))

    def _fetch(self, readers: Sequence[Reader], ids: Ids) -> list[Fetched]:
        """Returns the samples in the order of `ids`, which are numbered consecutively over all datasets.

        Each dataset is read in one call.
        """
        firsts = self._firsts
        numbers = np.searchsorted(firsts, ids, side="right") - 1
        return _by_group(
            ids, numbers, lambda number, own: _read(readers[number], self.manifests[number], own - firsts[number])
        )


def _annotation(sample: Encoded) -> bytes:
    """Returns the annotation of a sample without its unused texts; the stored bytes if it has none.

    Raises:
        FilterError: If the filter names texts that the sample does not have.
    """
    if not sample.unused:
        return sample.annotation
    used_annotation(sample)  # Its error names the sample.
    return shorter_annotation(sample.annotation, sample.unused)


def _read(reader: Reader, manifest: Manifest, ids: Ids) -> list[Fetched]:
    """Returns the samples of one dataset. If a shard cannot be read, each of its samples is returned as a
    `DamagedSample`.
    """
    try:
        return reader.fetch(ids)
    except DamagedShard as error:
        shards = ShardLayout(manifest.counts).shard_of(ids)
        # If all ids are of one shard, it is the one that cannot be read. Otherwise each shard is read by itself, so
        # that the others lose nothing.
        if (shards == shards[0]).all():
            return [DamagedSample(f"sample {index}: {error}", shard=error.shard) for index in ids.tolist()]
    return _by_group(ids, shards, lambda _, own: _read(reader, manifest, own))


def _by_group(ids: Ids, groups: Ids, read: Callable[[int, Ids], list[Fetched]]) -> list[Fetched]:
    """Calls `read(group, ids of the group)` once for each different value in `groups`.

    Returns the samples in the order of `ids`; `groups` holds the group of each id.
    """
    found: dict[int, Fetched] = {}
    for group in np.unique(groups).tolist():
        own = ids[groups == group]
        found |= zip(own.tolist(), read(group, own), strict=True)
    return [found[index] for index in ids.tolist()]
