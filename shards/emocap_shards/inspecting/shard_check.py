"""Checks one shard, its index and every sample in it.

A fault that only follows from another one is not reported again. If the index cannot be used, the samples are not
checked, because their places are not known. If the checksum of a sample is wrong, this is its only fault; otherwise its
members, annotation and image are checked. A wrong digest of the shard is reported only if its samples and its end have
no fault. `verify` runs this check in several processes.
"""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import google_crc32c
import numpy as np
from jaxtyping import UInt64

from emocap_shards.annotation import load_annotation
from emocap_shards.decode import checked_header, decode_image
from emocap_shards.errors import AnnotationError, DamagedShard, ImageError, NotFound, StoreError
from emocap_shards.index import ShardIndex, Slot, load_index, most_index_bytes
from emocap_shards.inspecting.faults import Fault, FaultKind
from emocap_shards.inspecting.tape import Tape
from emocap_shards.manifest import Shard
from emocap_shards.sample import Caption
from emocap_shards.store import Store

_BLOCK = tarfile.BLOCKSIZE
_END_BYTES = 2 * _BLOCK


@dataclass(frozen=True, slots=True, eq=False)
class Checked:
    """Holds the result of checking one shard.

    Attributes:
        faults: The faults that were found.
        keys: 64-bit hashes of the samples' keys, by which repeated keys are found. There are none if the index cannot
            be used.
        sha256: Digest of the shard's bytes, or "" if they were not read.
    """

    faults: tuple[Fault, ...]
    keys: UInt64[np.ndarray, " samples"]
    sha256: str = ""


def check_shard(store: Store, shard: Shard, *, quick: bool, on_bytes: Callable[[int], None]) -> Checked:
    """Checks one shard in the store, and returns its faults. With `quick`, only the index is checked.

    `on_bytes` is called after each read of the shard with the number of bytes read.
    """
    try:
        index, faults = _index(store, shard)
        if index is not None:
            faults += _layout(index, shard)
        keys = np.zeros(0, np.uint64) if index is None else key_hashes(index)
        if quick:
            return Checked(tuple(faults), keys)
        tape = Tape(store, shard.path, on_bytes)
        faults += _bytes(tape, store, shard, index)
        return Checked(tuple(faults), keys, tape.sha256())
    except StoreError as error:
        kind = FaultKind.MISSING_SHARD if isinstance(error, NotFound) else FaultKind.UNREADABLE
        fault = Fault(kind=kind, shard=shard.path, reason=str(error).rstrip("."), lost=shard.samples)
        return Checked((fault,), np.zeros(0, np.uint64))


def key_hashes(index: ShardIndex) -> UInt64[np.ndarray, " samples"]:
    """Returns a hash of 64 bits for the key of each sample."""
    digests = b"".join(hashlib.blake2b(slot.key.encode(), digest_size=8).digest() for slot in index)
    return np.frombuffer(digests, np.uint64)


def _index(store: Store, shard: Shard) -> tuple[ShardIndex | None, list[Fault]]:
    """Returns the index of a shard, and the faults of this index. The index is None if it cannot be used."""
    read = partial(store.read, shard.index_path, limit_bytes=most_index_bytes(shard))
    faults: list[Fault] = []
    try:
        data = first = read()
        # A wrong index is read a second time. If the bytes differ, the way is at fault and not the store.
        if hashlib.sha256(first).hexdigest() != shard.index_sha256:
            data = read()
        if data != first:
            reason = f"two readings of its index {shard.index_path} gave different bytes"
            faults.append(_fault(FaultKind.UNSTEADY, shard, reason))
    except NotFound:  # The comparison with the store's listing reports a missing index.
        return None, []
    if (found := hashlib.sha256(data).hexdigest()) != shard.index_sha256:
        reason = f"its index {shard.index_path} is not the one in the manifest"
        return None, faults or [_fault(FaultKind.INDEX_DIGEST, shard, reason, lost=shard.samples, found=found)]
    try:
        index = load_index(data, shard=shard.path)
    except DamagedShard as damage:
        reason = f"its index cannot be read ({damage.__cause__ or damage})"
        return None, [*faults, _fault(FaultKind.INDEX, shard, reason, lost=shard.samples)]
    if len(index) != shard.samples:
        reason = f"its index has {len(index)} samples, but the manifest says {shard.samples}"
        return None, [*faults, _fault(FaultKind.INDEX, shard, reason, lost=shard.samples)]
    return index, faults


def _layout(index: ShardIndex, shard: Shard) -> list[Fault]:
    """Checks that the samples of the index follow each other without gaps, and leave room for the end of the tar."""
    ends = index.offsets + index.lengths
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    odd = np.flatnonzero((index.offsets != starts) | (index.lengths <= 0) | (index.lengths % _BLOCK != 0))
    if odd.size:
        first = int(odd[0])
        reason = f"the index has it at byte {index.offsets[first]}, but the sample before ends at {starts[first]}"
        return [_fault(FaultKind.INDEX, shard, reason, key=index[first].key)]
    if (needed := int(ends[-1]) + _END_BYTES) > shard.bytes:
        reason = f"the samples of its index and an end need {needed:,} bytes, the manifest says {shard.bytes:,}"
        return [_fault(FaultKind.INDEX, shard, reason)]
    return []


def _bytes(tape: Tape, store: Store, shard: Shard, index: ShardIndex | None) -> list[Fault]:
    """Reads a shard to its end, and returns the faults of its samples and of its end.

    If there are none, but the SHA-256 of the shard is wrong, the result is one fault that says so. If `index` is None,
    the samples are not checked.
    """
    faults = [] if index is None else list(_samples(store, tape, shard, index))
    last = 0 if index is None else int((index.offsets + index.lengths).max())
    # The shard is read to its end in any case, because its digest needs every byte.
    faults += _end(tape, shard, last, is_known=index is not None and all(f.kind is not FaultKind.CUT for f in faults))
    if not faults and (found := tape.sha256()) != shard.sha256:  # Other faults say more than the digest.
        reason = f"its SHA-256 is {found[:16]}…, the manifest says {shard.sha256[:16]}…"
        faults.append(_fault(FaultKind.SHARD_DIGEST, shard, reason, found=found))
    return faults


def _samples(store: Store, tape: Tape, shard: Shard, index: ShardIndex) -> Iterator[Fault]:
    without_caption, sound = 0, True
    for row, slot in enumerate(index):
        block = tape.take(slot.offset, slot.offset + slot.length)
        if len(block) < slot.length:
            yield _cut(tape.position, shard, index, row)
            return
        # A damaged sample is read a second time. If the bytes differ, the way is at fault and not the store.
        found = _sample(block, slot, shard)
        if isinstance(found, Fault):
            sound = False
            yield _unsteady(store, slot, shard, block) or found
        else:
            without_caption += not found
    # A start of a run trusts the number in the manifest.
    if sound and without_caption != shard.without_caption:
        reason = f"{without_caption} of its samples have no caption, the manifest says {shard.without_caption}"
        yield _fault(FaultKind.ANNOTATION, shard, reason)


def _cut(size: int, shard: Shard, index: ShardIndex, row: int) -> Fault:
    """Returns the fault of a shard that ends early, after `size` bytes. `row` is the row of the first lost sample."""
    lost = len(index) - row
    more = f", this sample and the {lost - 1} after it are lost" if lost > 1 else ", this last sample is lost"
    where = "between two samples" if size == int(index.offsets[row]) else "inside a sample"
    return _fault(FaultKind.CUT, shard, f"the shard ends {where} at byte {size:,}{more}", key=index[row].key, lost=lost)


def _sample(block: bytes, slot: Slot, shard: Shard) -> Fault | tuple[Caption, ...]:
    """Returns the fault of one sample, whose bytes are `block`, or its captions if it has no fault."""
    if (found := google_crc32c.value(block)) != slot.crc32c:
        kind, what = _changed(block)
        reason = f"{what} (CRC-32C {found:08x}, the index says {slot.crc32c:08x})"
        return _fault(kind, shard, reason, key=slot.key, lost=1)
    try:
        # From here on the bytes are those that were packed, so what is wrong was packed like this.
        parts = _members(block)
        if parts.key != slot.key:
            raise ValueError(f"the index says this key, but its members have the key {parts.key!r}")
        captions, _ = load_annotation(parts.annotation)
        checked_header(parts.image, parts.extension)
        decode_image(parts.image)
    except AnnotationError as error:
        return _fault(FaultKind.ANNOTATION, shard, str(error), key=slot.key, lost=1)
    except ImageError as error:
        return _fault(FaultKind.IMAGE, shard, str(error), key=slot.key, lost=1)
    except ValueError as error:
        return _fault(FaultKind.MEMBERS, shard, str(error), key=slot.key, lost=1)
    return captions


def _changed(block: bytes) -> tuple[FaultKind, str]:
    """Returns the kind and the description of the damage in a sample whose checksum is wrong."""
    try:
        _members(block)
    except ValueError as error:
        return FaultKind.HEADER, str(error)
    return FaultKind.BYTES, "its image or annotation is not what was written"


@dataclass(frozen=True, slots=True)
class _Members:
    """Holds the two files of a sample, and the key that their names contain."""

    key: str
    extension: str
    image: bytes
    annotation: bytes


def _members(block: bytes) -> _Members:
    """Returns the image and the annotation in `block`, which holds the bytes of one sample in a tar.

    Raises:
        ValueError: If the block is not one image and one annotation with the same key; the message says what was found.
    """
    files = _files(block)
    names = ", ".join(map(repr, files)) or "empty"
    parts = {name: name.rpartition("/")[2].partition(".") for name in files}
    if sorted(extension == "json" for _, _, extension in parts.values()) != [False, True]:
        raise ValueError(f"it is {names}, not one image and one annotation")
    if len({key for key, _, _ in parts.values()}) != 1:
        raise ValueError(f"its members {names} have different keys")
    image, annotation = sorted(files, key=lambda name: parts[name][2] == "json")
    key, _, extension = parts[image]
    return _Members(key, extension, files[image], files[annotation])


def _files(block: bytes) -> dict[str, bytes]:
    try:
        with tarfile.open(fileobj=io.BytesIO(block), mode="r:") as tar:
            found = tar.getmembers()
            if any(not member.isreg() for member in found):
                raise ValueError("one of its members is not a regular file")
            end = found[-1].offset_data + -(-found[-1].size // _BLOCK) * _BLOCK if found else 0
            if end != len(block):
                raise ValueError(f"its tar members end at byte {end} of {len(block)}")
            return {member.name: block[member.offset_data : member.offset_data + member.size] for member in found}
    except tarfile.TarError as error:
        raise ValueError(f"its tar header is damaged ({error})") from error


def _unsteady(store: Store, slot: Slot, shard: Shard, block: bytes) -> Fault | None:
    """Reads a damaged sample again, and returns a fault if the second reading gives other bytes; otherwise None.

    `block` holds the bytes of the first reading. If the readings differ, bytes change on the way from the store to this
    process.
    """
    if store.read_range(shard.path, slot.offset, slot.offset + slot.length) == block:
        return None
    return _fault(FaultKind.UNSTEADY, shard, "two readings of it gave different bytes", key=slot.key)


def _end(tape: Tape, shard: Shard, last: int, *, is_known: bool) -> list[Fault]:
    """Reads the shard to its end, and returns a fault if the bytes after the last sample are wrong.

    After the last sample there must be zeros only, at least two tar blocks of them. `last` is the position at which the
    last sample ends. If `is_known` is False, this position is not known, and the rest of the shard is read without the
    check.
    """
    zeros, others = 0, 0
    for piece in tape.rest(last):
        zeros += piece.count(0)
        others += len(piece) - piece.count(0)
    if is_known and others:
        return [
            _fault(
                FaultKind.END, shard, f"after its last sample, at byte {last:,}, there are bytes that no index names"
            )
        ]
    if is_known and zeros < _END_BYTES:
        return [_fault(FaultKind.END, shard, f"{zeros} bytes of zeros follow its last sample, not {_END_BYTES}")]
    return []


def _fault(kind: FaultKind, shard: Shard, reason: str, *, key: str = "", lost: int = 0, found: str = "") -> Fault:
    return Fault(kind=kind, shard=shard.path, reason=reason, key=key, lost=lost, found=found)
