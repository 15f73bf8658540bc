"""Records in the store which shards of a pack are finished, so that an interrupted pack resumes after them.

Each finished shard has one small JSON file, such as `journal/shard-000000.json`, which is written after the shard and
its index. The file records the options of the pack, and the rows of the source from which the shard was made: their
number, and a digest of their stamps. A stamp is a digest of one row (`SourceRow.stamp`). A resumed pack with another
source or other options is refused. The journal is deleted when the manifest is written.

The order of the writes is what makes resuming safe: an entry exists only after its shard and index are stored, and the
entries are written in the order of the shards. So a crash leaves at most one shard without an entry, and this shard is
written again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from emocap_shards.errors import NotFound, RecordError
from emocap_shards.index import most_index_bytes
from emocap_shards.manifest import Shard
from emocap_shards.store import Store
from emocap_shards.writing.duplicates import FINGERPRINT_BYTES
from emocap_shards.writing.prepare import Prepared
from emocap_shards.writing.row import BadRow

JOURNAL = "journal"
_SCHEMA = 1
_MOST_BYTES = 1 << 28  # Limit of one entry, in which the fingerprint of a sample takes about 100 bytes.


@dataclass(frozen=True, slots=True)
class ShardOrigin:
    """Describes the rows of the source from which one shard was made.

    Attributes:
        rows: Number of rows, including unusable ones.
        sha256: Digest of the stamps of the rows; a stamp changes when its row changes.
        bad: Each unusable row with its index among these rows.
        fingerprints: The fingerprints of all other rows, one after the other; empty if the pack does not search
            for duplicates.
        notes: How often each note occurs among the other rows (`Prepared.notes`).
    """

    rows: int
    sha256: str
    bad: tuple[tuple[int, BadRow], ...]
    fingerprints: bytes
    notes: Mapping[str, int] = field(default_factory=dict[str, int])

    def fingerprint(self, number: int) -> bytes:
        """Returns the fingerprint of one usable row. `number` counts the usable rows of the shard, from 0."""
        return self.fingerprints[number * FINGERPRINT_BYTES : (number + 1) * FINGERPRINT_BYTES]


@dataclass(slots=True)
class ShardOriginBuilder:
    """Collects the `ShardOrigin` of a shard that is still being filled."""

    rows: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    bad: list[tuple[int, BadRow]] = field(default_factory=list[tuple[int, BadRow]])
    fingerprints: bytearray = field(default_factory=bytearray)
    notes: Counter[str] = field(default_factory=Counter[str])

    def add(self, result: Prepared | BadRow) -> None:
        self.digest.update(result.mark)
        if isinstance(result, BadRow):
            self.bad.append((self.rows, BadRow(result.where, result.reason, file=result.file)))
        else:
            self.fingerprints += result.fingerprint
            self.notes.update(result.notes)
        self.rows += 1

    def done(self) -> ShardOrigin:
        return ShardOrigin(
            self.rows, self.digest.hexdigest(), tuple(self.bad), bytes(self.fingerprints), dict(self.notes)
        )


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """Records one finished shard and the rows of the source from which it was made."""

    shard: Shard
    origin: ShardOrigin


@dataclass(frozen=True, slots=True)
class Journal:
    """Reads and writes the journal of a pack in a store.

    `options` holds all settings that determine the bytes of the dataset. The source is not among them.
    """

    store: Store
    options: Mapping[str, Any]

    def put(self, number: int, entry: JournalEntry) -> None:
        found = entry.origin
        origin = {
            "rows": found.rows,
            "sha256": found.sha256,
            "bad": [(number, row.where, row.reason, row.file) for number, row in found.bad],
            "fingerprints": found.fingerprints.hex(),
            "notes": dict(found.notes),
        }
        # The origin is stored as "stretch", its name in an earlier version, so that a pack which that version began can
        # resume.
        value = {"schema": _SCHEMA, "options": self.options, "shard": asdict(entry.shard), "stretch": origin}
        # The place of a bad row may contain a name that is not UTF-8; "?" replaces its other bytes.
        text = json.dumps(value, ensure_ascii=False, sort_keys=True)
        self.store.put(_path(number), text.encode(errors="replace"))

    def finished(self) -> list[JournalEntry]:
        """Returns the entries of the finished shards, in order of their numbers.

        The list ends before the first entry that is missing, or whose shard or index is not complete in the store.

        Raises:
            RecordError: If the unfinished pack had other options, or an entry cannot be read.
        """
        if not self.store.exists(_path(0)):
            return []
        sizes = {entry.path: entry.size for entry in self.store.list()}
        entries: list[JournalEntry] = []
        while (entry := self._read(len(entries))) is not None and self._is_stored(entry.shard, sizes):
            entries.append(entry)
        return entries

    def clear(self) -> None:
        """Deletes the journal, if there is one."""
        self.store.delete_tree(JOURNAL)

    def _read(self, number: int) -> JournalEntry | None:
        try:
            value: dict[str, Any] = orjson.loads(self.store.read(_path(number), limit_bytes=_MOST_BYTES))
            self._check_options(value["options"], value["schema"])
            rows = value["stretch"]
            # Version 0.1.0 wrote neither the file of a bad row nor notes.
            bad = tuple((row, BadRow(where, why, file="".join(file))) for row, where, why, *file in rows["bad"])
            fingerprints = bytes.fromhex(rows["fingerprints"])
            origin = ShardOrigin(rows["rows"], rows["sha256"], bad, fingerprints, dict(rows.get("notes", {})))
            shard = Shard(**value["shard"])
            if shard.path != f"shard-{number:06d}.tar":
                raise ValueError(f"it belongs to {shard.path}")
            return JournalEntry(shard, origin)
        except NotFound:
            return None
        except (ValueError, KeyError, TypeError) as error:
            where = f"{self.store.url}/{_path(number)}"
            raise RecordError(f"{where} is not a journal of a pack ({error!r}); delete {self.store.url}.") from error

    def _check_options(self, found: Mapping[str, Any], schema: int) -> None:
        # Both sides of the comparison have passed JSON, which makes lists of tuples.
        wanted = json.loads(json.dumps(self.options))
        names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        if names or schema != _SCHEMA:
            changes = ", ".join(f"{name}={found.get(name)!r} instead of {wanted.get(name)!r}" for name in names)
            raise RecordError(
                f"{self.store.url} holds an unfinished pack with other options ({changes or f'schema {schema}'}): "
                "give the same options to resume it, choose another URL, or delete it."
            )

    def _is_stored(self, shard: Shard, sizes: Mapping[str, int]) -> bool:
        """Returns whether the store holds the shard with the right size, and its index with the right digest.

        `sizes` maps each path in the store to its size.
        """
        # The shard itself is compared by its size alone, because its digest would need all of its bytes.
        if sizes.get(shard.path) != shard.bytes or shard.index_path not in sizes:
            return False
        index = self.store.read(shard.index_path, limit_bytes=most_index_bytes(shard))
        return hashlib.sha256(index).hexdigest() == shard.index_sha256


def _path(number: int) -> str:
    return f"{JOURNAL}/shard-{number:06d}.json"
