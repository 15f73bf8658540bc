"""Defines the entries for shards in a manifest, with bounds on their numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from emocap_shards.order import Ids
from emocap_shards.store.protocol import checked

# Bounds on the numbers in a manifest, so that a forged one cannot make a reader allocate all memory.
_MOST, _MOST_PATH = 1 << 40, 1024
MOST_SAMPLES = 1 << 20  # In a shard. A window of the shuffle holds the ids of all samples of its shards.
_LEAST_SAMPLE = 1024  # Bytes of the two tar headers of a sample.


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard: a tar of samples, and a file with the index of these samples.

    Paths are relative to the dataset's root, and digests are hexadecimal. `samples` and `bytes` are the number of
    samples in the tar and the size of the tar.
    """

    path: str
    samples: int
    bytes: int
    sha256: str
    index_path: str
    index_sha256: str


class Shards(Sequence[Shard]):
    """A sequence of shards that is stored as columns; a `Shard` is constructed when it is requested."""

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
        most = {"samples": MOST_SAMPLES, "bytes": _MOST}
        numbers = {name: _numbers([row[name] for row in rows], name, most[name]) for name in most}
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

    def __len__(self) -> int:
        return len(self._columns["samples"])

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> "Shards": ...
    def __getitem__(self, index: int | slice) -> "Shard | Shards":
        row = {name: column[index] for name, column in self._columns.items()}
        return Shards(row) if isinstance(index, slice) else _shard(row)


def _shard(row: Mapping[str, Any]) -> Shard:
    return Shard(
        path=row["path"].decode(),
        samples=int(row["samples"]),
        bytes=int(row["bytes"]),
        sha256=row["sha256"].tobytes().hex(),
        index_path=row["index_path"].decode(),
        index_sha256=row["index_sha256"].tobytes().hex(),
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
