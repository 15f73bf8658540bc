"""Sample ids -> samples: ranged reads, checked byte for byte against the shard index."""

import functools
import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import google_crc32c
import numpy as np

from emocap_shards.annotation import load_annotation
from emocap_shards.decode import decode_image
from emocap_shards.errors import AnnotationError, DamagedSample, DamagedShard, ImageError, NotFound
from emocap_shards.index import ShardIndex, Slot, load_index
from emocap_shards.manifest import Manifest, Shard
from emocap_shards.plan import Ids
from emocap_shards.sample import Sample
from emocap_shards.store import Store

# Reading over a gap this small costs less than a second request.
_GAP_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class _Place:
    """One wanted sample: its number in the dataset, its shard, its slot there."""

    index: int
    shard: Shard
    slot: Slot

    @property
    def end(self) -> int:
        return self.slot.offset + self.slot.length


class Reader:
    """Reads one dataset. It keeps the indexes of the shards that it used last, and is not meant to be pickled."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store = store
        self._manifest = manifest
        self._firsts = np.concatenate([[0], np.cumsum(manifest.counts)])
        self._index = functools.lru_cache(maxsize=256)(self._read_index)

    def read(self, ids: Ids) -> list[Sample | DamagedSample]:
        """One entry for each id, in their order: the sample, or what is wrong with it.

        Raises:
            DamagedShard: If a shard or its index is missing or not what the manifest says.
            StoreError: If the store cannot be read.
            IndexError: If an id is not in the dataset.
        """
        places = [self._place(int(index)) for index in ids]
        blocks = self._fetch(places)
        return [self._sample(place, blocks[place.index]) for place in places]

    def _place(self, index: int) -> _Place:
        if not 0 <= index < self._manifest.samples:
            raise IndexError(f"sample {index} of {self._manifest.samples} in {self._store.url}")
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return _Place(index, self._manifest.shards[number], self._index(number)[index - int(self._firsts[number])])

    def _read_index(self, number: int) -> ShardIndex:
        return read_index(self._store, self._manifest.shards[number])

    def _fetch(self, places: Iterable[_Place]) -> dict[int, bytes]:
        """The bytes of every place, neighbours in one request."""
        runs = list(merged(places))
        try:
            parts = self._store.read_ranges([(run[0].shard.path, run[0].slot.offset, run[-1].end) for run in runs])
        except NotFound as error:
            raise DamagedShard.at(error.path, "it is missing") from error
        return {place.index: _cut(part, run[0], place) for run, part in zip(runs, parts, strict=True) for place in run}

    def _sample(self, place: _Place, block: bytes) -> Sample | DamagedSample:
        if not _is_intact(block, place.slot):
            # Once more: bits that flipped on the way are not damage.
            block = self._store.read_range(place.shard.path, place.slot.offset, place.end)
        try:
            return open_block(block, place.slot, index=place.index, shard=place.shard.path)
        except DamagedSample as damage:
            return damage


def read_index(store: Store, shard: Shard) -> ShardIndex:
    """The index of a shard, if it is the one that the manifest means.

    Raises:
        DamagedShard: If it is missing or another.
    """
    try:
        data = store.read(shard.index_path)
    except NotFound as error:
        raise DamagedShard.at(shard.path, f"its index {shard.index_path} is missing") from error
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise DamagedShard.at(shard.path, f"its index {shard.index_path} is not the one in the manifest")
    index = load_index(data, shard=shard.path)
    if len(index) != shard.samples:
        raise DamagedShard.at(shard.path, f"its index has {len(index)} samples, the manifest {shard.samples}")
    return index


def open_block(block: bytes, slot: Slot, *, index: int, shard: str) -> Sample:
    """The sample in its stretch of a tar.

    Raises:
        DamagedSample: If the bytes are not those that were written, or cannot be decoded.
    """
    if not _is_intact(block, slot):
        raise DamagedSample.at(shard, slot.key, _difference(block, slot))
    try:
        members = _members(block)
        annotation = members.pop("json")
        (image,) = members.values()
        (caption, *_), labels = load_annotation(annotation)
        return Sample(index, slot.key, decode_image(image), caption, labels)
    except (AnnotationError, ImageError) as error:
        raise DamagedSample.at(shard, slot.key, str(error)) from error
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise DamagedSample.at(shard, slot.key, f"it is not one image and one annotation ({error!r})") from error


def merged(places: Iterable[_Place]) -> Iterator[list[_Place]]:
    """Runs of places that lie close together in one shard, in the order of the tar."""
    run: list[_Place] = []
    for place in sorted(set(places), key=lambda place: (place.shard.path, place.slot.offset)):
        if run and (place.shard != run[-1].shard or place.slot.offset - run[-1].end > _GAP_BYTES):
            yield run
            run = []
        run.append(place)
    if run:
        yield run


def _cut(part: bytes, first: _Place, place: _Place) -> bytes:
    start = place.slot.offset - first.slot.offset
    return part[start : start + place.slot.length]


def _is_intact(block: bytes, slot: Slot) -> bool:
    return len(block) == slot.length and google_crc32c.value(block) == slot.crc32c


def _difference(block: bytes, slot: Slot) -> str:
    if len(block) != slot.length:
        return f"the shard ends {slot.length - len(block)} bytes early"
    return f"its CRC-32C is {google_crc32c.value(block):08x}, the index says {slot.crc32c:08x}"


def _members(block: bytes) -> dict[str, bytes]:
    """Extension -> bytes of the members of one sample."""
    with tarfile.open(fileobj=io.BytesIO(block), mode="r:") as tar:
        files = ((member, tar.extractfile(member)) for member in tar)
        return {member.name.split(".", 1)[-1]: file.read() for member, file in files if file}
