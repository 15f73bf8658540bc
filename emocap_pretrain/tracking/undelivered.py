"""What MLflow did not take before a start ended, in the run's folder: `<run>/unsent.json`.

Rows up to a checkpoint lie in the checkpoint itself. This file holds what came after the last one, such as the result
of a run that was done while MLflow was away; a start on any host takes it from there.
"""

import json
import logging
from collections.abc import Sequence

from emocap_shards.errors import NotFound, StoreError
from emocap_shards.store import Store

from emocap_pretrain.config.schema import Config
from emocap_pretrain.starts import newest
from emocap_pretrain.tracking.mlflow_tracker import MlflowTracker
from emocap_pretrain.tracking.spool import Row

UNSENT = "unsent.json"
LIMIT_BYTES = 1 << 28

log = logging.getLogger(__name__)


def leave(store: Store, rows: Sequence[Row], *, number: int | None = None) -> None:
    """Keep the rows for the next start; none remove what an earlier one left. A store that refuses costs the rows.

    Args:
        store: The run's folder.
        rows: What has not arrived.
        number: Of this start: where a newer one has taken over, its file stays. Without a number nobody looks.
    """
    try:
        if number is not None and newest(store) > number:
            return
        if rows:
            store.put(UNSENT, json.dumps(list(rows)).encode())
        else:
            store.delete(UNSENT)
    except (StoreError, OSError) as error:
        log.warning("%d rows for the tracker could not be kept: %s", len(rows), error)


def left(store: Store) -> list[Row]:
    """What the start before could not deliver. It stays until `leave` says what then is left."""
    try:
        return list[Row](json.loads(store.read(UNSENT, limit_bytes=LIMIT_BYTES)))
    except NotFound:
        return []


def deliver(store: Store, config: Config, run_id: str, *, number: int) -> bool:
    """Send what a run that is done could not deliver; True if nothing is left.

    Args:
        store: The run's folder.
        config: The run's.
        run_id: MLflow's name for the run.
        number: Of the newest start.
    """
    rows = left(store)
    if rows:
        tracker = MlflowTracker.start(config, run_id, number=number, unsent=rows)
        tracker.finish("FINISHED")
        leave(store, tracker.unsent(), number=number)
        return not tracker.unsent()
    return True
