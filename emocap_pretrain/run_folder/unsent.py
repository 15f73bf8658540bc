"""Stores the rows that MLflow had not accepted when an attempt ended, in `<run>/unsent.json`.

A row is one report to MLflow, such as the metrics of a step. A checkpoint contains the rows that were not sent when it
was saved. `unsent.json` holds later rows too, such as the results of a run that ended while MLflow was unreachable. The
next attempt reads and sends these rows, on any host.

A row may be both in `unsent.json` and in the checkpoint, and MLflow may have received it before. That is harmless,
because the tracker counts each row once (`tracking/mlflow_run.py`).
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from emocap_shards.errors import StoreError
from emocap_shards.store import Store

from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.attempts import newest
from emocap_pretrain.run_folder.documents import UNSENT, UnsentDocument
from emocap_pretrain.run_folder.storage import Unreadable

UNSENT_FILE = "unsent.json"
Row = TypeVar("Row")

log = logging.getLogger(__name__)


def dump(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns the content of an `unsent.json` with these rows, for the run's folder or for a checkpoint."""
    return UNSENT.dump(UnsentDocument(tuple(map(dict, rows))))


def parse(data: bytes, place: str) -> list[dict[str, Any]]:
    """Returns the rows in the content of a checkpoint's `unsent.json`.

    If the content cannot be used, no rows are returned, and a warning names `place`, the address of the file.
    """
    try:
        return list(UNSENT.parse(data).rows)
    except ValueError as error:
        log.warning("%s cannot be read (%s): its rows for the tracker are lost", place, error)
        return []


def write(store: Store, rows: Sequence[Mapping[str, Any]], *, number: int) -> None:
    """Writes the rows to `unsent.json` for the next attempt. If there are no rows, it deletes the file.

    Args:
        store: The run's folder.
        rows: Rows that MLflow has not accepted.
        number: Number of this attempt. If a newer attempt exists, nothing is written.

    Raises:
        StoreError: If the store refuses the document.
    """
    if newest(store) > number:  # The newer attempt reads this file at its start and writes it at its end.
        return
    if rows:
        store.put(UNSENT_FILE, dump(rows))
    else:
        store.delete(UNSENT_FILE)


def write_or_warn(store: Store, rows: Sequence[Mapping[str, Any]], *, number: int) -> None:
    """Writes the rows as `write` does, at the end of an attempt.

    If the store raises an error, the error is logged and not raised, and the rows are lost.
    """
    try:
        write(store, rows, number=number)
    except (StoreError, OSError) as error:
        log.warning("%d rows for the tracker could not be kept: %s", len(rows), error)


def read(store: Store) -> list[dict[str, Any]]:
    """Returns the rows that the previous attempt could not send. They stay stored until `write` replaces them.

    If the file cannot be used, no rows are returned, and a warning names it.

    Raises:
        StoreError: If the store does not answer.
    """
    found = storage.read(store, UNSENT_FILE, UNSENT)
    if isinstance(found, Unreadable):
        log.warning("%s: its rows for the tracker are lost", found)
        return []
    return list(found.rows) if found else []


def of_this_run(rows: Sequence[Row], store: Store, *, original: str) -> list[Row]:
    """Returns the stored rows that the run in this folder sends: none if the folder counts as a copy, otherwise all.

    The rows in a copy belong to the original run, which sends them itself. But a folder also counts as a copy if the
    recorded address of the original folder cannot be looked up (`RunFolder.copied_from`). In this case it is possible
    that no run sends the rows. So a warning says how many rows are left out.

    Args:
        rows: The rows of `unsent.json` and of the checkpoint. A row that is in both is listed twice.
        store: The run's folder.
        original: MLflow's id of the original run if this folder counts as a copy; otherwise an empty text.
    """
    if original and rows:
        log.warning(
            "%s counts as a copy: up to %d rows are left to MLflow run %s, whose own folder sends them; if there is no "
            "other folder, because this one was moved, they are lost",
            store.url,
            len(rows),
            original,
        )
    return [] if original else list(rows)
