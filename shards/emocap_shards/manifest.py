"""What a dataset is: its shards, each with its size and digest. A folder without a manifest is no dataset."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from emocap_shards.errors import ConditionFailed, ManifestError, NotFound
from emocap_shards.store import Store, open_store

MANIFEST = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar and its sample index; paths are relative to the dataset's root, digests are hexadecimal."""

    path: str
    samples: int
    bytes: int
    sha256: str
    index_path: str
    index_sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The shards in their canonical order: sample `i` of the dataset is the i-th of them laid end to end."""

    shards: tuple[Shard, ...]
    schema: int = SCHEMA

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples in each shard."""
        return tuple(shard.samples for shard in self.shards)

    @property
    def samples(self) -> int:
        return sum(self.counts)

    @property
    def total_bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, and so of every byte of the dataset."""
        return hashlib.sha256(self.dump()).hexdigest()

    def dump(self) -> bytes:
        """Equal manifests are equal bytes."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    def write(self, store: Store) -> None:
        """Makes the dataset exist.

        Raises:
            ManifestError: If another dataset stands there already.
        """
        try:
            refuse_dataset(store)
            store.put_if_absent(MANIFEST, self.dump())
        except ConditionFailed as error:
            raise _occupied(store) from error


def read_manifest(where: Store | str | Path) -> Manifest:
    """The manifest of the dataset at a URL or in a store.

    Raises:
        ManifestError: If there is none, or it is of another schema, empty or damaged.
        StoreError: If the store cannot be reached.
    """
    store = open_store(where) if isinstance(where, str | Path) else where
    try:
        data = store.read(MANIFEST)
    except NotFound as error:
        raise ManifestError(f"{store.url} has no {MANIFEST}, so no dataset: make one with `emocap pack`.") from error
    return load_manifest(data, url=store.url)


def load_manifest(data: bytes, *, url: str) -> Manifest:
    """The manifest from its bytes; `url` is named in errors.

    Raises:
        ManifestError: As `read_manifest`.
    """
    try:
        value = cast("dict[str, Any]", json.loads(data))
        schema = int(value["schema"])
        if schema != SCHEMA:
            raise ManifestError(f"{url}: the manifest has schema {schema}, this code reads {SCHEMA}: pack it again.")
        manifest = Manifest(tuple(Shard(**shard) for shard in value["shards"]), schema)
        whole = all(_is_whole(shard) for shard in manifest.shards)
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{url}: {MANIFEST} is damaged ({error!r}): pack the dataset again.") from error
    if not whole:
        raise ManifestError(f"{url}: {MANIFEST} names a shard without samples or bytes: pack the dataset again.")
    if not manifest.shards:
        raise ManifestError(f"{url}: the dataset is empty: pack at least one sample.")
    return manifest


def refuse_dataset(store: Store) -> None:
    """Returns only if no dataset stands in the store.

    Raises:
        ManifestError: If one does.
    """
    if store.exists(MANIFEST):
        raise _occupied(store)


def _occupied(store: Store) -> ManifestError:
    return ManifestError(f"{store.url} holds a dataset already: choose another URL, or delete that one first.")


def _is_whole(shard: Shard) -> bool:
    return shard.samples > 0 and shard.bytes > 0
