"""Reads one label of a dataset: the number of samples with each value, or the value of each sample.

Annotations are read and checked, but images are not decoded.

With samples of 30 kB, two busy cores count 20,000 samples a second from a local disk, and 1,400 from an S3 server on
the same host.
"""

import logging
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from emocap_shards.annotation import Labels, load_annotation
from emocap_shards.background import in_order
from emocap_shards.dataset_filter import DatasetFilter
from emocap_shards.errors import AnnotationError, DamagedSample
from emocap_shards.inspecting.look import Pick, everything
from emocap_shards.manifest import Manifest, read_manifest
from emocap_shards.reader import Reader
from emocap_shards.store import Store, open_store

_READERS = 8
_MOST_NAMES = 200
_FIRST_WORD_S, _NEXT_WORD_S = 5.0, 15.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LabelValues:
    """Counts the values of one label in those samples of a dataset that were read.

    Attributes:
        values: Number of samples with each value. Samples without the label, or with an empty one, are not counted.
        names: Names of labels that the samples have, at most 200 in total. Text labels come first, then numeric labels.
        looked: Number of samples that were read.
        samples: Number of samples in the dataset that are used.
    """

    values: Mapping[str | float, int]
    names: tuple[str, ...]
    looked: int
    samples: int

    @property
    def complete(self) -> bool:
        """Returns whether every sample of the dataset that is used was read."""
        return self.looked == self.samples


def label_values(
    url: str | Path, name: str, *, seconds: float | None = None, filter_: DatasetFilter | None = None
) -> LabelValues:
    """Counts the values of the label `name` in a dataset.

    Args:
        url: The dataset.
        name: Name of the label.
        seconds: Reading stops after this time. The samples are read in a random order of groups, so those read by then
            are spread over the dataset. With None, all samples are read.
        filter_: The filter of the dataset. A sample that it leaves out is not counted; with None all are.

    Raises:
        ManifestError: If there is no dataset.
        DamagedShard: If a shard is missing, or its index differs from what the manifest says.
        DamagedSample: If a sample is damaged.
        StoreError: If the store cannot be read.
    """
    store = open_store(url)
    manifest = read_manifest(store)
    picks = _picks(manifest, filter_)
    # In this order all classes are seen early, also in a dataset that was packed class by class.
    random.Random(0).shuffle(picks)
    values, kinds, looked = Counter[str | float](), dict[str, bool](), 0
    began_s = time.monotonic()
    for found in _read(store, manifest, picks):
        looked += len(found)
        values.update(labels[name] for labels in found if labels.get(name, "") != "")
        if len(kinds) < _MOST_NAMES:
            kinds |= {key: isinstance(value, str) for labels in found for key, value in labels.items()}
        if seconds is not None and time.monotonic() - began_s > seconds:
            break
    names = sorted(kinds, key=lambda key: (not kinds[key], key))[:_MOST_NAMES]
    return LabelValues(dict(values), tuple(names), looked, filter_.used if filter_ else manifest.samples)


@dataclass(frozen=True, slots=True, eq=False)
class LabelColumn:
    """Holds the value of one label of every sample of a dataset that is used.

    Attributes:
        values: The distinct values, in the order in which they were met.
        codes: For each of these samples, in the order of the manifest, the index of its value in `values`. It is -1 for
            a sample without the label, or with an empty one.
    """

    values: tuple[str | float, ...]
    codes: Int32[np.ndarray, " samples"]


def label_column(
    url: str | Path, name: str, *, most_values: int, filter_: DatasetFilter | None = None
) -> LabelColumn | None:
    """Reads the value of the label `name` of every sample that is used.

    Args:
        url: The dataset.
        name: Name of the label.
        most_values: If there are more distinct values, the result is None.
        filter_: The filter of the dataset; with None all samples are used.

    Raises:
        ManifestError: If there is no dataset.
        DamagedShard: If a shard is missing, or its index differs from what the manifest says.
        DamagedSample: If a sample is damaged.
        StoreError: If the store cannot be read.
    """
    store = open_store(url)
    manifest = read_manifest(store)
    places: dict[str | float, int] = {}
    codes = np.full(filter_.used if filter_ else manifest.samples, -1, dtype=np.int32)
    looked = 0
    for found in _read(store, manifest, _picks(manifest, filter_)):
        for labels in found:
            if (value := labels.get(name, "")) != "":
                codes[looked] = places.setdefault(value, len(places))
            looked += 1
        if len(places) > most_values:
            return None
    return LabelColumn(tuple(places), codes)


def _picks(manifest: Manifest, filter_: DatasetFilter | None) -> list[Pick]:
    """Returns the numbers of all samples that are used, in picks."""
    picks = list(everything(manifest))
    if filter_ is None:
        return picks
    is_used = filter_.is_used()
    used = (pick[is_used[pick]] for pick in picks)
    return [pick for pick in used if len(pick)]


def _read(store: Store, manifest: Manifest, picks: Sequence[Pick]) -> Iterator[list[Labels]]:
    """Yields the labels of the samples of each pick, in the order of the picks. Logs how far it has come.

    Raises:
        DamagedSample: If a sample is damaged, or its annotation cannot be used.
    """
    read = partial(_labels, Reader(store, manifest))
    looked, word_s = 0, time.monotonic() + _FIRST_WORD_S
    with ThreadPoolExecutor(_READERS) as pool:
        # Threads hide the latency of a remote store; for a local disk they are slower than a plain loop.
        for found in map(read, picks) if store.is_near else in_order(pool, read, picks, ahead=2 * _READERS):
            yield found
            looked += len(found)
            if time.monotonic() > word_s:
                _log.info("reading labels of %s: %d of %d samples so far", store.url, looked, manifest.samples)
                word_s = time.monotonic() + _NEXT_WORD_S


def _labels(reader: Reader, pick: Pick) -> list[Labels]:
    """Reads the samples whose ids are in `pick`, and returns the labels of each.

    Raises:
        DamagedSample: If a sample is damaged, or its annotation cannot be used.
    """
    found: list[Labels] = []
    for sample in reader.fetch(pick):
        if isinstance(sample, DamagedSample):
            raise sample
        try:
            found.append(load_annotation(sample.annotation)[1])
        except AnnotationError as error:
            raise DamagedSample.at(sample.shard, sample.key, str(error)) from error
    return found
