"""Reads samples of a dataset by their indices. One request reads neighbouring samples, and all bytes are verified.

`Reader.fetch` looks up the samples in the shard indexes. It groups them by segment if there is a cache, and otherwise
by shard. It takes their bytes from the cache or from the store, and verifies the CRC-32C of each sample. Then it finds
the image and the annotation of each sample in these bytes. It decodes nothing; `decoded` decodes one sample, in the
process that needs the pixels. In place of a damaged sample, `fetch` returns an error object, so that the other samples
of the call are not lost. If a shard is missing, it raises an error.
"""

import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import google_crc32c
import numpy as np

from emocap_shards.annotation import Labels, load_annotation
from emocap_shards.cache import Cache
from emocap_shards.dataset_filter import DatasetFilter
from emocap_shards.decode import decode_image
from emocap_shards.errors import AnnotationError, DamagedSample, DamagedShard, FilterError, ImageError, NotFound
from emocap_shards.index import READS_AGAIN, Indexes, Slot
from emocap_shards.manifest import Manifest, Shard
from emocap_shards.members import members_of
from emocap_shards.order import Ids, ShardLayout
from emocap_shards.sample import Caption, Encoded, Sample
from emocap_shards.segment import Segment, ShardRows, Span
from emocap_shards.store import Store

# Reading through a gap of this size costs less than a second request (to a server, and to a disk).
_REMOTE_GAP_BYTES = 1 << 16
_LOCAL_GAP_BYTES = 1 << 12

# A segment, or None without a cache, and the wanted samples in it.
Part = tuple[Segment | None, ShardRows]
Fetched = dict[Span, list[bytes]]


class Reader:
    """Reads the samples of one dataset, and keeps the shard indexes that were used last. Threads may share a reader.

    Args:
        store: The store that holds the dataset.
        manifest: The manifest of the dataset.
        cache: A cache for segments of the shards, if the store is remote.
        first: The `index` that the first sample of the dataset gets in results, not 0 if another dataset precedes it in
            a mixture. The ids that `fetch` takes count from 0 in any case.
        place: A prefix for the paths of shards in results and errors. It distinguishes several datasets.
        filter_: The filter of the dataset. It only says which texts of the samples are unused (`Encoded.unused`): a
            sample that it leaves out can still be read.

    Example:
        ```python
        store = open_store("s3://bucket/faces")
        reader = Reader(store, read_manifest(store))
        samples = [decoded(sample) for sample in reader.fetch(np.arange(100))]
        ```
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        cache: Cache | None = None,
        *,
        first: int = 0,
        place: str = "",
        filter_: DatasetFilter | None = None,
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._cache = cache
        self._first = first
        self._place = place
        self._filter = filter_
        self._layout = ShardLayout(manifest.counts)
        self._gap_bytes = _LOCAL_GAP_BYTES if store.is_near else _REMOTE_GAP_BYTES
        self._indexes = Indexes(store, manifest.shards)

    def fetch(self, ids: Ids, *, direct: bool = False) -> list[Encoded | DamagedSample]:
        """Returns one entry for each id, in the order of the ids: the sample, or the error that describes its damage.

        Args:
            ids: Indices of samples in the dataset, from 0.
            direct: Whether to request only the bytes of these samples, and not their whole segments, if the cache does
                not contain them. This is the fastest way to read a few samples.

        Raises:
            DamagedShard: If a shard or its index is missing, or differs from what the manifest says.
            StoreError: If the store cannot be read, or the folder of the cache cannot be used.
            IndexError: If an id is not in the dataset.
        """
        # Each sample is read once, in ascending order, so that neighbours share a request. `places` restores the
        # caller's order and repetitions at the end.
        unique, places = np.unique(ids, return_inverse=True)
        wanted = self._wanted(unique)
        parts = self._parts(wanted)
        fetched = {} if direct else self._fill(parts)
        slots = [(rows.shard, slot) for rows in wanted for slot in rows.slots()]
        blocks = list(self._blocks(parts, fetched))
        damaged = self._repaired(unique, slots, blocks)
        found = enumerate(zip(unique.tolist(), slots, blocks, strict=True))
        results = [
            self._damage(shard, slot, block) if place in damaged else self._opened(index, shard, slot, block)
            for place, (index, (shard, slot), block) in found
        ]
        return [results[place] for place in places.tolist()]

    def warm(self, ids: Ids) -> None:
        """Fetches the segments that hold these samples into the cache. Without a cache, it does nothing.

        Raises:
            DamagedShard: If a shard or its index is missing, or differs from what the manifest says.
            StoreError: If the store cannot be read, or the folder of the cache cannot be used.
            IndexError: If an id is not in the dataset.
        """
        if self._cache:
            parts = self._parts(self._wanted(np.unique(ids)))
            self._cache.fill([segment for segment, _ in parts if segment], self._ranges)

    def _wanted(self, ids: Ids) -> list[ShardRows]:
        """Groups ascending ids by shard, and reads the indexes of these shards."""
        if len(ids) and not 0 <= ids[0] <= ids[-1] < self._layout.samples:
            raise IndexError(f"samples {ids[0]} to {ids[-1]} of {self._layout.samples} in {self._store.url}")
        numbers, heads = np.unique(self._layout.shard_of(ids), return_index=True)
        parts = np.split(ids, heads[1:])
        shards = zip(numbers.tolist(), self._indexes.of(numbers.tolist()), parts, strict=False)
        return [
            ShardRows(self._manifest.shards[number], index, part - self._layout.firsts[number])
            for number, index, part in shards
        ]

    def _parts(self, wanted: Iterable[ShardRows]) -> list[Part]:
        """Divides the wanted samples into parts: one for each segment, or one for each shard if there is no cache."""
        if self._cache is None:
            return [(None, rows) for rows in wanted]
        return [part for rows in wanted for part in rows.segments()]

    def _fill(self, parts: Sequence[Part]) -> Fetched:
        """Fetches the missing segments into the cache, and returns the wanted samples of the fetched segments.

        The samples are cut out of the fetched bytes, because the cache may have no room for a fetched segment.
        """
        if self._cache is None:
            return {}
        rows_of = {segment.name: rows for segment, rows in parts if segment}
        brought = self._cache.bring([segment for segment, _ in parts if segment], self._ranges)
        return {segment.span: segment.pieces(rows_of[segment.name], data) for segment, data in brought}

    def _blocks(self, parts: Iterable[Part], fetched: Fetched) -> Iterator[bytes]:
        """Yields the bytes of every wanted sample in order.

        The bytes come from `fetched`, from the cache or from the store. Neighbouring samples are requested from the
        store together.
        """
        # First find out what neither this call nor the cache has. Then request all of that in one call, so that the
        # store can send the requests at the same time. Last, merge both in the order of the samples.
        found = [(rows, self._kept(segment, rows, fetched)) for segment, rows in parts]
        runs = [rows.runs(self._gap_bytes) for rows, kept in found if kept is None]
        ranges = iter(self._ranges([span for spans, _ in runs for span in spans]))
        fresh = (_cut(list(islice(ranges, len(spans))), cuts) for spans, cuts in runs)
        for _, kept in found:
            yield from next(fresh) if kept is None else kept

    def _kept(self, segment: Segment | None, rows: ShardRows, fetched: Fetched) -> list[bytes] | None:
        if segment is None or self._cache is None:
            return None
        return fetched.get(segment.span) or self._cache.read(segment, rows)

    def _ranges(self, spans: Sequence[Span]) -> list[bytes]:
        try:
            return self._store.read_ranges(spans)
        except NotFound as error:
            raise DamagedShard.at(self._place + error.path, "it is missing") from error

    def _repaired(self, ids: Ids, slots: Sequence[tuple[Shard, Slot]], blocks: list[bytes]) -> set[int]:
        """Reads each block with a wrong checksum again from the store, and replaces it in `blocks`.

        A block holds the bytes of one sample. If bits have flipped on the way from the store, the stored sample is not
        damaged, and reading it again helps. A block is read again up to `READS_AGAIN` times. The reading ends earlier
        if the checksum is right, or if two consecutive readings give the same wrong bytes.

        Returns:
            The indices of the blocks whose checksum is still wrong.
        """
        open_cases = [place for place, (_, slot) in enumerate(slots) if not is_intact(blocks[place], slot)]
        damaged = set(open_cases)
        # The wrong bytes may come from the cache. The reads below go past it, to the store.
        self._forget(ids[open_cases])
        for _ in range(READS_AGAIN):
            if not open_cases:
                break
            spans = [(shard.path, slot.offset, slot.stop) for shard, slot in (slots[place] for place in open_cases)]
            before = [blocks[place] for place in open_cases]
            for place, data in zip(open_cases, self._ranges(spans), strict=True):
                blocks[place] = data
            damaged -= {place for place in open_cases if is_intact(blocks[place], slots[place][1])}
            # Equal wrong bytes twice mean that the store holds them: the case is closed as damage.
            pairs = zip(open_cases, before, strict=True)
            open_cases = [place for place, data in pairs if place in damaged and blocks[place] != data]
        return damaged

    def _opened(self, index: int, shard: Shard, slot: Slot, block: bytes) -> Encoded | DamagedSample:
        """Returns the sample whose bytes are `block`, or an error if they are not one image and one annotation."""
        path = self._place + shard.path
        try:
            members = members_of(block)
            annotation = members.pop("json")
            # Exactly one member, the image, must be left.
            ((extension, image),) = members.items()
        except (tarfile.TarError, KeyError, ValueError) as error:
            return DamagedSample.at(path, slot.key, f"it is not one image and one annotation ({error!r})")
        unused = self._filter.unused_texts(index) if self._filter else ()
        return Encoded(self._first + index, slot.key, path, extension, block, image, annotation, unused)

    def _damage(self, shard: Shard, slot: Slot, block: bytes) -> DamagedSample:
        reason = f"its CRC-32C is {google_crc32c.value(block):08x}, the index says {slot.crc32c:08x}"
        if len(block) != slot.length:
            reason = f"the shard ends {slot.length - len(block)} bytes early"
        return DamagedSample.at(self._place + shard.path, slot.key, reason)

    def _forget(self, ids: Ids) -> None:
        """Deletes the cached segments of these samples, because the damage may be in the cache."""
        if self._cache and len(ids):
            for rows in self._wanted(ids):
                for segment, _ in rows.segments():
                    self._cache.drop(segment)


def decoded(sample: Encoded | DamagedSample, *, seed: int = 0, epoch: int = 0) -> Sample | DamagedSample:
    """Returns the sample with its pixels and the caption that is shown in this epoch, without its unused texts.

    A damaged sample is returned unchanged. The result is also a `DamagedSample` if the image or the annotation cannot
    be decoded. If the image has several captions, `seed`, `epoch` and the sample's index determine which one is shown.

    Args:
        sample: One entry of the result of `Reader.fetch`.
        seed: Seed of the run.
        epoch: Epoch of the sample's dataset.

    Raises:
        FilterError: If the filter of the dataset names texts that the sample does not have.
    """
    if isinstance(sample, DamagedSample):
        return sample
    try:
        view = memoryview(sample.block)
        captions, labels = used_annotation(sample)
        image = decode_image(view[slice(*sample.image_at)])
    except (AnnotationError, ImageError) as error:
        return DamagedSample.at(sample.shard, sample.key, str(error))
    if not captions:
        return Sample(sample.index, sample.key, image, None, labels, epoch=epoch)
    shown = _view(len(captions), (seed, epoch, sample.index))
    further = captions[:shown] + captions[shown + 1 :]
    return Sample(sample.index, sample.key, image, captions[shown], labels, further, epoch, shown)


def used_annotation(sample: Encoded) -> tuple[tuple[Caption, ...], Labels]:
    """Returns the captions of a sample without its unused texts, and its labels.

    Raises:
        AnnotationError: If the annotation does not follow the format.
        FilterError: If the filter of the dataset names texts that the sample does not have.
    """
    annotation = memoryview(sample.block)[slice(*sample.annotation_at)]
    try:
        return load_annotation(annotation, sample.unused)
    except FilterError as error:
        place = f"sample {sample.key!r} of shard {sample.shard}"
        raise FilterError(f"the filter does not fit {place}: {error}; write the filter again.") from error


def is_intact(block: bytes, slot: Slot) -> bool:
    """Returns whether `block` has the length and the CRC-32C in `slot`, which is its entry in the shard index."""
    return len(block) == slot.length and google_crc32c.value(block) == slot.crc32c


def _view(captions: int, key: tuple[int, int, int]) -> int:
    """Returns which caption of an image is shown, as an index. `captions` is the number of captions of the image.

    The index depends only on `captions` and on `key`, which is (seed, epoch, index of the sample).
    """
    # A function of the key and not of a stream of random numbers, so a resumed run shows the same caption (decision 2).
    return int(np.random.SeedSequence(key).generate_state(1)[0]) % captions if captions > 1 else 0


def _cut(parts: Sequence[bytes], cuts: Iterable[tuple[int, int, int]]) -> list[bytes]:
    return [parts[number][start:stop] for number, start, stop in cuts]
