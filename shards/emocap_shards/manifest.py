"""Describes a dataset by its manifest, which lists the shards, each with its size and digests.

A folder without a manifest does not count as a dataset. The manifest is written last, so a dataset that has a manifest
is complete. The manifest is written only if there is none yet, so nobody can replace a dataset by packing another one
to the same URL. The digest of the manifest identifies the dataset. A manifest is not trusted: numbers that are too
large, and paths that lead out of the folder of the dataset, are refused.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import orjson

from emocap_shards.errors import ConditionFailed, ManifestError, NotFound, StoreError
from emocap_shards.order import Ids
from emocap_shards.store import Store, open_store
from emocap_shards.store.protocol import DOCUMENT_BYTES, checked

MANIFEST = "manifest.json"
# Datasets in which every sample has a caption keep schema 1, so that version 0.1.0 reads them and their digests stay.
# Datasets with samples without a caption have schema 2, which version 0.1.0 refuses with one line (decision 41).
SCHEMAS = (1, 2)
# Bounds on the numbers in a manifest, so that a forged one cannot make a reader allocate all memory.
_MOST_BYTES, _MOST_PATH = 1 << 40, 1024
MOST_SAMPLES = 1 << 20  # Per shard. A window of the shuffle holds the ids of all samples of its shards.
_READ = " and ".join(map(str, SCHEMAS))
_LEAST_SAMPLE = 1024  # Bytes of the two tar headers of a sample.


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard: a tar of samples, and a file with the index of these samples.

    Paths are relative to the dataset's root, and digests are hexadecimal. `samples` and `bytes` are the number of
    samples in the tar and the size of the tar. `without_caption` is the number of those samples that have labels and no
    caption.
    """

    path: str
    samples: int
    bytes: int
    sha256: str
    index_path: str
    index_sha256: str
    without_caption: int = 0


class Shards(Sequence[Shard]):
    """A sequence of shards that is stored as columns, to need little memory.

    A `Shard` is constructed when it is requested.
    """

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self._columns = columns

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> "Shards":
        """Constructs the sequence from rows, each a mapping with the fields of `Shard`.

        Raises:
            ValueError: If a field has the wrong type or lies outside its bounds, if a digest is not a valid digest, or
                if a path points outside the dataset.
            KeyError: If a field is missing.
        """
        texts = {name: [_text(row[name], name) for row in rows] for name in ("path", "index_path")}
        digests = {name: _digests([row[name] for row in rows]) for name in ("sha256", "index_sha256")}
        most = {"samples": MOST_SAMPLES, "bytes": _MOST_BYTES}
        numbers = {name: _numbers([row[name] for row in rows], name, most[name]) for name in most}
        bare = [row.get("without_caption", 0) for row in rows]
        if any(isinstance(count, bool) or not isinstance(count, int) for count in bare):
            raise ValueError("without_caption of a shard is not an integer")
        numbers["without_caption"] = np.array(bare, dtype=np.int64)
        if ((numbers["without_caption"] < 0) | (numbers["without_caption"] > numbers["samples"])).any():
            raise ValueError("a shard has more samples without a caption than samples, or fewer than 0")
        if len(set(texts["path"])) < len(rows):
            raise ValueError("two shards have the same path")
        if (numbers["samples"] > numbers["bytes"] // _LEAST_SAMPLE).any():
            raise ValueError("a shard has more samples than its bytes can hold")
        paths = {name: np.array([line.encode() for line in lines], dtype=np.bytes_) for name, lines in texts.items()}
        return cls(paths | digests | numbers)

    @property
    def samples(self) -> Ids:
        return self._columns["samples"]

    @property
    def bytes(self) -> Ids:
        return self._columns["bytes"]

    @property
    def without_caption(self) -> Ids:
        return self._columns["without_caption"]

    def __len__(self) -> int:
        return len(self._columns["samples"])

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> "Shards": ...
    def __getitem__(self, index: int | slice) -> "Shard | Shards":
        row = {name: column[index] for name, column in self._columns.items()}
        return Shards(row) if isinstance(index, slice) else _shard(row)


class Manifest:
    """Lists the shards of a dataset in a fixed order, which determines the numbers of the samples.

    Sample `i` is the i-th sample, counted from 0, when the shards are read one after the other in this order.

    A hundred thousand shards take about 16 MB of memory, because `shards` stores columns. Two manifests are equal if
    their digests are equal.
    """

    def __init__(self, shards: Iterable[Shard], *, digest: str | None = None) -> None:
        self.shards = shards if isinstance(shards, Shards) else Shards.of([asdict(shard) for shard in shards])
        self._digest = digest

    @classmethod
    def load(cls, data: bytes, *, url: str) -> "Manifest":
        """Returns the manifest from its bytes; `url` is named in errors.

        Raises:
            ManifestError: If the manifest has a schema that this version does not read, lists no shard, or is damaged.
        """
        # The digest is that of the stored bytes, which another version may have formatted in another way.
        return cls(_parsed(data, url), digest=hashlib.sha256(data).hexdigest())

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
    def without_caption(self) -> int:
        """The number of samples that have labels and no caption."""
        return int(self.shards.without_caption.sum())

    @property
    def total_bytes(self) -> int:
        return int(self.shards.bytes.sum())

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of the manifest.

        It depends on every byte of the dataset, because the manifest contains the digests of all shards and indexes.
        """
        return self._digest or hashlib.sha256(self.dump()).hexdigest()

    def dump(self) -> bytes:
        """Returns the bytes of the manifest; equal manifests give equal bytes."""
        shards = [asdict(shard) for shard in self.shards]
        schema = 2 if self.without_caption else 1
        if schema == 1:
            for shard in shards:
                del shard["without_caption"]
        rows = {"schema": schema, "shards": shards}
        return json.dumps(rows, indent=1, sort_keys=True).encode()

    def write(self, store: Store) -> None:
        """Writes the manifest. From then on readers find the dataset, so all shards must have been written before.

        Raises:
            ManifestError: If there is a dataset already, or the manifest is longer than a reader accepts.
        """
        data = self.dump()
        if len(data) > DOCUMENT_BYTES:
            cure = "put more samples into a shard"
            raise ManifestError(f"{store.url}: a {MANIFEST} of {len(self.shards):,} shards is too long: {cure}.")
        try:
            refuse_dataset(store)
            # The condition decides between two writers that both found no dataset.
            store.put_if_absent(MANIFEST, data)
        except ConditionFailed as error:
            raise _occupied(store) from error


def read_manifest(where: Store | str | Path) -> Manifest:
    """Returns the manifest of the dataset at `where`, a URL or a store.

    Raises:
        ManifestError: If there is no manifest, or it has a schema that this version does not read, lists no shard, or
            is damaged.
        StoreError: If the store cannot be reached.
    """
    store = open_store(where) if isinstance(where, str | Path) else where
    try:
        data = store.read(MANIFEST)
    except NotFound as error:
        raise ManifestError(f"{store.url} has no {MANIFEST}, so no dataset: make one with `emocap pack`.") from error
    return Manifest.load(data, url=store.url)


def refuse_dataset(store: Store) -> None:
    """Raises an error if a store already holds a dataset.

    Raises:
        ManifestError: If the store holds a dataset.
    """
    if store.exists(MANIFEST):
        raise _occupied(store)


def _occupied(store: Store) -> ManifestError:
    return ManifestError(f"{store.url} holds a dataset already: choose another URL, or delete that one first.")


def _parsed(data: bytes, url: str) -> Shards:
    try:
        value = cast("dict[str, Any]", orjson.loads(data))
        schema = int(value["schema"])
        if schema not in SCHEMAS:
            cure = "update emocap_pretrain" if schema > SCHEMAS[-1] else "pack it again"
            raise ManifestError(f"{url}: the manifest has schema {schema}, this code reads {_READ}: {cure}.")
        shards = Shards.of(value["shards"])
    except (ValueError, KeyError, TypeError, OverflowError, StoreError) as error:
        raise ManifestError(f"{url}: {MANIFEST} is damaged ({error!r}): pack the dataset again.") from error
    if not len(shards):
        raise ManifestError(f"{url}: the dataset is empty: pack at least one sample.")
    return shards


def _shard(row: Mapping[str, Any]) -> Shard:
    return Shard(
        path=row["path"].decode(),
        samples=int(row["samples"]),
        bytes=int(row["bytes"]),
        sha256=row["sha256"].tobytes().hex(),
        index_path=row["index_path"].decode(),
        index_sha256=row["index_sha256"].tobytes().hex(),
        without_caption=int(row["without_caption"]),
    )


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or "\0" in value or len(value) > _MOST_PATH:
        raise ValueError(f"{name}={str(value)[:80]!r} is not a path")
    return checked(value)


def _digests(texts: Sequence[str]) -> np.ndarray:
    """Returns an array with one row of 32 bytes for each SHA-256 in hexadecimal."""
    data = bytes.fromhex("".join(texts))
    if any(len(text) != 64 for text in texts):
        raise ValueError("a digest does not have 64 hexadecimal digits")
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, 32)


def _numbers(values: Sequence[Any], name: str, most: int) -> Ids:
    for value in values:
        if not isinstance(value, int) or not 0 < value <= most:
            raise ValueError(f"{name}={str(value)[:30]} of a shard is not an integer from 1 to {most:,}")
    return np.array(values, dtype=np.int64)
