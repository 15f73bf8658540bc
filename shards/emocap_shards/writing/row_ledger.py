"""Decides for each row, in order, whether its sample is written, and records bad rows, repeated keys and duplicates.

A decision depends on all earlier rows: on their keys, their fingerprints and the number of bad ones. So all decisions
are made in one process, in the order of the rows, after the rows were prepared in parallel. A pack that resumes makes
the same decisions again from the journal.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from emocap_shards.errors import RecordError
from emocap_shards.writing.duplicates import Duplicate, DuplicateConfig, FingerprintIndex
from emocap_shards.writing.journal import JournalEntry
from emocap_shards.writing.row import BadRow, SourceRow

_TABLE_LINE = re.compile(r".*\.(csv|tsv|txt|lst|list|jsonl|ndjson|json):\d+", re.IGNORECASE | re.DOTALL)


@dataclass(slots=True)
class RowLedger:
    """Records the decisions about all rows so far. Only the main process has one.

    All keys are in memory, about 100 bytes for each sample. A search for duplicates takes a further 1 to 2 kB for each.
    """

    skip_bad: int = 0
    rule: DuplicateConfig | None = None
    skipped: list[BadRow] = field(default_factory=list[BadRow])
    duplicates: list[Duplicate] = field(default_factory=list[Duplicate])
    keys: dict[str, str] = field(default_factory=dict[str, str])
    lookalikes: FingerprintIndex = field(init=False)

    def __post_init__(self) -> None:
        self.lookalikes = FingerprintIndex(self.rule.bits if self.rule else 0)

    def reject(self, bad: BadRow) -> None:
        """Records a bad row, which is left out.

        Raises:
            RecordError: If there are now more than `skip_bad` bad rows.
        """
        self.skipped.append(bad)
        if len(self.skipped) <= self.skip_bad:
            return
        if self.skip_bad:
            raise RecordError(f"{len(self.skipped)} bad rows, {self.skip_bad} are allowed; the last: {bad}.")
        raise RecordError(f"{bad}; correct or leave out this row, or allow a number of them with --skip-bad.")

    def admits(self, where: str, key: str, fingerprint: bytes) -> bool:
        """Decides whether a sample is written into a shard, and records the decision.

        A sample is left out if an earlier sample has the same key, or if it is a duplicate and duplicates are dropped.
        A row with the key of an earlier sample counts as a bad row.

        Raises:
            RecordError: If an earlier sample has the key, and there are now more than `skip_bad` bad rows.
        """
        if (first := self.keys.get(key)) is not None:
            fault = "occurs twice" if first == where else f"is taken by {first}"
            cure = "every sample needs its own key (--number-keys)"
            if _TABLE_LINE.fullmatch(where):
                cure += "; if both rows are captions of one image, put them into one row (--further)"
            self.reject(BadRow(where, f"the key {key!r} {fault}; {cure}"))
            return False
        if self.rule and not self._is_new(self.rule, where, key, fingerprint):
            return False
        self.keys[key] = where
        return True

    def replay(self, entry: JournalEntry, rows: Iterator[SourceRow | BadRow], *, url: str) -> None:
        """Repeats the decisions about the rows of a finished shard, without loading their images.

        The rows are taken from the iterator `rows`, so that the pack continues with the row that follows them.

        Raises:
            RecordError: If the rows are not those from which the shard was made.
        """
        digest = hashlib.sha256()
        taken: list[tuple[str, str]] = []
        for row in islice(rows, entry.origin.rows):
            digest.update(row.stamp())
            taken.append((row.where, row.key if isinstance(row, SourceRow) else ""))
        if digest.hexdigest() != entry.origin.sha256:
            raise RecordError(
                f"{url} holds an unfinished pack of another source (the rows of {entry.shard.path} have changed): "
                "give the same source to resume it, choose another URL, or delete it."
            )
        # The journal has fingerprints of the usable rows only, so these are counted by themselves.
        bad = dict(entry.origin.bad)
        good = 0
        for number, (where, key) in enumerate(taken):
            if number in bad:
                self.reject(bad[number])
            else:
                self.admits(where, key, entry.origin.fingerprint(good))
                good += 1

    def _is_new(self, rule: DuplicateConfig, where: str, key: str, fingerprint: bytes) -> bool:
        """Compares the sample with the earlier ones. If it is a duplicate, it is recorded in `duplicates`.

        Returns False if it is a duplicate and `rule.drop` is set. In all other cases the method adds the fingerprint,
        so that later samples are compared with this sample too, and returns True.
        """
        if found := self.lookalikes.find(fingerprint):
            like, bits, exact = found
            self.duplicates.append(Duplicate(key, where, like, bits, exact))
            if rule.drop:
                return False
        self.lookalikes.add(key, fingerprint)
        return True
