"""Writes rows into an MLflow run so that a row that is sent twice counts once.

A row is one report to MLflow, such as the metrics of a step (`spool.Row`). MLflow adds a point to a metric at every
call, even if the metric has that point already. This module therefore reads the last step of each metric from the run,
and sends only points of later steps. It reads the last steps at the start, after each failure and every few seconds. So
a row counts once even after a lost response, a crash of the server, a restart on another host, or a replay of steps.
The response with the last steps also shows whether a newer attempt writes to the run. If so, this attempt stops
writing.

Other kinds of rows count once for other reasons: evaluation results are sent only if they differ from those in the run,
a checkpoint is looked up by its name, and a text or picture replaces the one of the same name (docs/tracking.md).

`Spool` calls `MlflowRun.deliver` again after any error, so each request of a delivery must be safe to repeat.
"""

import base64
import errno
import fcntl
import json
import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# MLflow reads these when it is imported. The spool repeats a call that fails, so MLflow itself may give up soon.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # The URL may contain a password.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
from emocap_shards.mask import masked
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_MODEL_IS_EXTERNAL, MLFLOW_PARENT_RUN_ID
from sqlalchemy.exc import SQLAlchemyError

from emocap_pretrain.config.schema import TrackingConfig
from emocap_pretrain.config.stored import leaves
from emocap_pretrain.data.datasets import DatasetUse
from emocap_pretrain.errors import TrackingError
from emocap_pretrain.run_folder.parent import Parent
from emocap_pretrain.tracking import environment, pages
from emocap_pretrain.tracking.spool import Kind, Row, reason
from emocap_pretrain.tracking.tracker import TrackedRun

ATTEMPT_TAG = "emocap.starts"  # The number of the newest attempt that writes to the run.
PROBE_EXPERIMENT = "emocap-doctor"
METRICS_PER_CALL = 1000  # MLflow refuses a call with more.
REFRESH_S = 10.0
MAX_PARAM_CHARS = 500  # A longer value of a param is cut.
NOT_FOUND = 404
NO_ROOM = ("disk is full", "disk I/O error", os.strerror(errno.ENOSPC))
BAD_REQUEST = 400  # MLflow will never accept this value; other errors may be temporary.

FAILURES = (MlflowException, SQLAlchemyError, OSError)  # MLflow raises SQLAlchemy's errors if its server is a file.

log = logging.getLogger(__name__)


class MlflowRun:
    """Writes to one MLflow run for one attempt.

    Two threads use this object. The first thread delivers all kinds of rows except texts and pictures, which the second
    thread delivers. `_last_steps` and `_read_at_s` belong to the first thread. After an error the second thread may
    reset `_read_at_s`. This is harmless: the first thread then reads the last steps once more.
    """

    def __init__(self, client: MlflowClient, run_id: str, attempt: int, experiment_id: str = "") -> None:
        self._client, self.run_id, self._attempt = client, run_id, attempt
        self.experiment_id = experiment_id  # Empty until MLflow has answered.
        self.superseded = False  # Whether an attempt with a higher number writes to the run.
        self._run: Run
        self._last_steps: dict[str, int] = {}
        self._read_at_s = -math.inf
        self._acts: dict[Kind, Callable[[Run, list[Row]], None]] = {
            "metrics": self._metrics,
            "scores": self._scores,
            "rescores": self._rescores,
            "datasets": self._datasets,
            "tags": self._tags,
            "status": self._status,
            "checkpoint": self._checkpoint,
            "forget": self._forget,
            "keep": self._keep,
            "text": self._text,
            "picture": self._picture,
        }

    @classmethod
    def create(cls, run: TrackedRun, attempt: int, parent: str = "", warm_start: Parent | None = None) -> "MlflowRun":
        """Creates an MLflow run whose params are the settings and the environment.

        Args:
            run: The name, the settings and the charts of the run.
            attempt: Number of this attempt.
            parent: MLflow's id of the parent run; empty if there is none.
            warm_start: The checkpoint of another run with whose weights this run begins; None for any other run.

        Raises:
            TrackingError: If MLflow is unreachable or refuses the run.
        """
        try:
            client = _client(run.settings)
            info = _create(client, run, parent, warm_start).info
            return cls(client, info.run_id, attempt, info.experiment_id)
        except FAILURES as error:
            raise _refusal(run.settings, error) from None

    @classmethod
    def resume(cls, settings: TrackingConfig, run_id: str, attempt: int) -> "MlflowRun":
        """Returns the MLflow run of an earlier attempt.

        If MLflow is unreachable, a warning is logged, and no error is raised.

        Args:
            settings: The settings that say where the run is tracked.
            run_id: MLflow's id of the run.
            attempt: Number of this attempt.

        Raises:
            TrackingError: If MLflow has no such run, or its database cannot be opened.
        """
        try:
            client = _client(settings)
        except FAILURES as error:
            raise _refusal(settings, error) from None
        try:
            return cls(client, run_id, attempt, client.get_run(run_id).info.experiment_id)
        except FAILURES as error:
            if isinstance(error, MlflowException) and error.get_http_status_code() == NOT_FOUND:
                raise _refusal(settings, error) from None
            log.warning("MLflow at %s does not answer (%s)", masked(settings.uri), reason(error))
        return cls(client, run_id, attempt)

    def deliver(self, rows: Sequence[Row]) -> None:
        """Sends the rows in their order.

        It may be called again with the same rows, even if some of them have already arrived.

        Raises:
            Exception: Any error of MLflow's client. Some of the rows may have arrived before it.
        """
        # Neighbouring rows of one kind go together. Rows of different kinds do not change places: a checkpoint, for
        # example, must exist before the scores that belong to it.
        for _, group in groupby(rows, lambda row: row["kind"]):
            self._send(list(group))

    def _send(self, rows: list[Row]) -> None:
        """Sends rows of one kind, unless a newer attempt writes to the run.

        A row that MLflow refuses as wrong is logged and left out, so that the other rows arrive.
        """
        kind = rows[0]["kind"]
        run = self._recent_run() if kind == "metrics" else self._client.get_run(self.run_id)
        self.experiment_id = run.info.experiment_id
        if int(run.data.tags.get(ATTEMPT_TAG, 0)) > self._attempt:
            self._stop_writing()
            return
        try:
            self._acts[kind](run, rows)
        except Exception as error:
            # Some of the points may have arrived, so the last steps are read again before the next metrics.
            self._read_at_s = -math.inf
            if not isinstance(error, MlflowException) or error.get_http_status_code() != BAD_REQUEST:
                raise
            # One value spoils the whole call. The rows are sent one by one, and only the refused one is dropped.
            if len(rows) == 1:
                log.warning("MLflow refuses %s of step %d: %s", kind, rows[0]["step"], reason(error))
            else:
                for each in rows:
                    self._send([each])

    def _recent_run(self) -> Run:
        """Returns the run as it was last read from MLflow.

        It is read again only if the last reading is more than `REFRESH_S` seconds old, or if a delivery has failed or
        sent scores since then. It is not read at every call, because the response is large if the job has many hosts.
        """
        now_s = time.monotonic()
        if now_s - self._read_at_s > REFRESH_S:
            self._run = self._client.get_run(self.run_id)
            self._last_steps = _last_steps(self._run)
            self._read_at_s = now_s
        return self._run

    def _stop_writing(self) -> None:
        if not self.superseded:
            log.warning(
                "a newer attempt writes to MLflow run %s; attempt %d no longer does", self.run_id, self._attempt
            )
        self.superseded = True

    def _metrics(self, run: Run, rows: list[Row]) -> None:  # noqa: ARG002 - all kinds of rows have the same signature
        points = new_points(rows, self._last_steps)
        for start in range(0, len(points), METRICS_PER_CALL):
            self._client.log_batch(self.run_id, metrics=points[start : start + METRICS_PER_CALL])
        self._last_steps |= {point.key: point.step for point in points}

    def _scores(self, run: Run, rows: list[Row]) -> None:
        self._log_scores(run, new_points(rows, _last_steps(run)))

    def _rescores(self, run: Run, rows: list[Row]) -> None:
        """Sends the scores whose values differ from the newest values of the same step in the run.

        So a row that is sent twice counts once, and a new value of the same step replaces the old value.
        """
        points = [Metric(key, value, row["at_ms"], row["step"]) for row in rows for key, value in row["body"].items()]
        known = {key: self._newest_values(key) for key in {point.key for point in points} & run.data.metrics.keys()}
        new: list[Metric] = []
        for point in points:
            values = known.setdefault(point.key, {})
            if values.get(point.step) != point.value:
                values[point.step] = point.value
                new.append(point)
        self._log_scores(run, new)

    def _newest_values(self, key: str) -> dict[int, float]:
        """Returns the newest value of each step of a metric."""
        history = self._client.get_metric_history(self.run_id, key)
        return {point.step: point.value for point in sorted(history, key=lambda point: point.timestamp)}

    def _log_scores(self, run: Run, points: Sequence[Metric]) -> None:
        """Logs points as metrics of the run, and also as metrics of checkpoints.

        MLflow shows a checkpoint as a "logged model". A point belongs to the logged model of the checkpoint that was
        saved at the step of the point. If there is none, the point is only a metric of the run.
        """
        models = {step: self._model(run, step) for step in {point.step for point in points}}
        for point in points:
            model = models[point.step]
            model_id = model.model_id if model else None
            self._client.log_metric(self.run_id, point.key, point.value, point.timestamp, point.step, model_id=model_id)
        self._read_at_s = -math.inf  # These points are not in `_last_steps`.

    def _datasets(self, run: Run, rows: list[Row]) -> None:  # noqa: ARG002
        found = [
            DatasetInput(Dataset(**each["dataset"]), [InputTag(key, value) for key, value in each["tags"].items()])
            for row in rows
            for each in row["body"]["datasets"]
        ]
        self._client.log_inputs(self.run_id, found)

    def _tags(self, run: Run, rows: list[Row]) -> None:  # noqa: ARG002
        tags = [RunTag(key, value) for row in rows for key, value in row["body"].items()]
        self._client.log_batch(self.run_id, tags=tags)

    def _status(self, run: Run, rows: list[Row]) -> None:  # noqa: ARG002
        status = rows[-1]["body"]["status"]
        if status == "RUNNING":
            self._client.update_run(self.run_id, status)
        else:
            self._client.set_terminated(self.run_id, status, rows[-1]["at_ms"])

    def _checkpoint(self, run: Run, rows: list[Row]) -> None:
        """Creates a logged model in MLflow for each checkpoint. It has the checkpoint's URL as a tag, but no files."""
        # Each call is made only if its effect is missing, so a delivery that was interrupted between two calls is
        # completed by the next one.
        outputs = {each.model_id for each in run.outputs.model_outputs} if run.outputs else set[str]()
        for row in rows:
            step, tags = row["step"], {"checkpoint.step": str(row["step"]), **row["body"]}
            model = self._model(run, step)
            if model is None:
                tags |= {MLFLOW_MODEL_IS_EXTERNAL: "true"}
                model = self._client.create_logged_model(run.info.experiment_id, _name(step), self.run_id, tags)
            elif model.tags.get("checkpoint.url") != row["body"]["checkpoint.url"]:
                self._client.set_logged_model_tags(model.model_id, tags)
            self._client.finalize_logged_model(model.model_id, "READY")
            if model.model_id not in outputs:
                self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step)])
            self._client.set_tag(self.run_id, "checkpoint.url", row["body"]["checkpoint.url"])

    def _forget(self, run: Run, rows: list[Row]) -> None:
        for step in (step for row in rows for step in row["body"]["steps"]):
            if model := self._model(run, step):
                self._client.delete_logged_model(model.model_id)

    def _keep(self, run: Run, rows: list[Row]) -> None:
        names = {_name(step) for step in rows[-1]["body"]["steps"]}
        for model in self._models(run):
            if model.name not in names:
                self._client.delete_logged_model(model.model_id)

    def _text(self, run: Run, rows: list[Row]) -> None:  # noqa: ARG002
        for row in rows:
            self._client.log_text(self.run_id, row["body"]["content"], row["body"]["name"])

    def _picture(self, run: Run, rows: list[Row]) -> None:  # noqa: ARG002
        for row in rows:
            above, _, name = row["body"]["name"].rpartition("/")
            with TemporaryDirectory(prefix="emocap-") as folder:
                path = Path(folder) / name
                path.write_bytes(base64.b64decode(row["body"]["base64"]))
                self._client.log_artifact(self.run_id, str(path), above or None)

    def _model(self, run: Run, step: int) -> LoggedModel | None:
        return next(iter(self._models(run, f" AND name='{_name(step)}'")), None)

    def _models(self, run: Run, condition: str = "") -> list[LoggedModel]:
        """Returns the logged models of this run from all pages of the response.

        `condition` is a text that is appended to MLflow's filter, such as " AND name='step-00000010'".
        """
        found, token = list[LoggedModel](), None
        wanted = f"source_run_id='{self.run_id}'{condition}"
        while page := self._client.search_logged_models([run.info.experiment_id], wanted, page_token=token):
            found += page
            if not (token := page.token):
                break
        return found


def new_points(rows: Iterable[Row], last_steps: Mapping[str, int]) -> list[Metric]:
    """Returns the points of the rows that MLflow does not have yet, in the order of the rows.

    A point is one value of a metric at a step. It is left out if its metric already has a point of the same or a later
    step. `last_steps` holds the last step of each metric in MLflow.

    Example:
        rows = [row("metrics", 10, {"loss": 2.0}), row("metrics", 20, {"loss": 1.5, "scale": 7.0})]
        [(each.key, each.step) for each in new_points(rows, {"loss": 10})]  # [("loss", 20), ("scale", 20)]
    """
    last, points = dict(last_steps), list[Metric]()
    for row in rows:
        for key, value in row["body"].items():
            if row["step"] > last.get(key, -1):
                last[key] = row["step"]
                points.append(Metric(key, value, row["at_ms"], row["step"]))
    return points


def _last_steps(run: Run) -> dict[str, int]:
    return {metric.key: metric.step for metric in run.data.to_proto().metrics}


def _name(step: int) -> str:
    return f"step-{step:08d}"


def mlflow_dataset(used: DatasetUse) -> dict[str, Any]:
    """Describes a dataset for MLflow as JSON values.

    The key "dataset" has the arguments of MLflow's class `Dataset`, and the key "tags" has the tags of the dataset.
    MLflow accepts at most 36 characters of a digest, so the dataset has a short digest. The tag `sha256` holds the
    whole digest.
    """
    scheme = used.url.partition("://")[0] if "://" in used.url else "local"
    place = "url" if scheme in ("http", "https") else "uri"  # MLflow's own sources of these types use these keys.
    dataset = {
        "name": masked(used.name),
        "digest": used.short_digest,
        "source_type": "http" if place == "url" else scheme,
        "source": json.dumps({place: masked(used.url)}),
        "profile": json.dumps({"num_rows": used.samples}),
    }
    tags = {MLFLOW_DATASET_CONTEXT: used.purpose, "sha256": used.digest}
    if used.weight is not None:
        tags["weight"] = f"{used.weight:g}"
    return {"dataset": dataset, "tags": tags}


def newest_tracked_attempt(settings: TrackingConfig, run_id: str) -> int:
    """Returns the number of the newest attempt that has written to an MLflow run; 0 if MLflow cannot be read.

    A run that resumes must start even if MLflow is unreachable, so no error is raised here.
    """
    try:
        return int(_client(settings).get_run(run_id).data.tags.get(ATTEMPT_TAG, 0))
    except (*FAILURES, TrackingError):
        return 0


def probe(settings: TrackingConfig) -> None:
    """Checks that MLflow can be written: creates a run, writes a metric and a text into it, and deletes the run.

    The run belongs to the experiment of the settings, or to `PROBE_EXPERIMENT` if that experiment does not exist yet.
    MLflow keeps a deleted run in its trash until `mlflow gc`.

    Raises:
        TrackingError: If MLflow is unreachable, or refuses one of the writes.
    """
    try:
        client = _client(settings)
        found = client.get_experiment_by_name(settings.experiment) or client.get_experiment_by_name(PROBE_EXPERIMENT)
        number = (
            found.experiment_id
            if found
            else client.create_experiment(PROBE_EXPERIMENT, artifact_location=settings.artifacts)
        )
        run_id = client.create_run(number, run_name="emocap doctor").info.run_id
        try:
            client.log_metric(run_id, "probe", 1.0)
            client.log_text(run_id, "written by emocap doctor", "doctor.txt")
        finally:
            client.delete_run(run_id)
    except FAILURES as error:
        raise _refusal(settings, error) from None


def _create(client: MlflowClient, tracked: TrackedRun, parent: str, warm_start: Parent | None) -> Run:
    commit = environment.git_commit()
    if warm_start and not parent and _has_run(client, warm_start.run_id):
        parent = warm_start.run_id
    tags = {"mlflow.source.name": "emocap_pretrain", "mlflow.source.type": "JOB"}
    tags |= {"mlflow.source.git.commit": commit} if commit else {}
    tags |= {name: masked(value) for name, value in tracked.settings.tags.items()}
    tags |= {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
    tags |= {name: masked(value) for name, value in warm_start.tags().items()} if warm_start else {}
    run = client.create_run(_experiment(client, tracked), run_name=tracked.name, tags=tags)
    facts = environment.versions() | environment.machine()
    values = leaves(tracked.params) | {f"environment.{name}": value for name, value in facts.items()}
    params = [Param(key, masked(str(value))[:MAX_PARAM_CHARS]) for key, value in values.items()]
    client.log_batch(run.info.run_id, params=params)
    return run


def _has_run(client: MlflowClient, run_id: str) -> bool:
    """Returns whether the server has this run. The id comes from a checkpoint, so it may be any text."""
    try:
        return bool(run_id) and client.get_run(run_id).info.run_id == run_id
    except MlflowException as error:
        if error.get_http_status_code() in (NOT_FOUND, BAD_REQUEST):
            return False
        raise


def _refusal(settings: TrackingConfig, error: Exception) -> TrackingError:
    """Returns an error that says why MLflow cannot be used.

    Callers raise it `from None`, so that Python does not print `error`: errors of MLflow contain the URL with its
    password.
    """
    why = reason(error)
    cure = ": make room there, or set another tracking.uri" if any(each in why for each in NO_ROOM) else ""
    if "_alembic_tmp" in why:
        cure = ": the database is incomplete, as after a full disk; delete the file if it has no run yet"
    return TrackingError(f"tracking.uri={masked(settings.uri)}: MLflow refuses the run: {why}{cure}")


def _experiment(client: MlflowClient, tracked: TrackedRun) -> str:
    name = tracked.settings.experiment
    found = client.get_experiment_by_name(name)
    view = {pages.VIEW_TAG: pages.saved_view(tracked.charts)}
    if found is None:
        # This kind shows the pages for training; without it MLflow guesses the kind.
        tags = {"mlflow.experimentKind": "custom_model_development", **view}
        return client.create_experiment(name, artifact_location=tracked.settings.artifacts, tags=tags)
    if not view.items() <= found.tags.items():
        client.set_experiment_tag(found.experiment_id, *view.popitem())
    return str(found.experiment_id)


def _client(settings: TrackingConfig) -> MlflowClient:
    uri = settings.uri
    # These loggers report the migrations of a new database, and each repeated request of an outage. That of the
    # database also prints the traceback of each error of SQLAlchemy before MLflow raises the error.
    levels = {"alembic": logging.ERROR, "mlflow.store.db": logging.CRITICAL, "urllib3.connectionpool": logging.ERROR}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        with _alone(uri):
            return MlflowClient(uri)
    except ImportError as error:  # The driver of the database is not installed.
        raise _refusal(settings, error) from None


@contextmanager
def _alone(uri: str) -> Generator[None]:
    """Lets one process at a time open an SQLite file in a folder, which is created if it is missing.

    MLflow makes the tables of a new file. If two runs begin at once, it fails in one of them, because a table exists.
    """
    if not uri.startswith("sqlite:///"):
        yield
        return
    folder = Path(uri.removeprefix("sqlite:///")).parent
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # Some network file systems have no locks.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # This also releases the lock.
