"""Applies a filter file to its dataset: finds the numbers of the samples that are not used, and the unused texts.

A caption without its global sentence is not used at all, because every caption has one. A sample of whose captions none
is used is left out. These rules are the same for packing, training and evaluation, so a run with a filter sees the
samples that a dataset has which was packed with this filter.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Int32

from emocap_shards.background import concurrently
from emocap_shards.errors import FilterError
from emocap_shards.filter_file import Exclusion, FilterFile, read_filter
from emocap_shards.index import AT_ONCE, read_index
from emocap_shards.manifest import Manifest, read_manifest
from emocap_shards.mask import masked_url
from emocap_shards.order import Ids
from emocap_shards.printable import listed
from emocap_shards.sample import EVERY_LOCAL, SUMMARY, WHOLE_CAPTION, UnusedText
from emocap_shards.store import Store, open_store

_SHOWN = 5  # Number of unknown keys that a message names.
_Effect: TypeAlias = tuple[UnusedText, ...] | Literal["excluded", "no caption"]


@dataclass(frozen=True, slots=True, eq=False)
class DatasetFilter:
    """Says which samples of one dataset are not used, and which texts of the others. It is a picklable value.

    Attributes:
        digest: The digest of the filter file.
        samples: The number of samples of the dataset, with those that are left out.
        left_out: The numbers of the samples that are not used, in ascending order.
        without_caption: How many of them are left out only because none of their captions is used.
        shorter: The numbers of the used samples of which texts are left out, in ascending order; a number occurs once
            for each text.
        texts: The caption and the sentence of each of these texts, as `UnusedText` has them.
    """

    digest: str
    samples: int
    left_out: Ids
    without_caption: int
    shorter: Ids
    texts: Int32[np.ndarray, "texts 2"]

    @property
    def used(self) -> int:
        """Returns the number of samples that are used."""
        return self.samples - len(self.left_out)

    def is_used(self) -> Bool[np.ndarray, " samples"]:
        """Returns for each sample of the dataset whether it is used."""
        is_used = np.ones(self.samples, dtype=np.bool_)
        is_used[self.left_out] = False
        return is_used

    def used_ids(self) -> Ids:
        """Returns the numbers of the samples that are used, in ascending order."""
        return np.flatnonzero(self.is_used()).astype(np.int64)

    def unused_texts(self, number: int) -> tuple[UnusedText, ...]:
        """Returns the texts of a sample that are not used; `number` counts the samples of the dataset."""
        first, last = np.searchsorted(self.shorter, [number, number + 1])
        return tuple(UnusedText(*text) for text in self.texts[first:last].tolist())

    def describe(self) -> str:
        """Returns what the filter leaves out as a text, such as "12 of 2,000 samples, and texts of 40 others"."""
        shorter = len(np.unique(self.shorter))
        none_left = (
            f" ({self.without_caption:,} of them without a caption that is left)" if self.without_caption else ""
        )
        texts = f", and texts of {shorter:,} others" if shorter else ""
        return f"{len(self.left_out):,} of {self.samples:,} samples{none_left}{texts}"


def open_filter(address: str, url: str | Path) -> DatasetFilter:
    """Reads a filter file, and finds the samples that it names in the dataset. All indexes of the dataset are read.

    Args:
        address: Path or URL of the filter file.
        url: The dataset.

    Raises:
        FilterError: If the file cannot be used (`read_filter`), belongs to another dataset, names keys that the dataset
            does not have, or leaves no sample.
        ManifestError: If there is no dataset.
        DamagedShard: If an index is missing, or is not the one in the manifest.
        StoreError: If a store does not answer.
    """
    file, store = read_filter(address), open_store(url)
    return resolved(file, store, read_manifest(store), where=masked_url(address))


def resolved(file: FilterFile, store: Store, manifest: Manifest, *, where: str) -> DatasetFilter:
    """Finds the samples that a filter names in a dataset, as `open_filter` does. Errors name the filter as `where`."""
    if file.dataset != manifest.digest:
        raise FilterError(
            f"{where} is the filter of another dataset: it was made for the digest {file.dataset[:16]}, and "
            f"{store.url} has {manifest.digest[:16]}; make a filter of this dataset."
        )
    # The exclusions of a sample follow one another. A number for each key needs less memory than its exclusions do.
    places: dict[bytes, int] = {}
    effects: list[_Effect] = []
    shared: dict[_Effect, _Effect] = {}
    for key, exclusions in groupby(file.exclusions, attrgetter("key")):
        places[key.encode()] = len(effects)
        effect = _effect(tuple(exclusions))
        effects.append(shared.setdefault(effect, effect))
    is_known = bytearray(len(effects))
    left_out, without_caption = list[int](), 0
    shorter, texts = list[int](), list[UnusedText]()
    for number, place in _found(store, manifest, places):
        is_known[place], effect = 1, effects[place]
        if isinstance(effect, tuple):
            shorter += [number] * len(effect)
            texts += effect
        else:
            left_out.append(number)
            without_caption += effect == "no caption"
    if unknown := [key.decode() for key, place in places.items() if not is_known[place]]:
        raise FilterError(
            f"{where} names {len(unknown):,} keys that {store.url} does not have: {listed(unknown, _SHOWN)}; write the "
            "filter again."
        )
    if len(left_out) == manifest.samples:
        raise FilterError(f"{where} leaves out all {manifest.samples:,} samples of {store.url}: use another filter.")
    return DatasetFilter(
        file.digest,
        manifest.samples,
        np.array(left_out, dtype=np.int64),
        without_caption,
        np.array(shorter, dtype=np.int64),
        np.array(texts, dtype=np.int32).reshape(-1, 2),
    )


def _found(store: Store, manifest: Manifest, places: Mapping[bytes, int]) -> Iterator[tuple[int, int]]:
    """Yields the number and the place of each sample whose key has a place, in the order of the manifest."""
    first = 0
    for start in range(0, len(manifest.shards) if places else 0, AT_ONCE):
        shards = list(manifest.shards[start : start + AT_ONCE])
        for index in concurrently(partial(read_index, store), shards, at_once=AT_ONCE):
            for number, key in enumerate(index.encoded_keys.tolist(), first):
                if (place := places.get(key)) is not None:
                    yield number, place
            first += len(index)


def _effect(exclusions: Sequence[Exclusion]) -> _Effect:
    """Returns what the exclusions of one sample mean: its unused texts, sorted, or why the sample is left out."""
    if any(each.part == "sample" for each in exclusions):
        return "excluded"
    whole = {each.caption for each in exclusions if each.part in {"caption", "global"}}
    if len(whole) == exclusions[0].captions:
        return "no caption"
    found = {UnusedText(caption, WHOLE_CAPTION) for caption in whole}
    for each in exclusions:
        if each.caption not in whole:
            local = EVERY_LOCAL if each.sentence is None else each.sentence
            found.add(UnusedText(each.caption, SUMMARY if each.part == "summary" else local))
    return tuple(sorted(found))
