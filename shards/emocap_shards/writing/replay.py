"""Repeats the decisions about the rows of a finished shard, without loading the rows."""

import hashlib
from collections.abc import Iterator
from itertools import islice

from emocap_shards.errors import RecordError
from emocap_shards.writing.journal import JournalEntry
from emocap_shards.writing.row import BadRow, SourceRow
from emocap_shards.writing.row_ledger import RowLedger


def replay(entry: JournalEntry, rows: Iterator[SourceRow | BadRow], ledger: RowLedger, *, url: str) -> None:
    """Repeats in `ledger` the decisions about the rows of a finished shard, without loading their images.

    The rows are taken from the iterator `rows`, so that the pack continues with the row that follows them.

    Raises:
        RecordError: If the rows are not those from which the shard was made.
    """
    digest = hashlib.sha256()
    taken: list[tuple[str, str]] = []
    for row in islice(rows, entry.stretch.rows):
        digest.update(row.stamp())
        taken.append((row.where, row.key if isinstance(row, SourceRow) else ""))
    if digest.hexdigest() != entry.stretch.sha256:
        raise RecordError(
            f"{url} holds an unfinished pack of another source (the rows of {entry.shard.path} have changed): "
            "give the same source to resume it, choose another URL, or delete it."
        )
    bad = {number: BadRow(where, reason) for number, where, reason in entry.stretch.bad}
    good = 0
    for number, (where, key) in enumerate(taken):
        if number in bad:
            ledger.reject(bad[number])
        else:
            ledger.admits(where, key, entry.stretch.fingerprint(good))
            good += 1
