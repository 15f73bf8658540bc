"""Compares the manifest with a listing of the store, which finds gross damage before any shard is read."""

from collections.abc import Iterator, Mapping, Sequence

from emocap_shards.inspecting.faults import Fault, FaultKind
from emocap_shards.manifest import Manifest, Shard
from emocap_shards.store.protocol import Entry

_OURS = (".tar", ".npy")


def compare(manifest: Manifest, entries: Sequence[Entry]) -> Iterator[Fault]:
    """Yields a fault for each object that is missing, has another size, or is not named by the manifest."""
    sizes = {entry.path: entry.size for entry in entries}
    for shard in manifest.shards:
        yield from _shard(shard, sizes)
    known = {path for shard in manifest.shards for path in (shard.path, shard.index_path)}
    for path in sizes:
        if path.endswith(_OURS) and path not in known:
            yield Fault(kind=FaultKind.STRAY, shard=path, reason="the manifest does not name it")


def _shard(shard: Shard, sizes: Mapping[str, int]) -> Iterator[Fault]:
    size = sizes.get(shard.path)
    if size is None:
        yield Fault(kind=FaultKind.MISSING_SHARD, shard=shard.path, reason="it is missing", lost=shard.samples)
    elif size != shard.bytes:
        yield Fault(
            kind=FaultKind.SIZE, shard=shard.path, reason=f"it has {size:,} bytes, the manifest says {shard.bytes:,}"
        )
    if shard.index_path not in sizes:
        lost = shard.samples if size is not None else 0
        reason = f"its index {shard.index_path} is missing"
        yield Fault(kind=FaultKind.MISSING_INDEX, shard=shard.path, reason=reason, lost=lost)
