"""Implements the tracker that records all attempts of a run in one MLflow run.

This module imports MLflow, and `pictures` imports matplotlib. These imports take a quarter of the time that a rank
needs to start. Therefore other modules import the two inside of functions, and rank 0 is the only rank that does so.

`MlflowTracker` turns each report into a row (`spool.row`) and returns at once. The thread of a `Spool` sends the rows,
and `MlflowRun` writes them into MLflow so that a row that is sent twice counts once. Secrets in texts are masked here,
before the texts become rows, because rows are also stored in checkpoints and in the run's folder.
"""

import base64
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from emocap_shards.mask import masked
from emocap_shards.store import Store

from emocap_pretrain.data.datasets import DatasetUse
from emocap_pretrain.run_folder import unsent
from emocap_pretrain.run_folder.parent import Parent
from emocap_pretrain.tracking.mlflow_run import ATTEMPT_TAG, MlflowRun, mlflow_dataset
from emocap_pretrain.tracking.spool import Row, Spool, readable_rows, row
from emocap_pretrain.tracking.tracker import RunStatus, TrackedRun

FINISH_S = 20.0  # How long the end of an attempt waits for the tracker.
ARTIFACTS = ("text", "picture")

log = logging.getLogger(__name__)


class MlflowTracker:
    """Records a run in MLflow.

    Reports wait in two queues (`Spool`): one for texts and pictures, and one for all other reports. Metrics therefore
    still arrive if MLflow's artifact store refuses files.
    """

    def __init__(self, run: MlflowRun, rows: Sequence[Row] = ()) -> None:
        self.run_id, self._run = run.run_id, run
        artifacts = [each for each in rows if each["kind"] in ARTIFACTS]
        history = [each for each in rows if each["kind"] not in ARTIFACTS]
        self._history = Spool(run.deliver, history, name="rows")
        self._artifacts = Spool(run.deliver, artifacts, name="texts and pictures")

    @classmethod
    def start(
        cls,
        run: TrackedRun,
        run_id: str | None,
        *,
        number: int = 1,
        facts: Mapping[str, Any] | None = None,
        unsent: Sequence[Row] = (),
        parent: str = "",
        warm_start: Parent | None = None,
    ) -> "MlflowTracker":
        """Creates an MLflow run, or continues the run `run_id`.

        A run is created only if the server is reachable. It can be continued even while the server is unreachable.

        Args:
            run: The name, the settings and the charts of the run.
            run_id: MLflow's id of the run, which an earlier attempt has created; None creates a run.
            number: The number of this attempt. Attempts with a lower number no longer write to the run.
            facts: JSON values about this attempt (ranks, hosts, why the previous attempt ended), which are logged as a
                text. Its name contains the number of the attempt, such as `starts/00001.json`. None logs no such text.
            unsent: The rows that an earlier attempt could not send; they are sent first.
            parent: If the run folder was copied, MLflow's id of the original run; it becomes the new run's parent.
            warm_start: The checkpoint of another run with whose weights a new run begins. A new run gets its tags, and
                the other run becomes its parent if the server has that run and `parent` is empty.

        Raises:
            TrackingError: If a new run cannot be created, because MLflow is unreachable or refuses it. It is also
                raised if MLflow has no run `run_id`, or if its database cannot be opened.
        """
        # The rows of an earlier attempt are first in the queue. The tag after them makes this attempt the newest one.
        if run_id:
            tracked = MlflowRun.resume(run.settings, run_id, number)
        else:
            tracked = MlflowRun.create(run, number, parent, warm_start)
        tracker = cls(tracked, unsent)
        tracker._history.put(row("tags", 0, {ATTEMPT_TAG: str(number)}))
        tracker._history.put(row("status", 0, {"status": "RUNNING"}))
        if facts is not None:
            tracker.log_text(f"starts/{number:05d}.json", json.dumps({"number": number, **facts}, indent=1))
        return tracker

    @property
    def experiment_id(self) -> str:
        return self._run.experiment_id

    @property
    def superseded(self) -> bool:
        return self._run.superseded

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._history.put(row("metrics", step, dict(metrics)))

    def log_scores(self, metrics: Mapping[str, float], step: int) -> None:
        self._history.put(row("scores", step, dict(metrics)))

    def replace_scores(self, metrics: Mapping[str, float], step: int) -> None:
        self._history.put(row("rescores", step, dict(metrics)))

    def log_datasets(self, used: Sequence[DatasetUse]) -> None:
        self._history.put(row("datasets", 0, {"datasets": [mlflow_dataset(each) for each in used]}))

    def log_text(self, name: str, content: str) -> None:
        self._artifacts.put(row("text", 0, {"name": name, "content": masked(content)}))

    def log_picture(self, name: str, path: Path) -> None:
        content = base64.b64encode(path.read_bytes()).decode()
        self._artifacts.put(row("picture", 0, {"name": name, "base64": content}))

    def set_description(self, markdown: str) -> None:
        self.set_tags({"mlflow.note.content": markdown})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        if tags:
            self._history.put(row("tags", 0, {name: masked(value) for name, value in tags.items()}))

    def log_checkpoint(self, url: str, step: int, digest: str) -> None:
        tags = {"checkpoint.url": masked(url), "checkpoint.manifest_sha256": digest}
        self._history.put(row("checkpoint", step, tags))

    def delete_checkpoints(self, steps: Collection[int]) -> None:
        if steps:
            self._history.put(row("forget", 0, {"steps": sorted(steps)}))

    def keep_checkpoints(self, steps: Collection[int]) -> None:
        self._history.put(row("keep", 0, {"steps": sorted(steps)}))

    def flush(self, wait_s: float) -> bool:
        return _all_within(wait_s, self._history.flush, self._artifacts.flush)

    def unsent(self) -> list[Row]:
        return self._history.unsent() + self._artifacts.unsent()

    def finish(self, status: RunStatus) -> None:
        self._history.put(row("status", 0, {"status": status}))
        if not _all_within(FINISH_S, self._history.close, self._artifacts.close):
            log.warning("some rows did not reach MLflow; the next start of this run sends them.")


def _all_within(wait_s: float, *acts: Callable[[float], bool]) -> bool:
    """Calls the functions one after the other, and returns whether all of them returned True.

    Each function gets the number of seconds that are left of `wait_s`.
    """
    deadline = time.monotonic() + wait_s
    done = [act(max(0.0, deadline - time.monotonic())) for act in acts]
    return all(done)


def deliver_unsent(store: Store, run: TrackedRun, run_id: str, *, number: int) -> bool:
    """Sends the rows that had not arrived when the run finished, and returns whether all have arrived now.

    If there are no such rows, the server is not contacted. Rows that still do not arrive are stored again.

    Args:
        store: The folder of the run.
        run: The name, the settings and the charts of the run.
        run_id: MLflow's id of the run.
        number: The number of the newest attempt.
    """
    rows = readable_rows(unsent.read(store))
    if rows:
        tracker = MlflowTracker.start(run, run_id, number=number, unsent=rows)
        tracker.finish("FINISHED")
        unsent.write_or_warn(store, tracker.unsent(), number=number)
        return not tracker.unsent()
    return True
