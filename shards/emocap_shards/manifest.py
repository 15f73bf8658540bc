"""Describes a dataset: its shards, each with its size and digest. A folder without a manifest does not count as a
dataset.
"""

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import orjson

from emocap_shards.errors import ConditionFailed, ManifestError, NotFound, StoreError
from emocap_shards.order import Ids
from emocap_shards.shard import Shard, Shards
from emocap_shards.store import Store, open_store
from emocap_shards.store.protocol import DOCUMENT_BYTES

MANIFEST = "manifest.json"
SCHEMA = 1


class Manifest:
    """The shards of a dataset in their canonical order. Sample `i` of the dataset is the i-th sample of all shards in a
    row.

    A hundred thousand shards take about 16 MB of memory, because `shards` stores columns.
    """

    def __init__(self, shards: Iterable[Shard], *, digest: str | None = None) -> None:
        self.shards = shards if isinstance(shards, Shards) else Shards.of([asdict(shard) for shard in shards])
        self._digest = digest

    @classmethod
    def load(cls, data: bytes, *, url: str) -> "Manifest":
        """Returns the manifest from its bytes; `url` is named in errors.

        Raises:
            ManifestError: If the manifest has another schema, is empty or damaged.
        """
        return cls(_shards(data, url), digest=hashlib.sha256(data).hexdigest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def counts(self) -> Ids:
        """The number of samples in each shard."""
        return self.shards.samples

    @property
    def samples(self) -> int:
        return int(self.counts.sum())

    @property
    def total_bytes(self) -> int:
        return int(self.shards.bytes.sum())

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of the manifest, which depends on every byte of the dataset."""
        return self._digest or hashlib.sha256(self.dump()).hexdigest()

    def dump(self) -> bytes:
        """Returns the bytes of the manifest; equal manifests give equal bytes."""
        rows = {"schema": SCHEMA, "shards": [asdict(shard) for shard in self.shards]}
        return json.dumps(rows, indent=1, sort_keys=True).encode()

    def write(self, store: Store) -> None:
        """Writes the manifest. The dataset exists for readers from then on, so all shards must be written before.

        Raises:
            ManifestError: If there is a dataset already, or the manifest is longer than a reader accepts.
        """
        data = self.dump()
        if len(data) > DOCUMENT_BYTES:
            cure = "put more samples into a shard"
            raise ManifestError(f"{store.url}: a {MANIFEST} of {len(self.shards):,} shards is too long: {cure}.")
        try:
            refuse_dataset(store)
            store.put_if_absent(MANIFEST, data)
        except ConditionFailed as error:
            raise _occupied(store) from error


def read_manifest(where: Store | str | Path) -> Manifest:
    """Returns the manifest of the dataset at a URL or in a store.

    Raises:
        ManifestError: If there is no manifest, or it has another schema, is empty or damaged.
        StoreError: If the store cannot be reached.
    """
    store = open_store(where) if isinstance(where, str | Path) else where
    try:
        data = store.read(MANIFEST)
    except NotFound as error:
        raise ManifestError(f"{store.url} has no {MANIFEST}, so no dataset: make one with `emocap pack`.") from error
    return Manifest.load(data, url=store.url)


def refuse_dataset(store: Store) -> None:
    """Checks that a store holds no dataset yet.

    Raises:
        ManifestError: If the store holds a dataset.
    """
    if store.exists(MANIFEST):
        raise _occupied(store)


def _occupied(store: Store) -> ManifestError:
    return ManifestError(f"{store.url} holds a dataset already: choose another URL, or delete that one first.")


def _shards(data: bytes, url: str) -> Shards:
    try:
        value = cast("dict[str, Any]", orjson.loads(data))
        schema = int(value["schema"])
        if schema != SCHEMA:
            cure = "update emocap_pretrain" if schema > SCHEMA else "pack it again"
            raise ManifestError(f"{url}: the manifest has schema {schema}, this code reads {SCHEMA}: {cure}.")
        shards = Shards.of(value["shards"])
    except (ValueError, KeyError, TypeError, OverflowError, StoreError) as error:
        raise ManifestError(f"{url}: {MANIFEST} is damaged ({error!r}): pack the dataset again.") from error
    if not len(shards):
        raise ManifestError(f"{url}: the dataset is empty: pack at least one sample.")
    return shards
