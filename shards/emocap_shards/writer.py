"""Records -> shards: deterministic WebDataset tars, each with its index, and the manifest last."""

import hashlib
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import google_crc32c

from emocap_shards.annotation import dump_annotation
from emocap_shards.decode import FORMATS, decode_image, image_header
from emocap_shards.errors import AnnotationError, ImageError, RecordError
from emocap_shards.index import Slot, dump_index
from emocap_shards.manifest import Manifest, Shard, refuse_dataset
from emocap_shards.sample import Record
from emocap_shards.store import Store, open_store

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
MAX_KEY_BYTES = 80


def write_shards(
    records: Iterable[Record],
    url: str | Path,
    *,
    samples_per_shard: int = 1000,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Writes a dataset; equal records in equal order give equal bytes.

    One shard at a time stands on the local disk, and all keys in memory. Stopped half-way, it leaves shards without
    a manifest, which nothing reads and a second run overwrites. Of two writers at one URL one is refused; if they
    wrote different records at the same time, `verify` the dataset of the other. `progress` is called after each
    shard with the number of samples written so far.

    Raises:
        ManifestError: If a dataset stands at the URL already.
        RecordError: If there is no record, or one may not enter a shard: its key is named.
    """
    if samples_per_shard < 1:
        raise RecordError(f"samples_per_shard={samples_per_shard}, but a shard holds at least one sample.")
    store = open_store(url)
    refuse_dataset(store)  # before the first record is asked for: it may be long in coming
    shards: list[Shard] = []
    for group in _groups(_unique(records), samples_per_shard):
        shards.append(_write_shard(group, store, number=len(shards)))
        if progress:
            progress(sum(shard.samples for shard in shards))
    if not shards:
        raise RecordError(f"there is no record to write to {url}; check the source.")
    manifest = Manifest(tuple(shards))
    manifest.write(store)
    return manifest


def tar_sample(record: Record) -> bytes:
    """The record as its stretch of a tar: image member, then JSON member, headers and padding included.

    Raises:
        RecordError: If key, image or caption may not enter a shard.
    """
    _check_key(record.key)
    try:
        annotation = dump_annotation(record.caption, record.labels, record.further)
        _check_image(record)
    except (AnnotationError, ImageError) as error:
        raise RecordError(f"record {record.key!r}: {error}; correct or leave out this record.") from error
    return _member(f"{record.key}.{record.extension}", record.image) + _member(f"{record.key}.json", annotation)


def _write_shard(records: Iterator[Record], store: Store, *, number: int) -> Shard:
    path, index_path = f"shard-{number:06d}.tar", f"shard-{number:06d}.npy"
    digest = hashlib.sha256()
    slots: list[Slot] = []
    offset = 0
    with tempfile.NamedTemporaryFile(prefix="emocap-shard-") as file:
        for record in records:
            block = tar_sample(record)
            slots.append(Slot(record.key, offset, len(block), google_crc32c.value(block)))
            offset += file.write(block)
            digest.update(block)
        offset += file.write(_END)
        digest.update(_END)
        file.flush()
        refuse_dataset(store)
        store.put_file(path, file.name)
    index = dump_index(slots)
    store.put(index_path, index)
    return Shard(path, len(slots), offset, digest.hexdigest(), index_path, hashlib.sha256(index).hexdigest())


def _groups(records: Iterator[Record], size: int) -> Iterator[Iterator[Record]]:
    """Consecutive groups of `size`, without holding one; each must be used up before the next is asked for."""
    for first in records:
        yield _chain(first, islice(records, size - 1))


def _chain(first: Record, rest: Iterator[Record]) -> Iterator[Record]:
    yield first
    yield from rest


def _unique(records: Iterable[Record]) -> Iterator[Record]:
    seen: set[str] = set()
    for record in records:
        if record.key in seen:
            raise RecordError(f"record {record.key!r} comes twice; give every record a key of its own.")
        seen.add(record.key)
        yield record


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % _BLOCK)


def _check_key(key: str) -> None:
    if not key or not key.isprintable() or set(key) & set("./\\") or len(key.encode()) > MAX_KEY_BYTES:
        rule = f"1 to {MAX_KEY_BYTES} bytes of printable text without dot, slash and backslash"
        raise RecordError(f"record {key!r} has an unusable key; a key is {rule}.")


def _check_image(record: Record) -> None:
    expected = FORMATS.get(record.extension)
    if expected is None:
        raise ImageError(f"extension {record.extension!r} is none of {', '.join(FORMATS)}")
    if (found := image_header(record.image)[0]) != expected:
        raise ImageError(f"the image is {found}, but its extension is {record.extension!r}")
    decode_image(record.image)  # all of it: a cut image has a good header, and would stop a training run
