"""What stands in a dataset, and whether all of it is still what was written."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emocap_shards.errors import DamagedSample, DamagedShard, NotFound
from emocap_shards.manifest import Manifest, Shard, read_manifest
from emocap_shards.reader import Reader, open_block, read_index
from emocap_shards.sample import Caption, Sample
from emocap_shards.store import Store, open_store

_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Spread:
    """The smallest, the mean and the largest of some numbers."""

    least: float
    mean: float
    most: float

    @classmethod
    def of(cls, numbers: Sequence[float] | Sequence[int]) -> "Spread":
        """All three are 0 where there is no number."""
        if not numbers:
            return cls(0.0, 0.0, 0.0)
        return cls(float(min(numbers)), sum(numbers) / len(numbers), float(max(numbers)))


@dataclass(frozen=True, slots=True)
class Summary:
    """A dataset in numbers. The first group is exact, the second comes from `looked_at` samples spread over it.

    `labels` counts the values of each text label, `numbers` spreads each numeric one. `words` is by part: "global",
    "local" (of one sentence) and "summary"; `sentences` is how many local sentences a caption has. `damaged` of the
    samples that were looked at could not be read and are not in the numbers.
    """

    url: str
    digest: str
    samples: int
    shards: int
    bytes: int

    looked_at: int
    damaged: int
    labels: Mapping[str, Mapping[str, int]]
    numbers: Mapping[str, Spread]
    words: Mapping[str, Spread]
    sentences: Spread
    width_px: Spread
    height_px: Spread


def summarise(url: str | Path, *, look_at: int = 1000) -> Summary:
    """Reads the manifest and at most `look_at` samples.

    Raises:
        ManifestError: If there is no dataset.
        DamagedShard: If a shard that is looked at is missing, or its index is not what the manifest says.
    """
    store = open_store(url)
    manifest = read_manifest(store)
    looked_at = min(max(look_at, 0), manifest.samples)
    samples = list(_look(store, manifest, looked_at))
    return Summary(
        url=store.url,
        digest=manifest.digest,
        samples=manifest.samples,
        shards=len(manifest.shards),
        bytes=manifest.total_bytes,
        looked_at=looked_at,
        damaged=looked_at - len(samples),
        labels=_text_labels(samples),
        numbers=_number_labels(samples),
        words=_words(samples),
        sentences=Spread.of([len(sample.caption.local) for sample in samples]),
        width_px=Spread.of([sample.width for sample in samples]),
        height_px=Spread.of([sample.height for sample in samples]),
    )


def verify(url: str | Path) -> list[str]:
    """Reads every byte; one line for each thing that is not what was written. An empty list: the dataset is whole.

    Raises:
        ManifestError: If there is no dataset.
    """
    store = open_store(url)
    manifest = read_manifest(store)
    return [*_strays(store, manifest), *(line for shard in manifest.shards for line in _verify_shard(store, shard))]


@dataclass(frozen=True, slots=True)
class _Glance:
    """What the summary needs of a sample; the pixels themselves are let go."""

    caption: Caption
    labels: Mapping[str, str | float]
    height: int
    width: int


def _look(store: Store, manifest: Manifest, count: int) -> Iterator[_Glance]:
    """The undamaged ones of `count` samples, spread evenly."""
    reader = Reader(store, manifest)
    ids = np.arange(count, dtype=np.int64) * manifest.samples // max(count, 1)
    for start in range(0, count, _CHUNK):
        for result in reader.read(ids[start : start + _CHUNK]):
            if isinstance(result, Sample):
                yield _Glance(result.caption, result.labels, *result.image.shape[:2])


def _text_labels(samples: Iterable[_Glance]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for name, label in _labels(samples):
        if isinstance(label, str):
            counts.setdefault(name, Counter())[label] += 1
    return {name: dict(counter.most_common()) for name, counter in sorted(counts.items())}


def _number_labels(samples: Iterable[_Glance]) -> dict[str, Spread]:
    numbers: dict[str, list[float]] = {}
    for name, label in _labels(samples):
        if not isinstance(label, str):
            numbers.setdefault(name, []).append(label)
    return {name: Spread.of(values) for name, values in sorted(numbers.items())}


def _labels(samples: Iterable[_Glance]) -> Iterator[tuple[str, str | float]]:
    return ((name, label) for sample in samples for name, label in sample.labels.items())


def _words(samples: Sequence[_Glance]) -> dict[str, Spread]:
    captions = [sample.caption for sample in samples]
    texts = {
        "global": [caption.whole for caption in captions],
        "local": [sentence for caption in captions for sentence in caption.local],
        "summary": [caption.summary for caption in captions],
    }
    return {part: Spread.of([len(text.split()) for text in lines]) for part, lines in texts.items()}


def _strays(store: Store, manifest: Manifest) -> Iterator[str]:
    """Files that look like shards to a reader that goes by their names."""
    known = {path for shard in manifest.shards for path in (shard.path, shard.index_path)}
    for entry in store.list():
        if entry.path.startswith("shard-") and entry.path not in known:
            yield f"{entry.path}: the manifest does not name it; delete it."


def _verify_shard(store: Store, shard: Shard) -> Iterator[str]:
    try:
        tar = store.read(shard.path)
    except NotFound:
        yield f"{shard.path}: it is missing."
        return
    if (found := hashlib.sha256(tar).hexdigest()) != shard.sha256:
        yield f"{shard.path}: {len(tar)} bytes, SHA-256 {found}; the manifest says {shard.bytes}, {shard.sha256}."
    try:
        index = read_index(store, shard)
    except DamagedShard as damage:
        yield str(damage)
        return
    for slot in index:
        try:
            open_block(tar[slot.offset : slot.offset + slot.length], slot, index=0, shard=shard.path)
        except DamagedSample as damage:
            yield str(damage)
