"""Finds keys that occur in a dataset more than once, with 8 bytes of memory for each sample.

Hashes of 64 bits are compared first. Only the indexes of shards with equal hashes are read again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

from emocap_shards.errors import DamagedShard
from emocap_shards.indexes import read_index
from emocap_shards.inspecting.faults import Fault, FaultKind
from emocap_shards.manifest import Shard
from emocap_shards.store import Store


@dataclass(frozen=True, slots=True)
class _Pair:
    """Names two shards that share keys. They may be the same shard."""

    later: Shard
    earlier: Shard


def sharing_keys(
    store: Store, shards: Sequence[Shard], hashes: Sequence[UInt64[np.ndarray, " samples"]]
) -> Iterator[Fault]:
    """Yields one fault for each pair of shards that share keys.

    `hashes` holds the hashes of the keys of each shard. The indexes of shards with equal hashes are read once more.
    """
    ordered = np.sort(np.concatenate([np.zeros(0, np.uint64), *hashes]))
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not repeated.size:
        return
    suspects = [shard for shard, keys in zip(shards, hashes, strict=True) if np.isin(keys, repeated).any()]
    for pair, keys in _shared(store, suspects).items():
        place = "in this shard already" if pair.later == pair.earlier else f"in {pair.earlier.path} too"
        more = f", and so are {len(keys) - 1} more of its keys" if len(keys) > 1 else ""
        yield Fault(kind=FaultKind.TWICE, shard=pair.later.path, key=keys[0], reason=f"this key is {place}{more}")


def _shared(store: Store, suspects: Sequence[Shard]) -> Mapping[_Pair, list[str]]:
    """Returns the keys that two shards share, for each such pair of shards."""
    first: dict[str, Shard] = {}
    shared: dict[_Pair, list[str]] = {}
    for shard in suspects:
        for key in _keys(store, shard):
            if key in first:
                shared.setdefault(_Pair(shard, first[key]), []).append(key)
            first.setdefault(key, shard)
    return shared


def _keys(store: Store, shard: Shard) -> Sequence[str]:
    try:
        return [slot.key for slot in read_index(store, shard)]
    except DamagedShard:  # The index has changed since its check, which has reported all faults it found then.
        return ()
