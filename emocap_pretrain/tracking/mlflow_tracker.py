"""The one door to MLflow."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_DO_NOT_TRACK", "true")
import mlflow
from mlflow.entities import LoggedModelOutput, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import TrackingError
from emocap_pretrain.tracking import environment
from emocap_pretrain.tracking.spool import Row, Spool
from emocap_pretrain.tracking.tracker import Status

LONGEST_PARAM = 500
METRICS_A_CALL = 1000
FLUSH_S = 60.0

log = logging.getLogger(__name__)


class MlflowTracker:
    """One MLflow run, new or continued."""

    def __init__(self, client: MlflowClient, run_id: str, spool: Spool) -> None:
        self.run_id = run_id
        self._client, self._spool = client, spool

    @classmethod
    def start(cls, config: Config, run_id: str | None) -> "MlflowTracker":
        """Begin a run, or go on with `run_id`.

        Raises:
            TrackingError: If MLflow cannot be reached or refuses; nothing was trained yet.
        """
        for migrations in ("alembic", "mlflow.store.db"):
            logging.getLogger(migrations).setLevel(logging.WARNING)
        settings = config.tracking
        try:
            _make_room(settings.uri)
            mlflow.set_tracking_uri(settings.uri)
            client = MlflowClient(settings.uri)
            run_id = _continued(client, run_id) if run_id else _begun(client, config)
            last_step = _last_step(client, run_id)
        except (MlflowException, OSError) as error:
            reason = str(error).strip().split("\n")[0]
            raise TrackingError(f"tracking.uri={settings.uri}: MLflow does not take the run: {reason}") from error
        path = _spool_folder() / f"{run_id}.jsonl"
        return cls(client, run_id, Spool(path, lambda rows: _send(client, run_id, rows), after_step=last_step))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._spool.put(step, dict(metrics))

    def text(self, name: str, content: str) -> None:
        _forgive(name, lambda: self._client.log_text(self.run_id, content, name))

    def picture(self, name: str, path: Path) -> None:
        folder, _, _ = name.rpartition("/")
        _forgive(name, lambda: self._client.log_artifact(self.run_id, str(path), folder or None))

    def describe(self, markdown: str) -> None:
        _forgive("description", lambda: self._client.set_tag(self.run_id, "mlflow.note.content", markdown))

    def checkpoint(self, url: str, step: int, digest: str) -> None:
        def register() -> None:
            tags = {"checkpoint.url": url, "checkpoint.manifest_sha256": digest, "checkpoint.step": str(step)}
            experiment = self._client.get_run(self.run_id).info.experiment_id
            model = mlflow.create_external_model(f"step-{step:08d}", self.run_id, tags, experiment_id=experiment)
            self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step)])
            self._client.set_tag(self.run_id, "checkpoint.url", url)

        _forgive(f"checkpoint of step {step}", register)

    def finish(self, status: Status) -> None:
        if not self._spool.close(FLUSH_S):
            log.warning("MLflow did not take every row; the next start of this run on this host sends the rest.")
        _forgive("run status", lambda: self._client.set_terminated(self.run_id, status))


def _begun(client: MlflowClient, config: Config) -> str:
    commit = environment.git_commit()
    tags = {"mlflow.source.name": "emocap_pretrain", "mlflow.source.type": "JOB"}
    tags |= {"mlflow.source.git.commit": commit} if commit else {}
    run_id: str = client.create_run(_experiment(client, config), run_name=config.name, tags=tags).info.run_id
    facts = environment.versions() | environment.machine()
    values = _flat(config.stored()) | {f"environment.{name}": value for name, value in facts.items()}
    client.log_batch(run_id, params=[Param(key, value[:LONGEST_PARAM]) for key, value in values.items()])
    return run_id


def _continued(client: MlflowClient, run_id: str) -> str:
    restarts = int(client.get_run(run_id).data.tags.get("emocap.restarts", "0"))
    client.set_tag(run_id, "emocap.restarts", str(restarts + 1))
    client.update_run(run_id, "RUNNING")
    return run_id


def _experiment(client: MlflowClient, config: Config) -> str:
    name = config.tracking.experiment
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # The pages then are those of training; without a kind MLflow guesses.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return client.create_experiment(name, artifact_location=config.tracking.artifacts, tags=kind)


def _last_step(client: MlflowClient, run_id: str) -> int:
    return max((point.step for point in client.get_metric_history(run_id, "loss")), default=-1)


def _send(client: MlflowClient, run_id: str, rows: list[Row]) -> None:
    points = [Metric(key, value, at_ms, step) for step, at_ms, metrics in rows for key, value in metrics.items()]
    for start in range(0, len(points), METRICS_A_CALL):
        client.log_batch(run_id, metrics=points[start : start + METRICS_A_CALL])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _make_room(uri: str) -> None:
    """The folder of an sqlite file: MLflow does not make it."""
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)


def _spool_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "emocap" / "spool"


def _forgive(what: str, act: Any) -> None:
    """An outage after the start costs an artifact and a warning, never the run."""
    try:
        act()
    except Exception as error:  # noqa: BLE001
        log.warning("MLflow did not take %s: %s", what, str(error).split("\n")[0][:200])
