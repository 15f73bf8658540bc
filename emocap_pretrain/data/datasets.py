"""Opens the datasets of a run: their digest, a rank's stream, and a tokenizer trained on their captions."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from emocap_shards.annotation import load_annotation
from emocap_shards.cache import Cache
from emocap_shards.cursor import Cursor
from emocap_shards.inspecting.wording import percent
from emocap_shards.library import MixtureSource
from emocap_shards.manifest import Manifest, read_manifest
from emocap_shards.sample import Caption
from emocap_shards.store import open_store
from emocap_shards.stream import Stream

from emocap_pretrain.config.schema import DataConfig, EvaluationConfig, PartLengthsConfig, SourceConfig, TextTowerConfig
from emocap_pretrain.data.parts import PARTS
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.ranks.info import RankInfo

TOKENIZER_SAMPLES, CUT_SAMPLES = 20_000, 2000


def train_tokenizer(data: DataConfig, vocabulary: int) -> Tokenizer:
    """Returns a tokenizer of so many tokens, trained on the first captions of the data in the order of the manifest."""
    samples = _first_captions(data.sources, TOKENIZER_SAMPLES, error_budget=data.error_budget)
    captions = itertools.chain.from_iterable(samples)
    texts = (text for each in captions for part in PARTS for text in part.texts(each))
    return Tokenizer.trained_on(texts, vocabulary)


def tokenizer_of(settings: TextTowerConfig, data: DataConfig) -> Tokenizer:
    """Returns the tokenizer of a new run: the one that the settings name, or one that is trained on the data."""
    if settings.tokenizer == "data":
        return train_tokenizer(data, settings.vocabulary)
    return Tokenizer.load(settings.tokenizer)


@dataclass(frozen=True, slots=True)
class CutTexts:
    """Counts the texts of one kind, and those that are cut because they have more tokens than the tower reads.

    Attributes:
        kind: Name of the texts: a caption part, or "prompts".
        limit: Most tokens that the tower reads of a text.
        texts: Number of texts.
        cut: Number of texts with more tokens.
        longest: Tokens of the longest text.
    """

    kind: str
    limit: int
    texts: int
    cut: int
    longest: int

    @classmethod
    def of(cls, kind: str, tokenizer: Tokenizer, texts: Sequence[str], limit: int) -> "CutTexts":
        """Counts the tokens of these texts."""
        counts = tokenizer.counts(texts)
        return cls(kind, limit, len(counts), sum(count > limit for count in counts), max(counts, default=0))

    @property
    def share(self) -> float:
        """Share of the texts that are cut, in [0, 1]."""
        return self.cut / self.texts if self.texts else 0.0

    def __str__(self) -> str:
        more = f" (up to {self.longest} tokens, {self.limit} are read)" if self.cut else ""
        return f"{self.kind} {percent(self.cut, self.texts)}{more}"


def cut_captions(
    sources: Sequence[SourceConfig], tokenizer: Tokenizer, lengths: PartLengthsConfig
) -> tuple[int, list[CutTexts]]:
    """Reads the first samples, 2,000 at most; returns their number, and for each part how many texts are cut."""
    samples = list(_first_captions(sources, CUT_SAMPLES, error_budget=CUT_SAMPLES))
    captions = list(itertools.chain.from_iterable(samples))
    texts = {part.name: [text for each in captions for text in part.texts(each)] for part in PARTS}
    limits = lengths.by_part
    return len(samples), [CutTexts.of(name, tokenizer, each, limits[name]) for name, each in texts.items()]


def _first_captions(
    sources: Sequence[SourceConfig], samples: int, *, error_budget: int
) -> Iterator[tuple[Caption, ...]]:
    """Yields the captions of each of the first samples, in the order of the manifest."""
    stream = Stream(url=_sources(sources), global_batch=256, shuffle=False, epochs=1, error_budget=error_budget)
    encoded = itertools.chain.from_iterable(portion.samples for portion in stream.encoded_steps())
    return (load_annotation(sample.annotation)[0] for sample in itertools.islice(encoded, samples))


def open_stream(data: DataConfig, info: RankInfo, start: Cursor, *, global_batch: int, seed: int) -> Stream:
    """Returns the stream of the samples that this rank reads, from the cursor on.

    Args:
        data: The datasets, and how they are shuffled and cached.
        info: The rank that reads.
        start: Position at which the stream begins.
        global_batch: Samples of a step over all ranks.
        seed: Decides the order of the samples.
    """
    return Stream(
        url=_sources(data.sources),
        global_batch=global_batch,
        seed=seed,
        rank=info.rank,
        world_size=info.world_size,
        window_samples=data.window_samples(global_batch),
        drop_last=data.drop_last,
        start=start,
        error_budget=data.error_budget,
        cache=Cache(data.cache, round(data.cache_gb * 1e9)) if data.cache_gb else None,
    )


def _sources(sources: Sequence[SourceConfig]) -> tuple[MixtureSource, ...]:
    return tuple(MixtureSource(source.url, source.weight) for source in sources)


def data_digest_of(data: DataConfig) -> str:
    """Reads the manifests of the datasets and returns their digest."""
    return digest_of([read_manifest(source.url) for source in data.sources])


def digest_of(manifests: Sequence[Manifest]) -> str:
    """Returns the digest of the datasets of a run, which come in the order of the settings."""
    digests = [manifest.digest for manifest in manifests]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class DatasetUse:
    """Describes a packed dataset and what a run uses it for, for the tracker and for plots.

    Attributes:
        url: The address in the config. It holds no secret; the text `${oc.env:...}` stays.
        digest: SHA-256 of the manifest. `emocap inspect` prints its first 16 characters.
        samples: Number of samples.
        purpose: What the run uses it for.
        weight: The weight in `data.mix`; None where none is given.
    """

    url: str
    digest: str
    samples: int
    purpose: Literal["training", "evaluation"]
    weight: float | None = None

    @property
    def name(self) -> str:
        """The last two folders of the URL, such as `faces/train`."""
        return "/".join(self.url.rstrip("/").split("/")[-2:])

    @property
    def short_digest(self) -> str:
        """The first 16 characters of the digest, as `emocap inspect` prints them."""
        return self.digest[:16]


def training_data(data: DataConfig, stored: Mapping[str, Any]) -> list[DatasetUse]:
    """Returns the datasets that a run trains on; reads their manifests.

    Args:
        data: The settings.
        stored: The same settings as they may be logged (`Config.stored`).
    """
    urls = [source["url"] for source in stored["mix"]] or [stored["url"]]
    return [_use(source.url, url, "training", source.weight) for source, url in zip(data.sources, urls, strict=True)]


def evaluation_data(settings: EvaluationConfig, stored: Mapping[str, Any]) -> list[DatasetUse]:
    """Returns the dataset that a run is evaluated on, if there is one; reads its manifest.

    Args:
        settings: The settings.
        stored: The same settings as they may be logged (`Config.stored`).
    """
    return [_use(settings.url, stored["url"], "evaluation")] if settings.url else []


def _use(
    url: str, stored_url: str, purpose: Literal["training", "evaluation"], weight: float | None = None
) -> DatasetUse:
    manifest = read_manifest(url)
    return DatasetUse(stored_url, manifest.digest, manifest.samples, purpose, weight)


def foreign_data(data: DataConfig, run_url: str) -> str:
    """Returns the error message for a run whose checkpoint was trained on other data, without secrets."""
    addresses = " with ".join(open_store(source.url).url for source in data.sources)
    return (
        f"{addresses} is not the data that {open_store(run_url).url} was trained on: a manifest has changed. "
        "Give a new run another url."
    )
