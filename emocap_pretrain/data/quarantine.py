"""Records the damaged samples that a run leaves out, for all ranks and attempts together.

The stream of each loader process leaves out up to `data.error_budget` damaged samples. This module counts the damaged
samples of all processes, ranks and attempts, and compares their number with the same budget. Between logged steps
(those whose metrics are tracked) a rank only collects its damaged samples (`add`). If some rank has any at a logged
step, the ranks exchange them (`exchange`). If a rank must end between two exchanges, it writes its samples without the
other ranks (`recorded`).
"""

import logging
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from emocap_shards.errors import BudgetSpent, ConditionFailed, DamagedSample, NotFound, StoreError
from emocap_shards.store import Store

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.documents import QUARANTINE, QuarantineDocument, QuarantinedSample
from emocap_pretrain.run_folder.storage import Unreadable

QUARANTINE_FILE = "quarantine.json"
MAX_RACES = 10  # Number of tries to write the file while other ranks write it too.

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Quarantine:
    """Keeps the list of damaged samples, which is equal on all ranks and stored in `quarantine.json` of the run folder.

    A sample counts once, although it is read again in each epoch, perhaps by another rank. Only the training thread
    calls the methods.

    Args:
        store: The run folder.
        world: All ranks.
        budget: Number of samples that the run may leave out (`data.error_budget`).
        rows: The damaged samples of all ranks and attempts, in the order in which they were added to the list.
    """

    store: Store
    world: RankGroup
    budget: int
    rows: list[QuarantinedSample] = field(default_factory=list[QuarantinedSample])
    _pending: list[QuarantinedSample] = field(default_factory=list[QuarantinedSample])

    @classmethod
    def open(cls, store: Store, world: RankGroup, budget: int) -> "Quarantine":
        """Reads the damaged samples that earlier attempts have found. This is a collective.

        Raises:
            BudgetSpent: If the number of damaged samples exceeds the budget already.
            ConfigError: If `quarantine.json` cannot be read.
        """
        quarantine = cls(store, world, budget, world.run_on_main(lambda: _stored(store)))
        quarantine._check()
        return quarantine

    def add(self, damaged: Iterable[DamagedSample], step: int) -> None:
        """Adds samples that this rank has left out of a step; `exchange` shares them with the other ranks later."""
        self._pending += [QuarantinedSample(each.shard, each.key, each.reason, step) for each in damaged]

    @property
    def has_pending(self) -> bool:
        """Returns whether this rank has added samples that `exchange` has not shared yet."""
        return bool(self._pending)

    def exchange(self) -> list[QuarantinedSample]:
        """Shares the samples that the ranks have added since the last call. This is a collective.

        Returns the shared samples that were not in the list yet. Rank 0 stores the new list.

        Raises:
            BudgetSpent: On all ranks, if the number of damaged samples exceeds the budget.
            StoreError: On rank 0, if the new list cannot be stored; the other ranks raise `LostContact`.
        """
        # Every rank sees the same gathered rows in the same order, so all ranks make the same list and decide alike.
        known = {_place(row): row for row in self.rows}
        found = {_place(row): row for rows in self.world.gather(self._pending) for row in rows}
        fresh = [row for place, row in found.items() if place not in known]
        self.rows += fresh
        self._pending = []
        # The file is written before the budget is checked, so that a run that ends here has named all its samples.
        # `fresh` is equal on all ranks, so all of them call the collective or none.
        if fresh:
            self.world.run_on_main(lambda: self.store.put(QUARANTINE_FILE, self.dump()))
        self._check()
        return fresh

    @contextmanager
    def recorded(self, step: int) -> Generator[None]:
        """Stores the damaged samples of this rank at once if the `with` block raises `BudgetSpent` in step `step`.

        This is not a collective, because the other ranks may be unable to take part in one.
        """
        try:
            yield
        except BudgetSpent as error:
            self.add(error.damaged, step)
            _write_from_one_rank(self.store, [*self._pending, *self.rows])
            raise

    def _check(self) -> None:
        if len(self.rows) > self.budget:
            last = self.rows[-1]
            raise BudgetSpent(
                f"data.error_budget={self.budget} is used up: {len(self.rows)} damaged samples, the last "
                f"{last.key!r} of {last.shard} ({last.reason}). {self.store.url}/{QUARANTINE_FILE} lists them: "
                "allow more, or repair the shards and delete that file."
            )

    def dump(self) -> bytes:
        """Returns the content of `quarantine.json`."""
        return QUARANTINE.dump(QuarantineDocument(tuple(self.rows)))


def _write_from_one_rank(store: Store, rows: Sequence[QuarantinedSample]) -> None:
    """Adds samples to `quarantine.json`, while other ranks may do the same. If the store fails, a warning is logged.

    Errors of the store are not raised, because the caller is about to raise `BudgetSpent`, which they would hide.
    """
    try:
        for _ in range(MAX_RACES):
            with suppress(ConditionFailed):
                _merge(store, rows)
                return
        log.warning("%s/%s keeps changing and lacks samples of this rank", store.url, QUARANTINE_FILE)
    except (StoreError, OSError, ValueError) as error:
        log.warning("%s/%s lacks samples of this rank: %s", store.url, QUARANTINE_FILE, error)


def _merge(store: Store, rows: Sequence[QuarantinedSample]) -> None:
    # The write fails with `ConditionFailed` if another rank has written since the read; the caller then tries again.
    try:
        data, version = store.read_versioned(QUARANTINE_FILE, limit_bytes=QUARANTINE.limit_bytes)
    except NotFound:
        data, version = None, ""
    stored = () if data is None else QUARANTINE.parse(data).samples
    merged = {_place(row): row for row in (*rows, *stored)}
    document = QUARANTINE.dump(QuarantineDocument(tuple(merged.values())))
    if data is None:
        store.put_if_absent(QUARANTINE_FILE, document)
    else:
        store.put_if_match(QUARANTINE_FILE, document, version)


def _place(row: QuarantinedSample) -> tuple[str, str]:
    return row.shard, row.key


def _stored(store: Store) -> list[QuarantinedSample]:
    """Returns the damaged samples that earlier attempts have stored.

    Raises:
        ConfigError: If `quarantine.json` cannot be read. If the file were ignored, the budget would start again.
    """
    found = storage.read(store, QUARANTINE_FILE, QUARANTINE)
    if isinstance(found, Unreadable):
        raise ConfigError(f"{found}: restore it, or delete it to begin a new data.error_budget.")
    return list(found.samples) if found else []
