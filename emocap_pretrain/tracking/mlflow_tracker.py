"""One MLflow run over all starts of a run of ours."""

import base64
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from emocap_shards.mask import masked
from emocap_shards.store import Store

from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.datasets import DatasetUse
from emocap_pretrain.run_folder import unsent
from emocap_pretrain.tracking.mlflow_run import STARTS, MlflowRun, mlflow_dataset
from emocap_pretrain.tracking.spool import Row, Spool, row, understood
from emocap_pretrain.tracking.tracker import Status

FINISH_S = 20.0
ARTIFACTS = ("text", "picture")

log = logging.getLogger(__name__)


class MlflowTracker:
    """Everything goes through two spools, so an artifact store that refuses holds up no metric."""

    def __init__(self, run: MlflowRun, rows: Sequence[Row] = ()) -> None:
        self.run_id, self._run = run.run_id, run
        artifacts = [each for each in rows if each["kind"] in ARTIFACTS]
        history = [each for each in rows if each["kind"] not in ARTIFACTS]
        self._history = Spool(run.deliver, history, name="rows")
        self._artifacts = Spool(run.deliver, artifacts, name="texts and pictures")

    @classmethod
    def start(
        cls,
        config: Config,
        run_id: str | None,
        *,
        number: int = 1,
        facts: Mapping[str, Any] | None = None,
        unsent: Sequence[Row] = (),
        parent: str = "",
    ) -> "MlflowTracker":
        """Begins an MLflow run, or continues `run_id`, whose rows may wait for a server that is unreachable.

        Args:
            config: The run's.
            run_id: MLflow's name for the run of an earlier start; None at the first.
            number: Number of this attempt. Attempts with a lower number no longer write.
            facts: JSON values about this start (ranks, hosts, why the one before ended), for `starts/00001.json`.
            unsent: What an earlier start could not deliver, from its last checkpoint; it is sent first.
            parent: MLflow's name for the run of which a new one is a copy.

        Raises:
            TrackingError: If MLflow does not take a new run, or does not know `run_id`; nothing was trained yet.
        """
        run = MlflowRun.known(config, run_id, number) if run_id else MlflowRun.begun(config, number, parent)
        tracker = cls(run, unsent)
        tracker._began(number)
        if facts is not None:
            tracker.text(f"starts/{number:05d}.json", json.dumps({"number": number, **facts}, indent=1))
        return tracker

    @property
    def experiment_id(self) -> str:
        return self._run.experiment_id

    @property
    def silent(self) -> bool:
        return self._run.silent

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._history.put(row("metrics", step, dict(metrics)))

    def score(self, metrics: Mapping[str, float], step: int) -> None:
        self._history.put(row("scores", step, dict(metrics)))

    def rescore(self, metrics: Mapping[str, float], step: int) -> None:
        self._history.put(row("rescores", step, dict(metrics)))

    def datasets(self, used: Sequence[DatasetUse]) -> None:
        self._history.put(row("datasets", 0, {"datasets": [mlflow_dataset(each) for each in used]}))

    def text(self, name: str, content: str) -> None:
        self._artifacts.put(row("text", 0, {"name": name, "content": masked(content)}))

    def picture(self, name: str, path: Path) -> None:
        content = base64.b64encode(path.read_bytes()).decode()
        self._artifacts.put(row("picture", 0, {"name": name, "base64": content}))

    def describe(self, markdown: str) -> None:
        self._history.put(row("tags", 0, {"mlflow.note.content": masked(markdown)}))

    def checkpoint(self, url: str, step: int, digest: str) -> None:
        tags = {"checkpoint.url": masked(url), "checkpoint.manifest_sha256": digest}
        self._history.put(row("checkpoint", step, tags))

    def forget(self, steps: Collection[int]) -> None:
        if steps:
            self._history.put(row("forget", 0, {"steps": sorted(steps)}))

    def keep(self, steps: Collection[int]) -> None:
        self._history.put(row("keep", 0, {"steps": sorted(steps)}))

    def flush(self, wait_s: float) -> bool:
        return _in_turn(wait_s, self._history.flush, self._artifacts.flush)

    def unsent(self) -> list[Row]:
        return self._history.unsent() + self._artifacts.unsent()

    def finish(self, status: Status) -> None:
        self._history.put(row("status", 0, {"status": status}))
        if not _in_turn(FINISH_S, self._history.close, self._artifacts.close):
            log.warning("MLflow did not take everything; the next start of this run sends the rest.")

    def _began(self, number: int) -> None:
        self._history.put(row("tags", 0, {STARTS: str(number)}))
        self._history.put(row("status", 0, {"status": "RUNNING"}))


def _in_turn(wait_s: float, *acts: Callable[[float], bool]) -> bool:
    """Each of them with what the ones before left of the time; whether all said True."""
    deadline = time.monotonic() + wait_s
    done = [act(max(0.0, deadline - time.monotonic())) for act in acts]
    return all(done)


def deliver_unsent(store: Store, config: Config, run_id: str, *, number: int) -> bool:
    """Send what a run that is done could not deliver; True if nothing is left.

    Args:
        store: The run's folder.
        config: The run's.
        run_id: MLflow's name for the run.
        number: Number of the newest attempt.
    """
    rows = understood(unsent.left(store))
    if rows:
        tracker = MlflowTracker.start(config, run_id, number=number, unsent=rows)
        tracker.finish("FINISHED")
        unsent.leave(store, tracker.unsent(), number=number)
        return not tracker.unsent()
    return True
