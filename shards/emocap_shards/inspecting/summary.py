"""Summarises a dataset: exact counts and sizes from its manifest, and statistics of samples that are spread over it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emocap_shards.errors import DamagedSample, DamagedShard
from emocap_shards.inspecting.annotations import LabelCounter, PartStatistics, caption_digest, part_counters
from emocap_shards.inspecting.counters import Counts, NumberCounter, Spread, TextCounter, spread_of
from emocap_shards.inspecting.faces import ContactSheet, SheetFace
from emocap_shards.inspecting.look import HeaderSample, evenly, everything, look
from emocap_shards.manifest import Manifest, read_manifest
from emocap_shards.reader import Reader
from emocap_shards.store import open_store

LOOK_AT, SECONDS, FACES = 5000, 20.0, 42
_MOST_CAPTIONS = 500_000
_MOST_REASONS = 10


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    """Holds the counts and sizes that follow from the manifest alone. They are exact, and no shard is read for them."""

    url: str
    digest: str
    samples: int
    shards: int
    bytes: int
    samples_per_shard: Spread
    bytes_per_shard: Spread
    without_caption: int = 0


@dataclass(frozen=True, slots=True)
class Coverage:
    """Describes which part of a dataset was examined.

    Attributes:
        asked: Number of samples that were chosen to be examined.
        samples: Number of samples that were examined, including damaged ones.
        damaged: Number of damaged samples; no other statistic includes them.
        seconds: Time that the examination took.
        out_of_time: Whether the time limit ended the examination before `asked` samples.
        reasons: Up to ten messages that say why samples are damaged, the first ones that were found.
    """

    asked: int
    samples: int
    damaged: int
    seconds: float
    out_of_time: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImageStatistics:
    """Summarises the images of the samples.

    `sizes` counts texts such as "224 x 224" (width x height), and `bytes` summarises the sizes of the encoded images.
    """

    formats: Counts
    sizes: Counts
    width_px: Spread
    height_px: Spread
    bytes: Spread


@dataclass(frozen=True, slots=True)
class Summary:
    """Holds the complete summary of a dataset.

    `stock` holds the counts and sizes that follow from the manifest, and is exact. All other fields describe only the
    samples that were read. `looked` says how many were read, how many of them are damaged, and whether the time limit
    ended the reading.

    `sentences` summarises the number of local sentences in a caption. `captions` counts the digests of complete
    captions, so `captions.repeats` is the number of captions that repeat an earlier one. `labels_left_out` is the
    number of label values that are left out because there are too many labels (`LabelCounter`).
    """

    stock: ManifestSummary
    looked: Coverage
    captions_per_image: Spread
    sentences: Spread
    captions: Counts
    parts: Mapping[str, PartStatistics]
    images: ImageStatistics
    text_labels: Mapping[str, Counts]
    number_labels: Mapping[str, Spread]
    labels_left_out: int
    faces: tuple[SheetFace, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the summary as plain values, for scripts. The faces are left out."""
        values = asdict(self)
        del values["faces"]
        return values


def summarise(
    url: str | Path,
    *,
    look_at: int | None = LOOK_AT,
    seconds: float | None = SECONDS,
    faces: int = FACES,
    on_progress: Callable[[int, int], None] = lambda _seen, _of: None,
) -> Summary:
    """Summarises a dataset from its manifest and some of its samples. The memory is bounded for a dataset of any size.

    Args:
        url: The dataset.
        look_at: Number of samples to read, at even distances, from at most 256 shards. With None, all samples of the
            dataset are read.
        seconds: Stops reading after this time and summarises the samples read by then; None sets no limit.
        faces: Maximum number of faces on the contact sheet.
        on_progress: Called with the number of samples read so far, and the number to be read.

    Raises:
        ManifestError: If there is no dataset.
        StoreError: If the store cannot be read.

    Example:
        ```python
        summary = summarise("s3://bucket/faces/train")
        print(summary.stock.samples, summary.parts["global"].words.mean)
        Path("faces.html").write_text(page(summary), encoding="utf-8")
        ```
    """
    store = open_store(url)
    manifest = read_manifest(store)
    reader = Reader(store, manifest)
    if look_at is None:
        picks, asked = everything(manifest), manifest.samples
    else:
        picks = evenly(manifest, look_at)
        asked = sum(map(len, picks))  # Fewer than `look_at` if the chosen shards have fewer samples.
    collector = _Collector(asked, faces)
    # A shard that cannot be read costs all samples of the pick; a damaged sample costs itself. Both are counted, and
    # neither ends the summary.
    for pick, found in look(reader, picks):
        if isinstance(found, DamagedShard):
            collector.lose(len(pick), str(found))
        else:
            for seen in found:
                collector.add(seen)
        on_progress(collector.seen, collector.asked)
        if seconds is not None and collector.age_s > seconds:
            break
    return collector.summary(_stock(store.url, manifest))


class _Collector:
    """Collects the statistics of samples, one sample at a time.

    `asked` is the number of samples to be examined, and `faces` is the maximum number of faces on the contact sheet.
    """

    def __init__(self, asked: int, faces: int) -> None:
        self.asked = asked
        self.seen = 0
        self._started = time.monotonic()
        self._damaged = 0
        self._reasons: list[str] = []
        self._captions_per_image, self._sentences = NumberCounter(), NumberCounter()
        self._captions = TextCounter(_MOST_CAPTIONS)
        self._parts = part_counters()
        self._images = _ImageCounter()
        self._labels = LabelCounter()
        self._sheet = ContactSheet(faces)

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._started

    def lose(self, samples: int, reason: str) -> None:
        """Counts `samples` samples as damaged for the same `reason`, which is kept if it is one of the first ten."""
        self.seen += samples
        self._damaged += samples
        if len(self._reasons) < _MOST_REASONS:
            self._reasons.append(reason)

    def add(self, seen: HeaderSample | DamagedSample) -> None:
        """Adds a sample to all statistics, or counts it as damaged."""
        if isinstance(seen, DamagedSample):
            self.lose(1, _lost(seen.shard, seen.key, seen.reason))
            return
        # The contact sheet comes first: it decodes some images, and a damaged one must be in no statistic.
        if not self._sheet.add(seen):
            self.lose(1, _lost(seen.shard, seen.key, "the image cannot be decoded"))
            return
        self.seen += 1
        self._captions_per_image.add([len(seen.captions)])
        self._sentences.add(len(caption.local) for caption in seen.captions)
        self._captions.add(map(caption_digest, seen.captions))
        for part in self._parts.values():
            part.add(seen.captions)
        self._images.add(seen)
        self._labels.add(seen.labels)

    def summary(self, stock: ManifestSummary) -> Summary:
        out_of_time = self.seen < self.asked
        return Summary(
            stock=stock,
            looked=Coverage(
                self.asked, self.seen, self._damaged, round(self.age_s, 2), out_of_time, tuple(self._reasons)
            ),
            captions_per_image=self._captions_per_image.spread(),
            sentences=self._sentences.spread(),
            captions=self._captions.counts(0),
            parts={name: counter.part() for name, counter in self._parts.items()},
            images=self._images.images(),
            text_labels=self._labels.texts(),
            number_labels=self._labels.numbers(),
            labels_left_out=self._labels.values_left_out,
            faces=self._sheet.faces(),
        )


class _ImageCounter:
    """Collects the statistics of images from their headers."""

    def __init__(self) -> None:
        self._formats, self._sizes = TextCounter(100), TextCounter(10_000)
        self._width, self._height, self._bytes = NumberCounter(), NumberCounter(), NumberCounter()

    def add(self, seen: HeaderSample) -> None:
        self._formats.add([seen.kind])
        self._sizes.add([f"{seen.width} x {seen.height}"])
        self._width.add([seen.width])
        self._height.add([seen.height])
        self._bytes.add([len(seen.image)])

    def images(self) -> ImageStatistics:
        spreads = self._width.spread(), self._height.spread(), self._bytes.spread()
        return ImageStatistics(self._formats.counts(10), self._sizes.counts(8), *spreads)


def _lost(shard: str, key: str, reason: str) -> str:
    """Returns a message that names a damaged sample, gives the reason, and advises to run `emocap verify`.

    The reader's own message is not used, because its advice is for training.
    """
    return f"sample {key!r} of shard {shard}: {reason}; run `emocap verify`."


def _stock(url: str, manifest: Manifest) -> ManifestSummary:
    """Returns the counts and sizes that follow from the manifest of the dataset at `url`."""
    return ManifestSummary(
        url=url,
        digest=manifest.digest,
        samples=manifest.samples,
        shards=len(manifest.shards),
        bytes=manifest.total_bytes,
        samples_per_shard=spread_of(manifest.counts),
        bytes_per_shard=spread_of(shard.bytes for shard in manifest.shards),
        without_caption=manifest.without_caption,
    )
