"""Opens the datasets of a run: computes their digest, opens a rank's stream, and trains a tokenizer on the captions.

Most functions here take settings and read the datasets that the settings name. They are called only when a run is
opened, checked or tracked. In every step, training uses only the stream that `open_stream` has returned. None of the
functions is a collective.
"""

import hashlib
import itertools
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from emocap_shards.cache import Cache
from emocap_shards.cursor import Cursor
from emocap_shards.dataset_filter import DatasetFilter, open_filter
from emocap_shards.errors import FilterError
from emocap_shards.inspecting.wording import percent
from emocap_shards.library import Library, MixtureDataset
from emocap_shards.manifest import Manifest, read_manifest
from emocap_shards.mask import masked_url
from emocap_shards.reader import used_annotation
from emocap_shards.sample import Caption, Encoded
from emocap_shards.store import open_store
from emocap_shards.strata import ClassBalance
from emocap_shards.stream import Stream

from emocap_pretrain.config.data import DataConfig, MixtureDatasetConfig
from emocap_pretrain.config.model import PartLengthsConfig
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.config.stored import data_urls
from emocap_pretrain.data.parts import PARTS
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.ranks.info import RankInfo

# Samples from which a tokenizer is trained, and from which the share of cut texts is estimated.
TOKENIZER_SAMPLES, CUT_SAMPLES = 20_000, 2000
_TOGETHER = 256  # Samples that are read together.
_WORD = re.compile(r"[^\W\d_]+")

Filters: TypeAlias = Sequence[DatasetFilter | None]
"""The filter of each dataset of a run, or None for a dataset whose samples are all used; empty for no filter at all."""


def opened_filter(address: str, url: str, key: str) -> DatasetFilter:
    """Reads a filter of the dataset at `url`, and all indexes of this dataset.

    Args:
        address: Path or URL of the filter file.
        url: The dataset.
        key: The setting or option that names the filter, for the error message.

    Raises:
        ConfigError: If the filter cannot be used, or is that of another dataset.
        ShardsError: If the dataset or the filter cannot be read.
    """
    try:
        return open_filter(address, url)
    except FilterError as error:
        raise ConfigError(f"{key}: {error}") from error


def open_filters(data: DataConfig) -> Filters:
    """Reads the filters of the datasets, as `opened_filter` does. One process calls it at a start."""
    keys = data.filters_by_key
    return tuple(
        opened_filter(each.filter, each.url, key) if each.filter else None
        for key, each in zip(keys, data.datasets, strict=True)
    )


def filter_at(filters: Filters, place: int) -> DatasetFilter | None:
    """Returns the filter of the dataset at a place in the settings."""
    return filters[place] if filters else None


def used_samples(manifests: Sequence[Manifest], filters: Filters) -> list[int]:
    """Returns the number of samples of each dataset that are used."""
    return [
        each.used if (each := filter_at(filters, place)) else manifest.samples
        for place, manifest in enumerate(manifests)
    ]


def check_filtered_texts(data: DataConfig, filters: Filters, *, seconds: float | None = None) -> None:
    """Checks that the samples have the texts that the filters leave out, before a run begins.

    Args:
        data: The datasets.
        filters: The filters of the datasets (`open_filters`).
        seconds: Reading of a dataset stops after this time; None reads all samples of which texts are left out.

    Raises:
        FilterError: If a sample does not have such a text, or has no caption that is used.
        ShardsError: If a dataset cannot be read.
    """
    for place, dataset in enumerate(data.datasets):
        each = filter_at(filters, place)
        if each is None:
            continue
        library = Library.open(_mixture([dataset], [each]))
        numbers, began_s = np.unique(each.shorter), time.monotonic()
        for first in range(0, len(numbers), _TOGETHER):
            for sample in library.fetch(numbers[first : first + _TOGETHER], direct=True):
                if isinstance(sample, Encoded):  # Damaged samples have a budget of their own.
                    used_annotation(sample)
            if seconds is not None and time.monotonic() - began_s > seconds:
                break


def train_tokenizer(data: DataConfig, vocabulary: int, filters: Filters = ()) -> Tokenizer:
    """Trains a tokenizer with `vocabulary` tokens on the captions of the first 20,000 samples of the manifests.

    All captions of a sample and all parts of a caption are used, whatever their weights, except those that a filter
    leaves out. The samples are read in the order of the manifests, so the result depends on the data and not on the
    seed of the run.

    Raises:
        DamagedSample: If a sample is damaged and `data.error_budget` is 0.
        BudgetSpent: If more samples are damaged than `data.error_budget` allows.
    """
    captions = _captions(data.datasets, filters, error_budget=data.error_budget)
    return tokenizer_of(captions, vocabulary)


def tokenizer_of(samples: Iterable[Sequence[Caption]], vocabulary: int) -> Tokenizer:
    """Trains a tokenizer with `vocabulary` tokens on the captions of the first 20,000 of `samples`.

    Each of `samples` is the captions of a sample.
    """
    captions = itertools.chain.from_iterable(itertools.islice(samples, TOKENIZER_SAMPLES))
    texts = (text for each in captions for part in PARTS for text in part.texts(each))
    return Tokenizer.trained_on(texts, vocabulary)


@dataclass(frozen=True, slots=True)
class CutTexts:
    """Holds the number of texts, and how many of them are cut because they have more tokens than the text tower reads.

    Cut texts are counted because otherwise the user would not notice a cut. For the loss, two texts that are equal
    after the cut are the same text.

    Attributes:
        kind: Name of a caption part, or "prompts".
        limit: Largest number of tokens that the tower reads from a text.
        texts: Number of texts.
        cut: Number of texts with more than `limit` tokens.
        longest: Number of tokens of the longest text.
    """

    kind: str
    limit: int
    texts: int
    cut: int
    longest: int

    @classmethod
    def of(cls, kind: str, tokenizer: Tokenizer, texts: Sequence[str], limit: int) -> "CutTexts":
        """Counts the tokens of each of `texts` without cutting it, and compares them with `limit`."""
        counts = tokenizer.counts(texts)
        return cls(kind, limit, len(counts), sum(count > limit for count in counts), max(counts, default=0))

    @property
    def share(self) -> float:
        """Returns the share of the texts that are cut, in [0, 1]."""
        return self.cut / self.texts if self.texts else 0.0

    def __str__(self) -> str:
        more = f" (up to {self.longest} tokens, {self.limit} are read)" if self.cut else ""
        return f"{self.kind} {percent(self.cut, self.texts)}{more}"


def cut_captions(
    datasets: Sequence[MixtureDatasetConfig],
    tokenizer: Tokenizer,
    lengths: PartLengthsConfig,
    filters: Filters = (),
) -> tuple[int, list[CutTexts]]:
    """Counts the cut texts in the captions of the first 2,000 samples, or of all samples if there are fewer.

    Returns:
        The number of samples that were read, and the counts for each caption part.
    """
    # With a budget as large as the number of samples, damaged samples never end this count. It is only a report.
    return cut_texts(_captions(datasets, filters, error_budget=CUT_SAMPLES), tokenizer, lengths)


def cut_texts(
    samples: Iterable[Sequence[Caption]], tokenizer: Tokenizer, lengths: PartLengthsConfig
) -> tuple[int, list[CutTexts]]:
    """Counts the cut texts in the captions of the first 2,000 of `samples`; returns the same as `cut_captions`.

    Each of `samples` is the captions of a sample.
    """
    first = list(itertools.islice(samples, CUT_SAMPLES))
    captions = list(itertools.chain.from_iterable(first))
    texts = {part.name: [text for each in captions for text in part.texts(each)] for part in PARTS}
    limits = lengths.by_part
    return len(first), [CutTexts.of(name, tokenizer, each, limits[name]) for name, each in texts.items()]


def caption_words(urls: Sequence[str]) -> frozenset[str]:
    """Returns the set of all words in the captions of packed datasets, in lower case. Every sample is read.

    Raises:
        ManifestError, StoreError: If there is no dataset, or it cannot be read.
        DamagedSample: If a sample is damaged.
    """
    datasets = [MixtureDatasetConfig(url=url) for url in urls]
    captions = itertools.chain.from_iterable(_captions(datasets, (), error_budget=0))
    return frozenset(
        word for each in captions for part in PARTS for text in part.texts(each) for word in _WORD.findall(text.lower())
    )


def _captions(
    datasets: Sequence[MixtureDatasetConfig], filters: Filters, *, error_budget: int
) -> Iterator[tuple[Caption, ...]]:
    """Yields the captions of each sample as a tuple, in the order of the manifests, without what filters leave out.

    Up to `error_budget` damaged samples are left out.
    """
    # `encoded_steps` leaves the images undecoded. The batch size only says how many samples are read together.
    stream = Stream(
        url=_mixture(datasets, filters), global_batch=256, shuffle=False, epochs=1, error_budget=error_budget
    )
    encoded = itertools.chain.from_iterable(portion.samples for portion in stream.encoded_steps())
    return (used_annotation(sample)[0] for sample in encoded)


def open_stream(
    data: DataConfig,
    info: RankInfo,
    start: Cursor,
    *,
    global_batch: int,
    seed: int,
    balance: ClassBalance | None = None,
    filters: Filters = (),
) -> Stream:
    """Returns the stream of the samples of packed datasets that this rank reads.

    Nothing is opened here: a stream is a picklable value, and each loader process opens the datasets for itself.

    Args:
        data: The datasets, and how they are shuffled and cached.
        info: The rank that reads.
        start: Cursor (epoch and consumed samples) at which the stream begins.
        global_batch: Number of samples of a step over all ranks.
        seed: Seed of the order of the samples.
        balance: The classes of the samples, if `data.balance` is set (`read_balance`).
        filters: The filters of the datasets (`open_filters`).
    """
    return Stream(
        url=_mixture(data.datasets, filters),
        global_batch=global_batch,
        seed=seed,
        rank=info.rank,
        world_size=info.world_size,
        local_world_size=info.local_world_size,
        window_samples=data.window_samples(global_batch),
        drop_last=data.drop_last,
        start=start,
        error_budget=data.error_budget,
        cache=Cache(data.cache, round(data.cache_gb * 1e9)) if data.cache_gb else None,
        balance=balance,
    )


def _mixture(datasets: Sequence[MixtureDatasetConfig], filters: Filters) -> tuple[MixtureDataset, ...]:
    return tuple(
        MixtureDataset(dataset.url, dataset.weight, filter_at(filters, place)) for place, dataset in enumerate(datasets)
    )


def data_digest_of(data: DataConfig, filters: Filters = ()) -> str:
    """Reads the manifests of the datasets and returns the digest of the data that are used (`digest_of`)."""
    return digest_of([read_manifest(dataset.url) for dataset in data.datasets], filters)


def digest_of(manifests: Sequence[Manifest], filters: Filters = ()) -> str:
    """Returns the digest that identifies the data of a run; `manifests` are in the order of the settings.

    A checkpoint stores this digest, and a run does not resume on data with another digest. For a single dataset, the
    result is the digest of its manifest; `emocap inspect` prints the first characters of that digest. For several
    datasets, the result is a hash of the digests of their manifests. A dataset with a filter counts with the hash of
    both digests. The weights of a mixture are not part of the result, because the stored config contains them.
    """
    digests = [manifest.digest for manifest in manifests]
    for place, digest in enumerate(digests):
        if each := filter_at(filters, place):
            digests[place] = hashlib.sha256(f"{digest} filtered by {each.digest}".encode()).hexdigest()
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class DatasetUse:
    """Describes a packed dataset and its purpose in a run, for the tracker and for plots.

    Attributes:
        url: The address as the run stores it, without secrets: a `${oc.env:...}` text of the config file is not
            replaced by its value.
        digest: SHA-256 of the manifest; of a dataset with a filter, that of the data that are used (`digest_of`).
        samples: Number of samples that are used.
        purpose: Whether the run trains on the dataset or is evaluated on it.
        weight: The weight of the dataset in `data.mix`; None if the config gives no weight.
    """

    url: str
    digest: str
    samples: int
    purpose: Literal["training", "evaluation"]
    weight: float | None = None

    @property
    def name(self) -> str:
        """Returns the last two folders of the URL, such as `faces/train`."""
        return "/".join(self.url.rstrip("/").split("/")[-2:])

    @property
    def short_digest(self) -> str:
        """Returns the first 16 characters of the digest, as `emocap inspect` prints them."""
        return self.digest[:16]


def training_data(
    data: DataConfig, stored: Mapping[str, Any], filters: Filters = (), *, tars_digest: str = ""
) -> list[DatasetUse]:
    """Reads the manifests of the datasets that a run trains on, and returns a description of each dataset.

    Args:
        data: The settings.
        stored: The same settings without secrets, as `Config.stored` returns them.
        filters: The filters of the datasets (`open_filters`).
        tars_digest: The digest of the tars of `data.webdataset`, which have no manifest.
    """
    # The manifest is read from the real address, but what is described, and so tracked, is the address as it is stored.
    if data.webdataset:
        return [DatasetUse(data_urls(stored)[0], tars_digest, data.webdataset.samples, "training")]
    return [
        dataset_use(dataset.url, url, "training", dataset.weight, filter_at(filters, place))
        for place, (dataset, url) in enumerate(zip(data.datasets, data_urls(stored), strict=True))
    ]


def evaluation_data(settings: EvaluationConfig, stored: Mapping[str, Any]) -> list[DatasetUse]:
    """Reads the manifest of the dataset on which a run is evaluated, and returns a list with a description of it.

    The list is empty if the settings name no dataset.

    Args:
        settings: The settings.
        stored: The same settings without secrets, as `Config.stored` returns them.
    """
    return [dataset_use(settings.url, stored["url"], "evaluation")] if settings.url else []


def dataset_use(
    url: str,
    stored_url: str,
    purpose: Literal["training", "evaluation"],
    weight: float | None = None,
    filter_: DatasetFilter | None = None,
) -> DatasetUse:
    """Reads the manifest of a dataset, and returns a description of it.

    Args:
        url: The dataset.
        stored_url: Its address without secrets.
        purpose: What the dataset is used for.
        weight: Its weight in `data.mix`; None if there is none.
        filter_: Its filter; None if all of its samples are used.
    """
    manifest = read_manifest(url)
    samples = filter_.used if filter_ else manifest.samples
    return DatasetUse(stored_url, digest_of([manifest], [filter_]), samples, purpose, weight)


def foreign_data(data: DataConfig, run_url: str) -> str:
    """Returns the error message for a run whose checkpoint was trained on other data. The message shows no secrets."""
    addresses = " with ".join(open_store(dataset.url).url for dataset in data.datasets)
    changed = "a manifest or a filter has changed"
    if data.webdataset:
        addresses, changed = masked_url(data.webdataset.url), "the names of the tars have changed"
    return (
        f"{addresses} is not the data that {open_store(run_url).url} was trained on: {changed}. "
        "Give a new run another url."
    )
