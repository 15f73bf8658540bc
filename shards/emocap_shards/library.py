"""Opens one or several datasets, and numbers the samples of all of them consecutively."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from emocap_shards.cache import Cache
from emocap_shards.dataset_filter import DatasetFilter
from emocap_shards.errors import DamagedSample, PlanError
from emocap_shards.manifest import Manifest, read_manifest
from emocap_shards.order import Ids, ShardLayout
from emocap_shards.reader import Reader
from emocap_shards.sample import Encoded
from emocap_shards.store import Store, open_store


@dataclass(frozen=True, slots=True)
class MixtureDataset:
    """One dataset of a mixture.

    `weight` is the share of the dataset in the mixture, relative to the weights of the others. If it is None, the
    weight is the number of samples of the dataset that are used. `filter` says which of its samples and texts are not
    used; with None all are.
    """

    url: str = field(repr=False)  # it may hold a password
    weight: float | None = None
    filter: DatasetFilter | None = field(default=None, repr=False)


class Library:
    """Reads one or several datasets, whose samples are numbered consecutively.

    The numbers of the second dataset follow those of the first, and so on.

    A dataset in a folder of this machine is read without the cache, because the cache would only copy its files.
    Threads may share a library.

    Attributes:
        layouts: The layout of the shards of each dataset.
        samples: The number of samples of each dataset, with those that its filter leaves out.
        filters: The filter of each dataset; None if it has none.
        used: The number of samples of each dataset that are used.
        weights: The share of each dataset in a mixture, relative to the other weights.
        uses_cache: Whether at least one dataset is read through the cache.
        total_bytes: The size of all datasets together.
        without_caption: The number of samples of all datasets that have labels and no caption.
    """

    def __init__(
        self,
        datasets: Sequence[tuple[Store, Manifest]],
        weights: Sequence[float | None],
        cache: Cache | None,
        filters: Sequence[DatasetFilter | None] | None = None,
    ):
        self.layouts = tuple(ShardLayout(manifest.counts) for _, manifest in datasets)
        self.samples = tuple(layout.samples for layout in self.layouts)
        self._firsts = np.cumsum([0, *self.samples])
        self.filters = tuple(filters or [None] * len(datasets))
        if any(each and each.samples != size for each, size in zip(self.filters, self.samples, strict=True)):
            raise PlanError("a filter is that of another dataset: the dataset has another number of samples.")
        self.used = tuple(each.used if each else size for each, size in zip(self.filters, self.samples, strict=True))
        self.weights = tuple(
            float(size if weight is None else weight) for size, weight in zip(self.used, weights, strict=True)
        )
        self.uses_cache = cache is not None and any(not store.is_near for store, _ in datasets)
        self.total_bytes = sum(manifest.total_bytes for _, manifest in datasets)
        self.without_caption = sum(manifest.without_caption for _, manifest in datasets)
        self._readers = [
            Reader(
                store,
                manifest,
                None if store.is_near else cache,
                first=int(first),
                place=f"{store.url}/" if len(datasets) > 1 else "",
                filter_=each,
            )
            # `_firsts` has one number more than there are datasets, the end of the last one.
            for (store, manifest), first, each in zip(datasets, self._firsts, self.filters, strict=False)
        ]

    @classmethod
    def open(cls, url: str | Sequence[MixtureDataset], cache: Cache | None = None) -> "Library":
        """Opens the datasets at the given URLs.

        Raises:
            ManifestError: If there is no dataset at one of the URLs.
            PlanError: If a filter is that of a dataset with another number of samples.
            StoreError: If a store cannot be reached.
        """
        datasets = (MixtureDataset(url),) if isinstance(url, str) else tuple(url)
        stores = [open_store(dataset.url) for dataset in datasets]
        opened = [(store, read_manifest(store)) for store in stores]
        return cls(opened, [each.weight for each in datasets], cache, [each.filter for each in datasets])

    def first(self, dataset: int) -> int:
        """Returns the number of the first sample of a dataset; `dataset` is the dataset's index, counted from 0."""
        return int(self._firsts[dataset])

    def fetch(self, ids: Ids, *, direct: bool = False) -> list[Encoded | DamagedSample]:
        """Fetches samples as `Reader.fetch` does, but `ids` count the samples of all datasets consecutively."""
        # Every id belongs to one dataset, so each place in `found` is filled once.
        found: list[Encoded | DamagedSample | None] = [None] * len(ids)
        for dataset, places in self._by_dataset(ids):
            fetched = self._readers[dataset].fetch(ids[places] - self._firsts[dataset], direct=direct)
            for place, sample in zip(places, fetched, strict=True):
                found[place] = sample
        return [sample for sample in found if sample is not None]

    def warm(self, ids: Ids) -> None:
        """Fills the cache as `Reader.warm` does, but `ids` count the samples of all datasets consecutively."""
        for dataset, places in self._by_dataset(ids):
            self._readers[dataset].warm(ids[places] - self._firsts[dataset])

    def _by_dataset(self, ids: Ids) -> list[tuple[int, Ids]]:
        """Returns (dataset, places) for each dataset that holds some of the samples.

        `dataset` is the dataset's index, and `places` are the indices in `ids` at which its samples are.
        """
        if len(ids) and not 0 <= ids.min() <= ids.max() < self._firsts[-1]:
            wrong = int(ids.min() if ids.min() < 0 else ids.max())
            raise IndexError(f"sample {wrong} of {self._firsts[-1]}: there is none of this number.")
        datasets = np.searchsorted(self._firsts, ids, side="right") - 1
        return [(int(dataset), np.flatnonzero(datasets == dataset)) for dataset in np.unique(datasets)]
