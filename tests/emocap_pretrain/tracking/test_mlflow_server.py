"""Tests the tracker with a real MLflow server that is killed while rows arrive, during a run, and before its end."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer
from pretrain_fakes import changed

from emocap_pretrain.config.schema import Config
from emocap_pretrain.tracking.hosts import HostMetrics, by_host
from emocap_pretrain.tracking.mlflow_tracker import MlflowTracker
from emocap_pretrain.training.build import tracked_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("mlflow-server")) as server:
        yield server


@pytest.fixture
def server(running: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> MlflowServer:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if not running.answers():
        running.start()
    return running


@pytest.fixture
def config(tiny_config: Config, server: MlflowServer) -> Config:
    return changed(tiny_config, tracking__uri=server.uri, tracking__artifacts=None, tracking__experiment="faces")


def steps(client: MlflowClient, run_id: str, metric: str = "loss") -> list[int]:
    return [point.step for point in client.get_metric_history(run_id, metric)]


def url(step: int) -> str:
    return f"s3://bucket/run/checkpoints/step-{step:08d}/a"


def test_a_server_that_was_killed_while_rows_arrive_has_each_point_once(
    config: Config, client: MlflowClient, server: MlflowServer
) -> None:
    tracker, names = MlflowTracker.start(tracked_run(config), None), [f"m{number}" for number in range(60)]
    for step in range(1, 301):
        tracker.log_metrics(dict.fromkeys(names, float(step)) | {"loss": 1 / step}, step)
        if step == 150:
            while not steps(client, tracker.run_id):
                time.sleep(0.01)
            server.kill()
        time.sleep(0.002)
    assert tracker.unsent()
    server.start()
    assert wait_until_sent(tracker)
    tracker.finish("FINISHED")
    for name in ("loss", *names):
        assert steps(client, tracker.run_id, name) == list(range(1, 301))
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_rows_of_a_lost_attempt_are_sent_from_its_checkpoint_without_gaps_or_duplicates(
    config: Config, client: MlflowClient, server: MlflowServer
) -> None:
    lost = MlflowTracker.start(tracked_run(config), None, number=1, facts={"ranks": 2})
    for step in range(1, 21):
        lost.log_metrics({"loss": 1 / step}, step)
    assert lost.flush(30)
    server.kill()
    for step in range(21, 31):
        lost.log_metrics({"loss": 1 / step}, step)
    lost.log_checkpoint(url(20), 20, "abc")
    assert not lost.flush(5)  # It returns, although the server is gone.
    checkpointed = json.dumps(lost.unsent())
    for step in range(31, 36):
        lost.log_metrics({"loss": 1 / step}, step)
    # The host is lost with the rows in its spool. The server is still down, so the end of the tracker sends nothing.
    # Without it the tracker's thread could send its rows to the server that has returned.
    lost.finish("FAILED")
    again = MlflowTracker.start(
        tracked_run(config), lost.run_id, number=2, facts={"ranks": 1}, unsent=json.loads(checkpointed)
    )
    for step in range(31, 41):
        again.log_metrics({"loss": 1 / step}, step)
    assert not again.flush(5)
    server.start()
    assert wait_until_sent(again)
    assert client.get_run(lost.run_id).info.status == "RUNNING"
    assert steps(client, lost.run_id) == list(range(1, 41))
    again.log_checkpoint(url(40), 40, "def")
    again.log_scores({"checkpoint/loss": 1 / 40}, 40)
    again.delete_checkpoints([20])
    again.finish("FINISHED")
    run = client.get_run(lost.run_id)
    assert (run.info.status, run.data.tags["emocap.starts"]) == ("FINISHED", "2")
    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id='{lost.run_id}'")
    assert (model.name, model.tags["checkpoint.url"]) == ("step-00000040", url(40))
    assert [(each.key, each.step) for each in model.metrics or []] == [("checkpoint/loss", 40)]
    lost.finish("FAILED")  # The host continues, but another attempt has taken over the run.
    assert client.get_run(lost.run_id).info.status == "FINISHED"
    assert steps(client, lost.run_id) == list(range(1, 41))


def test_rows_that_a_server_missed_at_the_end_are_sent_by_the_next_attempt(
    config: Config, client: MlflowClient, server: MlflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("emocap_pretrain.tracking.mlflow_tracker.FINISH_S", 3.0)
    picture = tmp_path / "confusion.png"
    picture.write_bytes(b"pixels")
    first = MlflowTracker.start(tracked_run(config), None)
    for step in (1, 2):
        first.log_metrics({"loss": 1 / step} | by_host([("node-a", HostMetrics().read())]), step)
    first.flush(30)
    server.kill()
    first.log_scores({"zero_shot/uar": 0.5}, 2)
    first.log_text("report.json", "{}")
    first.log_picture("pictures/confusion.png", picture)
    first.finish("FINISHED")  # It returns, although the server is gone.
    left = json.loads(json.dumps(first.unsent()))
    server.start()
    assert client.get_run(first.run_id).info.status == "RUNNING"
    second = MlflowTracker.start(tracked_run(config), first.run_id, number=2, unsent=left)
    second.log_scores({"zero_shot/uar": 0.5}, 2)
    monkeypatch.setattr("emocap_pretrain.tracking.mlflow_tracker.FINISH_S", 60.0)
    second.finish("FINISHED")
    assert steps(client, first.run_id, "zero_shot/uar") == [2]
    assert steps(client, first.run_id, "system/node-a/cpu_utilization_percentage") == [1, 2]
    assert client.get_run(first.run_id).info.status == "FINISHED"
    assert {each.path for each in client.list_artifacts(first.run_id)} == {"report.json", "pictures"}


def wait_until_sent(tracker: MlflowTracker) -> bool:
    """Flushes until all rows have arrived, and returns whether they have.

    One flush is not enough, because it does not wait after the server was unreachable.
    """
    while not tracker.flush(5):  # pytest ends a test that hangs.
        time.sleep(0.1)
    return not tracker.unsent()
