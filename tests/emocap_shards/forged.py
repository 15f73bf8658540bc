"""Makes datasets whose manifest and indexes are consistent, but whose members a writer would refuse."""

import hashlib
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import google_crc32c
from emocap_shards.annotation import dump_annotation
from emocap_shards.index import Slot, dump_index
from emocap_shards.manifest import Manifest, Shard
from emocap_shards.sample import Caption
from emocap_shards.store import open_store
from shard_cases import encode

END = bytes(1024)
ANNOTATION = dump_annotation(Caption("A face.", (), ""), {})


def sample(key: str, members: Mapping[str, bytes] | None = None) -> tuple[str, bytes]:
    """Returns a key and its part of a tar; `members` maps extensions to bytes."""
    files = {"png": encode(1), "json": ANNOTATION} if members is None else members
    return key, b"".join(_member(f"{key}.{extension}", data) for extension, data in files.items())


def forge(
    folder: Path, shards: Sequence[Sequence[tuple[str, bytes]]], *, between: bytes = b"", end: bytes = END
) -> Path:
    """Writes the dataset; `between` is written before each sample except the first of a shard."""
    rows: list[Shard] = []
    for number, samples in enumerate(shards):
        slots, tar = _laid_out(samples, between)
        rows.append(_write(folder, number, slots, tar + end))
    Manifest(tuple(rows)).write(open_store(folder))
    return folder


def _laid_out(samples: Sequence[tuple[str, bytes]], between: bytes) -> tuple[list[Slot], bytes]:
    slots: list[Slot] = []
    tar = b""
    for key, block in samples:
        tar += between if slots else b""
        slots.append(Slot(key, len(tar), len(block), google_crc32c.value(block)))
        tar += block
    return slots, tar


def _write(folder: Path, number: int, slots: Sequence[Slot], tar: bytes) -> Shard:
    path, index_path, index = f"shard-{number:06d}.tar", f"shard-{number:06d}.npy", dump_index(slots)
    (folder / path).write_bytes(tar)
    (folder / index_path).write_bytes(index)
    digests = hashlib.sha256(tar).hexdigest(), hashlib.sha256(index).hexdigest()
    return Shard(path, len(slots), len(tar), digests[0], index_path, digests[1])


def _member(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
        return file.getvalue()
