"""Verifies that a dataset is still as it was written, by checking every digest and every sample.

There are three checks, one after the other. The first one compares the manifest with a listing of the store
(`_listing_faults`). The second one checks each shard separately (`shard_pool` and `shard_check`). The third one looks
for keys that occur twice in the dataset (`_repeated_keys`). Faults are yielded as soon as they are found, so that the
user sees the first ones at once. Nothing is written to the dataset.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from jaxtyping import UInt64

from emocap_shards.errors import DamagedShard, ManifestError
from emocap_shards.index import read_index
from emocap_shards.inspecting.faults import Fault, FaultKind
from emocap_shards.inspecting.shard_check import Checked
from emocap_shards.inspecting.shard_pool import VerifyProgress, check_shards
from emocap_shards.manifest import MANIFEST, Manifest, Shard, read_manifest
from emocap_shards.store import Store, open_store
from emocap_shards.store.protocol import Entry

MOST_FAULTS = 10_000
_SUFFIXES = (".tar", ".npy")


@dataclass(frozen=True, slots=True)
class Verification:
    """Holds the result of a verification. `faults` has the first 10,000 faults, and `kinds` counts all faults by kind.

    `lost` is the number of samples that cannot be read; a quick verification finds only some of them.
    """

    url: str
    digest: str
    quick: bool
    samples: int
    shards: int
    bytes: int
    lost: int
    kinds: Mapping[FaultKind, int]
    faults: tuple[Fault, ...]
    seconds: float

    @property
    def whole(self) -> bool:
        """Returns whether the dataset has no fault."""
        return not self.kinds

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain values, for scripts."""
        rows = [
            {"kind": fault.kind, "shard": fault.shard, "key": fault.key, "reason": fault.reason, "cure": fault.cure}
            for fault in self.faults
        ]
        numbers = {name: getattr(self, name) for name in ("url", "digest", "quick", "samples", "shards", "bytes")}
        more = {"lost": self.lost, "seconds": round(self.seconds, 2), "kinds": {**self.kinds}, "faults": rows}
        return {"whole": self.whole, **numbers, **more}


def verify(
    url: str | Path,
    *,
    quick: bool = False,
    processes: int | None = None,
    on_fault: Callable[[Fault], None] = lambda _: None,
    on_progress: Callable[[VerifyProgress], None] = lambda _: None,
) -> Verification:
    """Checks a dataset. Each fault is passed to `on_fault` when it is found, and is in the result too.

    First the manifest is compared with the store's listing. Then each shard and its index are read, and every sample is
    checked. At the end, keys that occur twice are reported. Each process that checks shards holds one range of a shard
    and one sample in memory. In addition, this process holds 8 bytes for each sample of the dataset.

    Args:
        url: The dataset.
        quick: Checks the listing and the indexes only; no shard is read.
        processes: Number of processes that check shards; by default one for each core, or only this process if the
            shards together have less than 32 MiB.
        on_fault: Called with each fault when it is found.
        on_progress: Called with the progress while shards are checked, usually several times a second.

    Raises:
        ManifestError: If there is no dataset, or this version cannot read it.
        StoreError: If the manifest cannot be read, or the store cannot be listed.
        ShardsError: If a worker process died.

    Example:
        ```python
        result = verify("s3://bucket/faces/train", on_fault=print)
        assert result.whole, f"{result.lost} of {result.samples} samples are lost"
        ```
    """
    started = time.monotonic()
    store = open_store(url)
    ledger = _Ledger(on_fault)
    manifest = _manifest(store, ledger)
    if manifest.shards:
        for fault in _faults(store, manifest, quick=quick, processes=processes, on_progress=on_progress):
            ledger.admit(fault)
    return Verification(
        url=store.url,
        digest=manifest.digest if manifest.shards else "",
        quick=quick,
        samples=manifest.samples,
        shards=len(manifest.shards),
        bytes=manifest.total_bytes,
        lost=min(ledger.lost, manifest.samples),
        kinds=dict(ledger.kinds.most_common()),
        faults=tuple(ledger.faults),
        seconds=time.monotonic() - started,
    )


class _Ledger:
    """Counts faults by kind, keeps the first 10,000 of them, and passes each to `on_fault`."""

    def __init__(self, on_fault: Callable[[Fault], None]) -> None:
        self._on_fault = on_fault
        self.kinds: Counter[FaultKind] = Counter()
        self.faults: list[Fault] = []
        self.lost = 0

    def admit(self, fault: Fault) -> None:
        self.kinds[fault.kind] += 1
        self.lost += fault.lost
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(fault)
        self._on_fault(fault)


def _manifest(store: Store, ledger: _Ledger) -> Manifest:
    """Returns the manifest. If it is not JSON, `ledger` records a fault, and an empty manifest is returned.

    Raises:
        ManifestError: If there is no manifest, or it is JSON that this version cannot read, such as a newer schema.
    """
    try:
        return read_manifest(store)
    except ManifestError:
        if not store.exists(MANIFEST) or _is_json(store.read(MANIFEST)):
            raise
        ledger.admit(Fault(kind=FaultKind.MANIFEST, shard=MANIFEST, reason="it is not JSON, so nothing can be checked"))
        return Manifest(())


def _is_json(data: bytes) -> bool:
    try:
        orjson.loads(data)
    except ValueError:
        return False
    return True


def _faults(
    store: Store,
    manifest: Manifest,
    *,
    quick: bool,
    processes: int | None,
    on_progress: Callable[[VerifyProgress], None],
) -> Iterator[Fault]:
    """Yields the faults in the order of the checks: the store's listing, each shard, and keys that occur twice."""
    gross = list(_listing_faults(manifest, store.list()))
    yield from gross
    missing = {fault.shard for fault in gross if fault.kind is FaultKind.MISSING_SHARD}
    shards = [shard for shard in manifest.shards if shard.path not in missing]
    # All samples of these shards are counted as lost already.
    counted = {fault.shard for fault in gross if fault.lost}
    owners = {shard.sha256: shard.path for shard in manifest.shards}
    index_owners = {shard.index_sha256: shard.path for shard in manifest.shards}
    hashes: list[UInt64[np.ndarray, " samples"]] = []
    checks = check_shards(store, shards, quick=quick, processes=processes, on_progress=on_progress)
    for shard, checked in zip(shards, checks, strict=True):
        hashes.append(checked.keys)
        for fault in _recognised(checked, shard, owners, index_owners):
            yield replace(fault, lost=0) if shard.path in counted else fault
    yield from _repeated_keys(store, shards, hashes)


def _listing_faults(manifest: Manifest, entries: Sequence[Entry]) -> Iterator[Fault]:
    """Compares the manifest with a listing of the store. This finds gross damage before any shard is read.

    Yields a fault for each shard that is missing or has another size, for each missing index, and for each .tar or .npy
    file that the manifest does not name.
    """
    sizes = {entry.path: entry.size for entry in entries}
    for shard in manifest.shards:
        yield from _listed(shard, sizes)
    known = {path for shard in manifest.shards for path in (shard.path, shard.index_path)}
    for path in sizes:
        if path.endswith(_SUFFIXES) and path not in known:
            yield Fault(kind=FaultKind.STRAY, shard=path, reason="the manifest does not name it")


def _listed(shard: Shard, sizes: Mapping[str, int]) -> Iterator[Fault]:
    size = sizes.get(shard.path)
    if size is None:
        yield Fault(kind=FaultKind.MISSING_SHARD, shard=shard.path, reason="it is missing", lost=shard.samples)
    elif size != shard.bytes:
        yield Fault(
            kind=FaultKind.SIZE, shard=shard.path, reason=f"it has {size:,} bytes, the manifest says {shard.bytes:,}"
        )
    if shard.index_path not in sizes:
        # If the shard is missing too, its samples are already counted as lost.
        lost = shard.samples if size is not None else 0
        reason = f"its index {shard.index_path} is missing"
        yield Fault(kind=FaultKind.MISSING_INDEX, shard=shard.path, reason=reason, lost=lost)


def _recognised(
    checked: Checked, shard: Shard, owners: Mapping[str, str], index_owners: Mapping[str, str]
) -> Iterator[Fault]:
    """Yields the faults of a shard. If its bytes or its index are those of another shard, the fault names that shard.

    `owners` and `index_owners` map the SHA-256 of each shard and of each index to the path of the shard.
    """
    faults = checked.faults
    owner = owners.get(checked.sha256)
    if owner is not None and checked.sha256 != shard.sha256:
        # The bytes belong to another shard, so nothing that was found in them says anything. Only the faults of the
        # index stay.
        faults = tuple(fault for fault in checked.faults if fault.kind in {FaultKind.INDEX, FaultKind.INDEX_DIGEST})
        lost = sum(fault.lost for fault in checked.faults) - sum(fault.lost for fault in faults)
        yield Fault(kind=FaultKind.SWAPPED, shard=shard.path, reason=f"its bytes are those of {owner}", lost=lost)
    for fault in faults:
        owner = index_owners.get(fault.found)
        named = f"its index {shard.index_path} is that of {owner}"
        yield replace(fault, reason=named) if owner is not None else fault


def _repeated_keys(
    store: Store, shards: Sequence[Shard], hashes: Sequence[UInt64[np.ndarray, " samples"]]
) -> Iterator[Fault]:
    """Yields the faults of repeated keys.

    There is one fault for each pair (shard that repeats keys, first shard that has these keys). It belongs to the shard
    that repeats the keys. If this shard is also the first one with a key, it contains
    the key twice. `hashes` holds a hash of 8 bytes for each key of each shard. Equal hashes show which shards may share
    keys, and only the indexes of these shards are read again.
    """
    # Different keys may have the same hash of 64 bits. So equal hashes are only a suspicion, which the keys decide.
    ordered = np.sort(np.concatenate([np.zeros(0, np.uint64), *hashes]))
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not repeated.size:
        return
    suspects = [shard for shard, keys in zip(shards, hashes, strict=True) if np.isin(keys, repeated).any()]
    for (later, earlier), keys in _shared(store, suspects).items():
        place = "in this shard already" if later == earlier else f"in {earlier.path} too"
        more = f", and so are {len(keys) - 1} more of its keys" if len(keys) > 1 else ""
        yield Fault(kind=FaultKind.TWICE, shard=later.path, key=keys[0], reason=f"this key is {place}{more}")


def _shared(store: Store, suspects: Sequence[Shard]) -> Mapping[tuple[Shard, Shard], list[str]]:
    """Returns a mapping from pairs (shard that repeats keys, first shard that has these keys) to the repeated keys.

    If the first shard with a key contains it twice, the key belongs to the pair (shard, shard).
    """
    first: dict[str, Shard] = {}
    shared: dict[tuple[Shard, Shard], list[str]] = {}
    for shard in suspects:
        for key in _keys(store, shard):
            if key in first:
                shared.setdefault((shard, first[key]), []).append(key)
            first.setdefault(key, shard)
    return shared


def _keys(store: Store, shard: Shard) -> Sequence[str]:
    try:
        return [slot.key for slot in read_index(store, shard)]
    except DamagedShard:  # The index has changed since its check, which has reported all faults it found then.
        return ()
