"""What a run is fed with: its datasets, their digest, a rank's stream, and a tokenizer of their captions."""

import hashlib
import itertools
from collections.abc import Sequence

from emocap_shards.annotation import load_annotation
from emocap_shards.cache import Cache
from emocap_shards.cursor import Cursor
from emocap_shards.manifest import Manifest, read_manifest
from emocap_shards.source import Source
from emocap_shards.store import open_store
from emocap_shards.stream import Stream

from emocap_pretrain.config.schema import Config
from emocap_pretrain.runtime import Place
from emocap_pretrain.tokenizer import Tokenizer

TOKENIZER_SAMPLES = 20_000


def train_tokenizer(config: Config) -> str:
    """On the first captions of the dataset, in the manifest's order."""
    budget = config.data.error_budget
    stream = Stream(url=_sources(config), global_batch=256, shuffle=False, epochs=1, error_budget=budget)
    samples = itertools.chain.from_iterable(portion.samples for portion in stream.encoded_steps())
    annotations = (sample.annotation for sample in itertools.islice(samples, TOKENIZER_SAMPLES))
    captions = itertools.chain.from_iterable(load_annotation(annotation)[0] for annotation in annotations)
    texts = (text for each in captions for text in (each.whole, each.summary, *each.local))
    return Tokenizer.trained_on(texts, config.model.text.vocabulary).to_json()


def stream_of(config: Config, place: Place, start: Cursor) -> Stream:
    """What this rank reads, behind the cursor."""
    return Stream(
        url=_sources(config),
        global_batch=config.global_batch,
        seed=config.seed,
        rank=place.rank,
        world=place.world,
        window_samples=config.shuffle_window,
        drop_last=config.data.drop_last,
        start=start,
        error_budget=config.data.error_budget,
        cache=Cache(config.data.cache, round(config.data.cache_gb * 1e9)) if config.data.cache_gb else None,
    )


def _sources(config: Config) -> tuple[Source, ...]:
    return tuple(Source(source.url, source.weight) for source in config.data.sources)


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
