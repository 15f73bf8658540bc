"""Packs the rows of a source into a dataset.

Rows are prepared in parallel and written in order, and an interrupted pack resumes after its last finished shard.

First, `pack` refuses to write over an existing dataset. Then it repeats the decisions about the rows of finished shards
(`RowLedger.replay`). It prepares the other rows in worker processes (`workers.prepared`), decides for each row whether
to write its sample (`RowLedger.admits`), and writes the shards (`ShardWriter`). It writes the manifest last. All
decisions are made in this process and in the order of the rows, so the result does not depend on the number of workers.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from emocap_shards.errors import RecordError, StoreError
from emocap_shards.manifest import MANIFEST, Manifest, Shard, refuse_dataset
from emocap_shards.printable import printable
from emocap_shards.store import Store, open_store
from emocap_shards.writing.duplicates import Duplicate, DuplicateConfig
from emocap_shards.writing.journal import Journal
from emocap_shards.writing.prepare import PrepareConfig, Prepared
from emocap_shards.writing.row import BadRow, SourceRow
from emocap_shards.writing.row_ledger import RowLedger
from emocap_shards.writing.row_source import RowSource, left_out_of
from emocap_shards.writing.shards import ShardSize, ShardWriter
from emocap_shards.writing.workers import prepared

_log = logging.getLogger(__name__)

SKIPPED = "skipped.json"
DUPLICATES = "duplicates.json"
_KINDS_SHOWN = 8


@dataclass(frozen=True, slots=True)
class PackConfig:
    """Holds the settings of a pack. Except for `skip_bad`, they determine the bytes of the dataset, together with the
    source.

    Args:
        size: Limits of a shard.
        recipe: Settings for turning a row into a sample.
        duplicates: Settings for duplicates; with None, no images are compared.
        number_keys: Gives each sample the number of its row, with nine digits, as its key.
        skip_bad: Number of unusable rows that may be left out.
    """

    size: ShardSize = field(default_factory=ShardSize)
    recipe: PrepareConfig = field(default_factory=PrepareConfig)
    duplicates: DuplicateConfig | None = None
    number_keys: bool = False
    skip_bad: int = 0

    def describe(self) -> dict[str, Any]:
        """Returns the settings as the journal stores them."""
        # `skip_bad` is missing on purpose: it may change between an interrupted pack and its continuation.
        rule = self.duplicates and asdict(self.duplicates)
        return {
            "shard_samples": self.size.samples,
            "shard_bytes": self.size.max_bytes,
            "duplicates": rule,
            "number_keys": self.number_keys,
            **self.recipe.describe(),
        }


@dataclass(frozen=True, slots=True)
class PackProgress:
    """Counts what a pack has done so far.

    Attributes:
        rows: Number of rows that were read from the source.
        samples: Number of samples that were written into shards.
        stored: Number of samples in shards that are in the store.
        bytes: Size of the tars of these shards.
    """

    rows: int = 0
    samples: int = 0
    stored: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Packed:
    """Describes the result of a finished pack.

    Attributes:
        manifest: The manifest that was written.
        skipped: The bad rows that were left out.
        duplicates: Samples that look like an earlier one.
        resumed: Number of shards that an earlier, interrupted call had finished.
        left_out: Number of files of the source that belong to no row, by kind, such as ".txt".
        notes: What is not used of some images, such as "the first of several frames", and of how many images.
    """

    manifest: Manifest
    skipped: tuple[BadRow, ...]
    duplicates: tuple[Duplicate, ...]
    resumed: int
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])
    notes: Mapping[str, int] = field(default_factory=dict[str, int])


def pack(
    source: RowSource,
    url: str | Path,
    options: PackConfig | None = None,
    *,
    processes: int = 1,
    progress: Callable[[PackProgress], None] | None = None,
) -> Packed:
    """Writes the rows of a source as a dataset. Equal rows in equal order give equal bytes, for any number of
    processes.

    If a call was interrupted at any point, a second call with the same source and options resumes after the last
    finished shard. The dataset then has the same bytes as without the interruption. Bad rows are listed in
    `skipped.json` next to the manifest, and duplicates in `duplicates.json`. Each of these files exists only if it
    lists something. If two packs write to the same URL at the same time, at most one of them succeeds. Before a pack
    writes its manifest, it compares the journal, the indexes and the sizes of the shards in the store with what it has
    written. It fails if they differ, because the other pack has then replaced some shards.

    Args:
        source: The rows.
        url: The new dataset.
        options: Settings; by default shards of 1,000 samples with the images unchanged.
        processes: Number of worker processes that prepare rows. With 1, the calling process prepares them itself.
        progress: Called after each row and after each stored shard.

    Raises:
        ManifestError: If there is a dataset at the URL already.
        RecordError: If there is no row, more than `skip_bad` rows are unusable, another pack writes to the URL, or the
            URL holds an unfinished pack of another source or with other options.
        StoreError: If the store fails.

    Example:
        ```python
        source = open_source("faces.csv", TableColumns(image="path", global_="caption", labels=("emotion",)))
        packed = pack(source, "s3://bucket/train", PackConfig(skip_bad=100), processes=8)
        print(packed.manifest.samples, packed.skipped)
        ```
    """
    options = options or PackConfig()
    store = open_store(url)
    journal = Journal(store, options.describe())
    _refuse(store, journal)
    ledger = RowLedger(options.skip_bad, options.duplicates)
    rows = _numbered(source.rows()) if options.number_keys else iter(source.rows())
    reporter = _ProgressReporter(progress or (lambda _: None))
    # The rows of finished shards are taken from `rows` and decided again, so that keys, duplicates and bad rows are
    # known and the iterator is at the first row that is not stored.
    finished = journal.finished()
    notes = Counter[str]()
    for entry in finished:
        ledger.replay(entry, rows, url=store.url)
        notes.update(entry.origin.notes)
        shard = entry.shard
        reporter.add(PackProgress(entry.origin.rows, shard.samples, shard.samples, shard.bytes))
    with (
        # The generator is closed here, not by the garbage collector, so that worker processes end while their queues
        # are still open.
        closing(prepared(rows, options.recipe, processes)) as results,
        ShardWriter(store, journal, options.size, first=len(finished), on_stored=reporter.stored) as writer,
    ):
        _write(results, ledger, writer, reporter, notes)
    shards = [*(entry.shard for entry in finished), *writer.done]
    if not shards:
        raise RecordError(_nothing_to_write(str(url), ledger.skipped, left_out_of(source)))
    # Everything else is stored before the manifest, with which the dataset begins to exist for readers. After a crash
    # from here on, the same command finds all shards finished, or a dataset with a journal that it deletes.
    _refuse_another_pack(store, journal, shards)
    _report(store, ledger)
    manifest = Manifest(tuple(shards))
    manifest.write(store)
    _clear(journal)
    return Packed(manifest, tuple(ledger.skipped), tuple(ledger.duplicates), len(finished), left_out_of(source), notes)


def _nothing_to_write(url: str, skipped: Sequence[BadRow], left_out: Mapping[str, int]) -> str:
    """Returns why no shard could be written. No `skipped.json` is written then, so the message names the first bad
    row with its reason.
    """
    rows = f" Every row is bad ({len(skipped):,} in all); the first: {skipped[0]}." if skipped else ""
    others = f" It holds {described(left_out)}." if left_out else ""
    return f"there is no record to write to {url}; check the source.{rows}{others}"


def described(left_out: Mapping[str, int]) -> str:
    """Returns the counts of `Packed.left_out` as text, such as "12 .txt, 1 .npy", with the most frequent kinds first.

    Control characters are removed, so that the text is safe to print on a terminal.
    """
    kinds = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(kinds) - _KINDS_SHOWN} further kinds" if len(kinds) > _KINDS_SHOWN else ""
    return ", ".join(f"{count:,} {printable(kind)}" for kind, count in kinds[:_KINDS_SHOWN]) + more


def _write(
    results: Iterator[Prepared | BadRow],
    ledger: RowLedger,
    writer: ShardWriter,
    reporter: "_ProgressReporter",
    notes: Counter[str],
) -> None:
    """Writes the prepared rows in order, records each row that is left out, and counts the notes of the others."""
    for result in results:
        # The journal counts in the same way: a sample that is dropped as a duplicate counts too.
        notes.update(result.notes if isinstance(result, Prepared) else ())
        if isinstance(result, BadRow):
            ledger.reject(result)
        elif ledger.admits(result.where, result.key, result.fingerprint):
            writer.add(result)
            reporter.add(PackProgress(rows=1, samples=1))
            continue
        writer.pass_over(result)
        reporter.add(PackProgress(rows=1))
    writer.finish()


class _ProgressReporter:
    """Adds up the progress of a pack, and calls `report` with the total after each change."""

    def __init__(self, report: Callable[[PackProgress], None]) -> None:
        self._report = report
        self._total = PackProgress()

    def add(self, change: PackProgress) -> None:
        total = self._total
        self._total = PackProgress(
            rows=total.rows + change.rows,
            samples=total.samples + change.samples,
            stored=total.stored + change.stored,
            bytes=total.bytes + change.bytes,
        )
        self._report(self._total)

    def stored(self, shard: Shard) -> None:
        self.add(PackProgress(stored=shard.samples, bytes=shard.bytes))


def _refuse(store: Store, journal: Journal) -> None:
    """Raises `ManifestError` if the store holds a dataset already.

    A pack that was killed just after it had written its manifest leaves a journal. That journal is deleted first.
    """
    if store.exists(MANIFEST):
        _clear(journal)
    refuse_dataset(store)


def _refuse_another_pack(store: Store, journal: Journal, shards: Sequence[Shard]) -> None:
    """Raises `RecordError` if another pack has replaced a shard that this pack wrote or found in the store.

    The journal entry, the index and the size of each shard are compared. The bytes of the shard are not read again.
    Also raises `ManifestError` if another pack has written a dataset to the store in the meantime.
    """
    refuse_dataset(store)
    if [entry.shard for entry in journal.finished()] != shards:
        raise RecordError(
            f"another pack writes to {store.url}, and its shards replaced some of this one: "
            "end both, delete the files there, and give each its own URL."
        )


def _clear(journal: Journal) -> None:
    """Deletes the journal. A failure is only logged, because the dataset is complete with or without its journal."""
    try:
        journal.clear()
    except StoreError as error:
        _log.warning("the journal of a finished pack could not be deleted, which is harmless: %s", error)


def _numbered(rows: Iterator[SourceRow | BadRow]) -> Iterator[SourceRow | BadRow]:
    """Yields the rows. The number of a row, with nine digits, becomes its key."""
    for number, row in enumerate(rows):
        yield replace(row, key=f"{number:09d}") if isinstance(row, SourceRow) else row


def _report(store: Store, ledger: RowLedger) -> None:
    """Writes the lists of bad rows and of duplicates into the store, if there are any."""
    if ledger.skipped:
        _put(store, SKIPPED, [{"where": bad.where, "file": bad.file, "reason": bad.reason} for bad in ledger.skipped])
    if ledger.duplicates:
        _put(store, DUPLICATES, [asdict(duplicate) for duplicate in ledger.duplicates])


def _put(store: Store, path: str, rows: list[dict[str, Any]]) -> None:
    # A name of a file that is not UTF-8 cannot be written as text; "?" replaces its other bytes.
    store.put(path, json.dumps(rows, ensure_ascii=False, indent=1).encode(errors="replace"))
