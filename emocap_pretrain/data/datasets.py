"""Opens the datasets of a run: their digest, a rank's stream, and a tokenizer trained on their captions."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from emocap_shards.annotation import load_annotation
from emocap_shards.cache import Cache
from emocap_shards.cursor import Cursor
from emocap_shards.inspecting.wording import percent
from emocap_shards.library import MixtureSource
from emocap_shards.manifest import Manifest, read_manifest
from emocap_shards.sample import Caption
from emocap_shards.store import open_store
from emocap_shards.stream import Stream

from emocap_pretrain.config.schema import Config, PartLengthsConfig, SourceConfig
from emocap_pretrain.data.parts import PARTS
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.ranks.info import RankInfo

TOKENIZER_SAMPLES, CUT_SAMPLES = 20_000, 2000


def train_tokenizer(config: Config) -> str:
    """On the first captions of the dataset, in the manifest's order."""
    samples = _first_captions(config.data.sources, TOKENIZER_SAMPLES, error_budget=config.data.error_budget)
    captions = itertools.chain.from_iterable(samples)
    texts = (text for each in captions for part in PARTS for text in part.texts(each))
    return Tokenizer.trained_on(texts, config.model.text.vocabulary).to_json()


def tokenizer_of(config: Config) -> Tokenizer:
    """The tokenizer of a new run: the one that the settings name, or one that is trained on the data."""
    settings = config.model.text
    if settings.tokenizer == "data":
        return Tokenizer.from_json(train_tokenizer(config))
    return Tokenizer.load(settings.tokenizer)


@dataclass(frozen=True, slots=True)
class CutTexts:
    """How many texts of one kind have more tokens than the tower reads of them."""

    kind: str
    limit: int
    texts: int
    cut: int
    longest: int

    @classmethod
    def of(cls, kind: str, tokenizer: Tokenizer, texts: Sequence[str], limit: int) -> "CutTexts":
        counts = tokenizer.counts(texts)
        return cls(kind, limit, len(counts), sum(count > limit for count in counts), max(counts, default=0))

    @property
    def share(self) -> float:
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
    """The captions of each of the first samples, in the manifest's order."""
    stream = Stream(url=_sources(sources), global_batch=256, shuffle=False, epochs=1, error_budget=error_budget)
    encoded = itertools.chain.from_iterable(portion.samples for portion in stream.encoded_steps())
    return (load_annotation(sample.annotation)[0] for sample in itertools.islice(encoded, samples))


def stream_of(config: Config, info: RankInfo, start: Cursor) -> Stream:
    """Returns the stream of this rank, from the cursor on."""
    return Stream(
        url=_sources(config.data.sources),
        global_batch=config.global_batch,
        seed=config.seed,
        rank=info.rank,
        world_size=info.world_size,
        window_samples=config.shuffle_window,
        drop_last=config.data.drop_last,
        start=start,
        error_budget=config.data.error_budget,
        cache=Cache(config.data.cache, round(config.data.cache_gb * 1e9)) if config.data.cache_gb else None,
    )


def _sources(sources: Sequence[SourceConfig]) -> tuple[MixtureSource, ...]:
    return tuple(MixtureSource(source.url, source.weight) for source in sources)


def named(config: Config) -> str:
    """The addresses, without secrets."""
    return " with ".join(open_store(source.url).url for source in config.data.sources)


def data_digest_of(config: Config) -> str:
    """Of the one manifest, or of all of them."""
    return digest_of([read_manifest(source.url) for source in config.data.sources])


def digest_of(manifests: Sequence[Manifest]) -> str:
    """Of the datasets of a run, in their order."""
    digests = [manifest.digest for manifest in manifests]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def foreign_data(config: Config) -> str:
    """Says that a checkpoint of the run has seen other data."""
    return (
        f"{named(config)} is not the data that {open_store(config.url).url} was trained on: a manifest has changed. "
        "Give a new run another url."
    )
