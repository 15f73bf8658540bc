"""Rows that MLflow did not take before an attempt ended, in the run's folder: `<run>/unsent.json`.

Rows up to a checkpoint lie in the checkpoint itself. This file holds what came after the last one, such as the result
of a run that was done while MLflow was unreachable; an attempt on any host takes it from there.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from emocap_shards.errors import StoreError
from emocap_shards.store import Store

from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.attempts import newest
from emocap_pretrain.run_folder.documents import UNSENT, UnsentDocument
from emocap_pretrain.run_folder.storage import Unreadable

UNSENT_FILE = "unsent.json"

log = logging.getLogger(__name__)


def dump(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The document for a checkpoint."""
    return UNSENT.dump(UnsentDocument(tuple(map(dict, rows))))


def parse(data: bytes, place: str) -> list[dict[str, Any]]:
    """The rows in a checkpoint's document; a document that cannot be used costs its rows and a warning."""
    try:
        return list(UNSENT.parse(data).rows)
    except ValueError as error:
        log.warning("%s cannot be read (%s): its rows for the tracker are lost", place, error)
        return []


def keep(store: Store, rows: Iterable[Mapping[str, Any]], *, number: int | None = None) -> None:
    """Keeps the rows for the next attempt; no rows delete what an earlier one left.

    Args:
        store: The run's folder.
        rows: What has not arrived.
        number: Number of this attempt; the file of a newer attempt is kept. Without a number there is no check.

    Raises:
        StoreError: If the store refuses.
    """
    kept = tuple(map(dict, rows))
    if number is not None and newest(store) > number:
        return
    if kept:
        storage.write(store, UNSENT_FILE, UNSENT, UnsentDocument(kept))
    else:
        store.delete(UNSENT_FILE)


def leave(store: Store, rows: Iterable[Mapping[str, Any]], *, number: int | None = None) -> None:
    """Keeps rows as `keep`, at the end of an attempt. An error of the store is logged, and loses the rows."""
    kept = tuple(map(dict, rows))
    try:
        keep(store, kept, number=number)
    except (StoreError, OSError) as error:
        log.warning("%d rows for the tracker could not be kept: %s", len(kept), error)


def left(store: Store) -> list[dict[str, Any]]:
    """Returns the rows that the attempt before could not send. They stay until `leave` replaces them."""
    found = storage.read(store, UNSENT_FILE, UNSENT)
    if isinstance(found, Unreadable):
        log.warning("%s: its rows for the tracker are lost", found)
        return []
    return list(found.rows) if found else []
