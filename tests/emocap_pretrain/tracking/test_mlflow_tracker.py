import fcntl
import json
import logging
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import LoggedModel, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pretrain_fakes import changed

from emocap_pretrain.config.load import load
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.datasets import DatasetUse, training_data
from emocap_pretrain.errors import TrackingError
from emocap_pretrain.evaluation import tasks
from emocap_pretrain.run_folder.parent import Parent
from emocap_pretrain.tracking import mlflow_run, pages
from emocap_pretrain.tracking.environment import versions
from emocap_pretrain.tracking.mlflow_run import mlflow_dataset
from emocap_pretrain.tracking.mlflow_tracker import MlflowTracker
from emocap_pretrain.training.build import tracked_run


@pytest.fixture(autouse=True)
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("emocap_pretrain.tracking.spool.FIRST_PAUSE_S", 0.05)


def points(client: MlflowClient, run_id: str, metric: str = "loss") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, metric)]


def test_a_new_run_has_its_name_experiment_settings_and_environment(config: Config, client: MlflowClient) -> None:
    tracker = MlflowTracker.start(tracked_run(config), None)
    tracker.set_description("| | tiny |")
    tracker.finish("FINISHED")
    run = client.get_run(tracker.run_id)
    assert run.info.run_name == "tiny"
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.name == "faces"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert run.data.tags["mlflow.note.content"] == "| | tiny |"
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.001"
    assert run.data.params["objective.global"] == "0.5"
    assert run.data.params["environment.torch"] == versions()["torch"]
    assert "environment.host" in run.data.params
    assert len(run.data.tags["mlflow.source.git.commit"].removesuffix("-dirty")) == 40


def test_an_experiment_has_the_saved_view_also_where_it_is_older(config: Config, client: MlflowClient) -> None:
    older = client.create_experiment("older")
    for name in ("faces", "older"):
        named = changed(config, tracking__experiment=name)
        tracker = MlflowTracker.start(tracked_run(named), None)
        tracker.finish("FINISHED")
        assert client.get_experiment(tracker.experiment_id).tags[pages.VIEW_TAG] == pages.saved_view(tasks.charts())
    assert tracker.experiment_id == older


def test_datasets_are_inputs_of_the_run_and_count_once(config: Config, client: MlflowClient) -> None:
    digest = "0123456789abcdef" * 4
    training = DatasetUse("s3://bucket/faces/train", digest, 1800, "training", 0.25)
    evaluation = DatasetUse("https://host/faces/test", digest[::-1], 200, "evaluation")
    tracker = MlflowTracker.start(tracked_run(config), None)
    tracker.log_datasets([training])
    tracker.log_datasets([training, evaluation])
    tracker.finish("FINISHED")
    first, second = sorted(client.get_run(tracker.run_id).inputs.dataset_inputs, key=lambda each: each.dataset.name)[
        ::-1
    ]
    assert (first.dataset.name, first.dataset.digest) == ("faces/train", "0123456789abcdef")
    assert (first.dataset.source_type, json.loads(first.dataset.source)) == ("s3", {"uri": "s3://bucket/faces/train"})
    assert json.loads(first.dataset.profile) == {"num_rows": 1800}
    tags = {tag.key: tag.value for tag in first.tags}
    assert tags == {"mlflow.data.context": "training", "sha256": digest, "weight": "0.25"}
    assert (second.dataset.source_type, json.loads(second.dataset.source)) == (
        "http",
        {"url": "https://host/faces/test"},
    )
    assert {tag.key: tag.value for tag in second.tags}["mlflow.data.context"] == "evaluation"


def test_a_dataset_is_logged_without_secrets(tmp_path: Path, faces: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACES_OF_ONE", faces)
    path = tmp_path / "c.yaml"
    path.write_text("name: n\nurl: r\nsteps: 1\nglobal_batch: 2\ndata: {url: '${oc.env:FACES_OF_ONE}'}\n")
    config = load(path)
    (used,) = training_data(config.data, config.stored()["data"])
    assert used.url == "${oc.env:FACES_OF_ONE}"
    assert used.samples > 0
    assert faces not in json.dumps(mlflow_dataset(used))


def test_metrics_arrive_with_their_steps(config: Config, client: MlflowClient) -> None:
    tracker = MlflowTracker.start(tracked_run(config), None)
    for step in (1, 2, 3):
        tracker.log_metrics({"loss": 1 / step, "scale": 14.0}, step)
    tracker.finish("FINISHED")
    assert points(client, tracker.run_id) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert points(client, tracker.run_id, "scale") == [(1, 14.0), (2, 14.0), (3, 14.0)]


def test_more_metrics_than_mlflow_takes_in_a_call_arrive(config: Config, client: MlflowClient) -> None:
    tracker = MlflowTracker.start(tracked_run(config), None)
    for step in range(1, 61):
        tracker.log_metrics({f"m{number}": 1.0 for number in range(20)} | {"loss": 1.0}, step)
    tracker.finish("FINISHED")
    assert len(points(client, tracker.run_id)) == 60
    assert len(points(client, tracker.run_id, "m19")) == 60


def test_a_resumed_run_keeps_its_id_and_has_each_point_once(config: Config, client: MlflowClient) -> None:
    first = MlflowTracker.start(tracked_run(config), None)
    for step in (1, 2, 3, 4, 5):
        first.log_metrics({"loss": float(step)}, step)
    first.finish("KILLED")
    second = MlflowTracker.start(tracked_run(config), first.run_id)
    assert second.run_id == first.run_id
    assert second.flush(20)
    assert client.get_run(first.run_id).info.status == "RUNNING"
    for step in (3, 4, 5, 6):
        second.log_metrics({"loss": -1.0}, step)
    second.finish("FINISHED")
    assert points(client, first.run_id) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.0), (6, -1.0)]


def test_one_process_at_a_time_makes_the_tables_of_a_new_database(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs that begin at once would both make the tables, and MLflow fails in the one that comes second."""
    folder, held = tmp_path / "new", list[bool]()
    made = mlflow_run.MlflowClient

    def opened(uri: str) -> MlflowClient:
        other = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.append(True)
        finally:
            os.close(other)
        return made(uri)

    monkeypatch.setattr(mlflow_run, "MlflowClient", opened)
    MlflowTracker.start(tracked_run(changed(config, tracking__uri=f"sqlite:///{folder}/x.db")), None).finish("FINISHED")
    assert held
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # It is released, and no file is left.
    os.close(lock)
    assert [path.name for path in folder.iterdir()] == ["x.db"]


def test_two_new_runs_are_in_one_experiment(config: Config, client: MlflowClient) -> None:
    runs = [MlflowTracker.start(tracked_run(config), None) for _ in range(2)]
    for run in runs:
        run.finish("FINISHED")
    assert runs[0].run_id != runs[1].run_id
    assert len({client.get_run(run.run_id).info.experiment_id for run in runs}) == 1


def test_pictures_and_texts_are_in_the_run_and_not_in_the_working_folder(
    config: Config, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "samples.png"
    picture.write_bytes(b"pixels")
    before = sorted(tmp_path.iterdir())
    tracker = MlflowTracker.start(tracked_run(config), None)
    tracker.log_picture("pictures/samples.png", picture)
    tracker.log_text("report.json", "{}")
    tracker.log_checkpoint("s3://bucket/run/checkpoints/step-00000004/a", 4, "abc")
    tracker.finish("FINISHED")
    names = {each.path for each in client.list_artifacts(tracker.run_id)}
    assert {"pictures", "report.json"} <= names
    local = client.download_artifacts(tracker.run_id, "pictures/samples.png", str(tmp_path))
    assert Path(local).read_bytes() == b"pixels"
    assert {path.name for path in tmp_path.iterdir()} <= {path.name for path in before} | {"pictures"}


def models(client: MlflowClient, run_id: str) -> dict[str, LoggedModel]:
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id='{run_id}'")
    assert len({each.name for each in found}) == len(found)
    return {each.name: each for each in found}


def url(step: int, attempt: str = "a") -> str:
    return f"s3://bucket/run/checkpoints/step-{step:08d}/{attempt}"


def test_a_checkpoint_is_an_external_model_of_the_run_with_the_url_in_the_store(
    config: Config, client: MlflowClient
) -> None:
    tracker = MlflowTracker.start(tracked_run(config), None)
    tracker.log_checkpoint(url(4), 4, "abc")
    tracker.finish("FINISHED")
    run = client.get_run(tracker.run_id)
    model = models(client, tracker.run_id)["step-00000004"]
    assert model.status == LoggedModelStatus.READY
    assert [(each.model_id, each.step) for each in run.outputs.model_outputs] == [(model.model_id, 4)]
    assert model.tags["checkpoint.url"] == url(4)
    assert model.tags["checkpoint.manifest_sha256"] == "abc"
    assert model.tags["mlflow.model.isExternal"] == "true"
    assert run.data.tags["checkpoint.url"] == url(4)


def test_a_checkpoint_that_is_logged_again_is_listed_once_with_its_newest_url(
    config: Config, client: MlflowClient
) -> None:
    first = MlflowTracker.start(tracked_run(config), None)
    first.log_checkpoint(url(4), 4, "abc")
    first.finish("KILLED")
    second = MlflowTracker.start(tracked_run(config), first.run_id, number=2)
    second.log_checkpoint(url(4), 4, "abc")
    second.log_checkpoint(url(4, "b"), 4, "def")
    second.finish("FINISHED")
    model = models(client, first.run_id)["step-00000004"]
    assert (model.tags["checkpoint.url"], model.tags["checkpoint.manifest_sha256"]) == (url(4, "b"), "def")
    assert len(client.get_run(first.run_id).outputs.model_outputs) == 1


@pytest.mark.parametrize("call", ["finalize_logged_model", "log_outputs", "set_tag"])
def test_a_checkpoint_that_was_logged_in_part_is_completed(
    config: Config, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    breaks_once(monkeypatch, call)
    tracker = MlflowTracker.start(tracked_run(config), None)
    tracker.log_checkpoint(url(4), 4, "abc")
    tracker.finish("FINISHED")
    run = client.get_run(tracker.run_id)
    model = models(client, tracker.run_id)["step-00000004"]
    assert model.status == LoggedModelStatus.READY
    assert [each.model_id for each in run.outputs.model_outputs] == [model.model_id]
    assert run.data.tags["checkpoint.url"] == url(4)


def test_deleted_checkpoints_are_not_listed(config: Config, client: MlflowClient) -> None:
    tracker = MlflowTracker.start(tracked_run(config), None)
    for step in (2, 4, 6):
        tracker.log_checkpoint(url(step), step, "abc")
    tracker.delete_checkpoints([2, 4])
    tracker.delete_checkpoints([4, 99])
    tracker.delete_checkpoints([])
    tracker.finish("FINISHED")
    assert list(models(client, tracker.run_id)) == ["step-00000006"]


def test_checkpoints_that_a_lost_attempt_did_not_delete_are_deleted(config: Config, client: MlflowClient) -> None:
    other = MlflowTracker.start(tracked_run(config), None)
    other.log_checkpoint(url(2), 2, "abc")
    other.finish("FINISHED")
    tracker = MlflowTracker.start(tracked_run(config), None)
    for step in (2, 4, 6):
        tracker.log_checkpoint(url(step), step, "abc")
    tracker.keep_checkpoints([6, 8])
    tracker.finish("FINISHED")
    assert list(models(client, tracker.run_id)) == ["step-00000006"]
    assert list(models(client, other.run_id)) == ["step-00000002"]


def test_scores_are_recorded_once_in_the_run_and_in_the_checkpoint_of_their_step(
    config: Config, client: MlflowClient
) -> None:
    first = MlflowTracker.start(tracked_run(config), None)
    first.log_metrics({"loss": 2.5}, 4)
    first.log_checkpoint(url(4), 4, "abc")
    first.log_scores({"zero_shot/uar": 0.25}, 4)
    first.finish("KILLED")
    second = MlflowTracker.start(tracked_run(config), first.run_id, number=2)
    second.log_scores({"zero_shot/uar": 0.75, "zero_shot/war": 0.5}, 4)
    second.finish("FINISHED")
    assert points(client, first.run_id, "zero_shot/uar") == [(4, 0.25)]
    assert points(client, first.run_id, "zero_shot/war") == [(4, 0.5)]
    scores = models(client, first.run_id)["step-00000004"].metrics
    assert {(each.key, each.value, each.step) for each in scores or []} == {
        ("zero_shot/uar", 0.25, 4),
        ("zero_shot/war", 0.5, 4),
    }


def test_scores_without_a_listed_checkpoint_are_recorded_in_the_run(config: Config, client: MlflowClient) -> None:
    tracker = MlflowTracker.start(tracked_run(config), None)
    tracker.log_scores({"zero_shot/uar": 0.25}, 4)
    tracker.finish("FINISHED")
    assert points(client, tracker.run_id, "zero_shot/uar") == [(4, 0.25)]


def test_a_value_from_the_environment_is_tracked_as_the_text_in_the_file(
    config: Config, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_URL", "s3://hidden/place")
    file = tmp_path / "cfg.yaml"
    file.write_text(f"name: a\nurl: ${{oc.env:SECRET_URL}}\nsteps: 1\nglobal_batch: 4\ndata: {{url: {tmp_path}}}\n")
    loaded = load(file, [f"tracking.uri={config.tracking.uri}", "tracking.experiment=faces"])
    assert loaded.url == "s3://hidden/place"
    tracker = MlflowTracker.start(tracked_run(loaded), None)
    tracker.finish("FINISHED")
    params = client.get_run(tracker.run_id).data.params
    assert params["url"] == "${oc.env:SECRET_URL}"
    assert "hidden" not in str(params)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/no/mlflow.db"])
def test_a_server_that_is_unreachable_at_the_start_is_an_error_of_one_line_with_its_url(
    config: Config, uri: str
) -> None:
    # MLflow itself would try for 8 minutes, and pytest ends a test that hangs after 5.
    with pytest.raises(TrackingError) as caught:
        MlflowTracker.start(tracked_run(changed(config, tracking__uri=uri)), None)
    assert uri in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_that_mlflow_does_not_know_is_a_tracking_error(config: Config) -> None:
    with pytest.raises(TrackingError, match="0123456789abcdef"):
        MlflowTracker.start(tracked_run(config), "0123456789abcdef0123456789abcdef")


def breaks_once(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Makes the first call of this method of MLflow's client fail."""
    broken, original = list[str](), getattr(MlflowClient, call)

    def breaking(*arguments: Any, **named: Any) -> Any:
        if not broken:
            broken.append(call)
            raise ConnectionError("the server is gone")
        return original(*arguments, **named)

    monkeypatch.setattr(MlflowClient, call, breaking)


def test_the_run_is_not_read_again_for_each_row(
    config: Config, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = MlflowTracker.start(tracked_run(config), None)
    assert tracker.flush(20)
    read, original = list[str](), MlflowClient.get_run

    def counting(self: MlflowClient, run_id: str) -> Any:
        read.append(run_id)
        return original(self, run_id)

    monkeypatch.setattr(MlflowClient, "get_run", counting)
    monkeypatch.setattr("emocap_pretrain.tracking.mlflow_run.REFRESH_S", 60.0)
    for step in (1, 2, 2, 1, 3, 3):
        tracker.log_metrics({"loss": float(step)}, step)
        assert tracker.flush(20)
    assert len(read) == 1
    tracker.finish("FINISHED")
    assert points(client, tracker.run_id) == [(1, 1.0), (2, 2.0), (3, 3.0)]


@contextmanager
def outage(*calls: str) -> Generator[None]:
    """Makes these methods of MLflow's client fail, as during an outage of its server."""

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("the server is down")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emocap_pretrain.tracking.mlflow_tracker.FINISH_S", 0.1)
        for call in calls or ("get_run", "log_batch"):
            patch.setattr(MlflowClient, call, refuse)
        yield


def test_rows_of_an_outage_are_sent_first_by_the_next_attempt_on_any_host(
    config: Config, client: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = tmp_path / "samples.png"
    picture.write_bytes(b"pixels")
    first = MlflowTracker.start(tracked_run(config), None)
    first.log_metrics({"loss": 1.0}, 1)
    assert first.flush(20)
    with outage():
        first.log_metrics({"loss": 2.0}, 2)
        first.log_checkpoint(url(2), 2, "abc")
        first.log_text("report.json", "{}")
        first.log_picture("pictures/samples.png", picture)
        assert not first.flush(5)
        checkpointed = json.loads(json.dumps(first.unsent()))
        first.log_metrics({"loss": 3.0}, 3)  # The replay of this step logs it again.
        first.finish("KILLED")
    assert "the server is down" in caplog.text
    assert "the next start of this run sends them" in caplog.text
    second = MlflowTracker.start(tracked_run(config), first.run_id, number=2, unsent=checkpointed)
    second.log_metrics({"loss": 3.5}, 3)
    second.finish("FINISHED")
    assert points(client, first.run_id) == [(1, 1.0), (2, 2.0), (3, 3.5)]
    assert list(models(client, first.run_id)) == ["step-00000002"]
    names = {each.path for each in client.list_artifacts(first.run_id)}
    assert {"report.json", "pictures"} <= names
    assert second.unsent() == []


def test_unsent_rows_that_have_arrived_are_not_sent_twice(config: Config, client: MlflowClient) -> None:
    first = MlflowTracker.start(tracked_run(config), None)
    with outage():
        first.log_metrics({"loss": 1.0, "scale": 14.0}, 1)
        first.log_metrics({"loss": 2.0}, 2)
        checkpointed = first.unsent()
    first.log_metrics({"loss": 3.0}, 3)
    first.finish("KILLED")
    second = MlflowTracker.start(tracked_run(config), first.run_id, number=2, unsent=checkpointed)
    second.log_metrics({"loss": 9.0, "scale": 15.0}, 3)
    second.finish("FINISHED")
    assert points(client, first.run_id) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert points(client, first.run_id, "scale") == [(1, 14.0), (3, 15.0)]


def test_a_row_that_arrived_in_part_is_completed(
    config: Config, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emocap_pretrain.tracking.mlflow_run.METRICS_PER_CALL", 2)
    names = ["a", "b", "c", "d", "e"]
    tracker = MlflowTracker.start(tracked_run(config), None)
    assert tracker.flush(20)
    original, calls = MlflowClient.log_batch, list[int]()

    def dies_at_the_second_call(self: MlflowClient, *arguments: Any, **named: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise ConnectionError("the server is gone")
        original(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", dies_at_the_second_call)
    tracker.log_metrics(dict.fromkeys(names, 1.0), 7)
    tracker.finish("FINISHED")
    assert len(calls) > 3
    assert all(points(client, tracker.run_id, name) == [(7, 1.0)] for name in names)


def test_a_row_whose_response_was_lost_is_not_sent_twice(
    config: Config, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = MlflowTracker.start(tracked_run(config), None)
    tracker.log_metrics({"loss": 0.5}, 0)
    assert tracker.flush(20)
    original, sent = MlflowClient.log_batch, list[int]()

    def answers_late(self: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
        original(self, run_id, metrics)
        sent.extend(point.step for point in metrics)
        if len(sent) == len(metrics):
            raise TimeoutError("no answer")

    monkeypatch.setattr(MlflowClient, "log_batch", answers_late)
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.log_metrics({"loss": 2.0}, 2)
    tracker.finish("FINISHED")
    # MLflow on SQL itself leaves out an equal point; other servers do not.
    assert sent == [1, 2]
    assert points(client, tracker.run_id) == [(0, 0.5), (1, 1.0), (2, 2.0)]


def test_a_value_that_mlflow_refuses_is_logged_and_delays_no_other_row(
    config: Config, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = MlflowTracker.start(tracked_run(config), None)
    with outage():
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.log_metrics({"no?name": 1.0}, 2)
        tracker.log_metrics({"loss": 3.0}, 3)
    tracker.finish("FINISHED")
    assert points(client, tracker.run_id) == [(1, 1.0), (3, 3.0)]
    assert "MLflow refuses metrics of step 2" in caplog.text
    assert tracker.unsent() == []


def test_metrics_arrive_although_artifacts_cannot_be_stored(config: Config, client: MlflowClient) -> None:
    with outage("log_text"):
        tracker = MlflowTracker.start(tracked_run(config), None)
        tracker.log_text("report.json", "{}")
        tracker.log_metrics({"loss": 1.0}, 1)
        assert not tracker.flush(20)
        assert points(client, tracker.run_id) == [(1, 1.0)]
        assert [each["kind"] for each in tracker.unsent()] == ["text"]
        tracker.finish("FINISHED")


def test_each_attempt_records_its_number_status_and_facts(config: Config, client: MlflowClient, tmp_path: Path) -> None:
    first = MlflowTracker.start(tracked_run(config), None, number=1, facts={"ranks": 8, "hosts": ["a", "b"]})
    first.flush(20)
    assert client.get_run(first.run_id).info.status == "RUNNING"
    first.finish("FAILED")
    ended = client.get_run(first.run_id)
    assert (ended.info.status, ended.data.tags["emocap.starts"]) == ("FAILED", "1")
    second = MlflowTracker.start(
        tracked_run(config), first.run_id, number=4, facts={"ranks": 4, "hosts": ["a"], "after": "b is gone"}
    )
    second.flush(20)
    running = client.get_run(first.run_id)
    assert (running.info.status, running.data.tags["emocap.starts"]) == ("RUNNING", "4")
    second.finish("FINISHED")
    assert client.get_run(first.run_id).info.status == "FINISHED"
    stored = {each.path for each in client.list_artifacts(first.run_id, "starts")}
    assert stored == {"starts/00001.json", "starts/00004.json"}
    text = client.download_artifacts(first.run_id, "starts/00004.json", str(tmp_path))
    assert json.loads(Path(text).read_text()) == {"number": 4, "ranks": 4, "hosts": ["a"], "after": "b is gone"}


def test_an_attempt_starts_during_an_outage_and_is_recorded_after_it(config: Config, client: MlflowClient) -> None:
    first = MlflowTracker.start(tracked_run(config), None)
    first.finish("KILLED")

    def away(*_: object) -> None:
        raise MlflowException("API request to http://anna:sesame@tracker failed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlflowClient, "get_run", away)
        second = MlflowTracker.start(tracked_run(config), first.run_id, number=2)
        second.log_metrics({"loss": 1.0}, 1)
        assert not second.flush(5)
    assert client.get_run(first.run_id).info.status == "KILLED"
    second.finish("FINISHED")
    run = client.get_run(first.run_id)
    assert (run.info.status, run.data.tags["emocap.starts"]) == ("FINISHED", "2")
    assert points(client, first.run_id) == [(1, 1.0)]


def test_a_superseded_attempt_writes_nothing(
    config: Config, client: MlflowClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    zombie = MlflowTracker.start(tracked_run(config), None)
    zombie.flush(20)
    owner = MlflowTracker.start(tracked_run(config), zombie.run_id, number=2)
    owner.flush(20)
    monkeypatch.setattr("emocap_pretrain.tracking.mlflow_run.REFRESH_S", 0.0)  # The attempt was frozen for long.
    zombie.log_metrics({"loss": -1.0}, 5)
    zombie.finish("FAILED")
    owner.log_metrics({"loss": 5.0}, 5)
    owner.flush(20)
    assert client.get_run(owner.run_id).info.status == "RUNNING"
    owner.finish("FINISHED")
    assert points(client, owner.run_id) == [(5, 5.0)]
    assert "attempt 1 no longer does" in caplog.text


def test_passwords_do_not_appear_in_mlflow_the_log_or_errors(
    config: Config, client: MlflowClient, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    uri = "http://anna:sesame@127.0.0.1:9"
    with pytest.raises(TrackingError) as caught:
        MlflowTracker.start(tracked_run(changed(config, tracking__uri=uri)), None)
    shown = "".join(traceback.format_exception(caught.value))
    assert "http://***@127.0.0.1:9" in shown
    waiting = MlflowTracker.start(
        tracked_run(changed(config, tracking__uri=uri)), "0123456789abcdef0123456789abcdef", number=2
    )
    waiting.log_metrics({"loss": 1.0}, 1)
    waiting.flush(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emocap_pretrain.tracking.mlflow_tracker.FINISH_S", 0.1)
        waiting.finish("KILLED")
    tracker = MlflowTracker.start(tracked_run(changed(config, data__url="s3://anna:sesame@bucket/faces")), None)
    tracker.log_text("report.json", f'{{"tracking_uri": "{uri}"}}')
    tracker.set_description(f"at {uri}")
    tracker.log_checkpoint("s3://anna:sesame@bucket/run", 1, "abc")
    tracker.finish("FINISHED")
    run = client.get_run(tracker.run_id)
    report = Path(client.download_artifacts(tracker.run_id, "report.json", str(tmp_path))).read_text()
    tags = models(client, tracker.run_id)["step-00000001"].tags
    assert run.data.params["data.url"] == "s3://***@bucket/faces"
    assert "sesame" not in f"{shown} {caplog.text} {run.to_dictionary()} {report} {tags}"


def test_the_migrations_of_mlflow_log_nothing(config: Config) -> None:
    MlflowTracker.start(tracked_run(config), None).finish("FINISHED")
    assert logging.getLogger("alembic").level == logging.ERROR


def test_a_new_result_replaces_the_older_one_and_an_equal_one_counts_once(config: Config, client: MlflowClient) -> None:
    first = MlflowTracker.start(tracked_run(config), None)
    first.replace_scores({"zero_shot/uar": 0.25}, 4)
    first.replace_scores({"zero_shot/uar": 0.25}, 4)
    first.finish("FINISHED")
    assert points(client, first.run_id, "zero_shot/uar") == [(4, 0.25)]
    second = MlflowTracker.start(tracked_run(config), first.run_id, number=2)
    second.replace_scores({"zero_shot/uar": 0.75}, 4)
    second.finish("FINISHED")
    assert client.get_run(first.run_id).data.metrics["zero_shot/uar"] == 0.75


def test_each_step_has_a_result_of_its_own_even_if_it_equals_that_of_another_step(
    config: Config, client: MlflowClient
) -> None:
    first = MlflowTracker.start(tracked_run(config), None)
    for _ in range(2):
        first.replace_scores({"zero_shot/uar": 0.25}, 0)
        first.replace_scores({"zero_shot/uar": 0.25}, 4)
    first.finish("FINISHED")
    second = MlflowTracker.start(tracked_run(config), first.run_id, number=2)
    second.replace_scores({"zero_shot/uar": 0.25}, 0)  # As an attempt does that begins again at step 0.
    second.finish("FINISHED")
    assert points(client, first.run_id, "zero_shot/uar") == [(0, 0.25), (4, 0.25)]


@pytest.mark.parametrize("run_id", ["f" * 32, "../no id", ""])
def test_a_warm_start_from_a_run_that_the_server_does_not_have_is_recorded_in_tags_only(
    config: Config, client: MlflowClient, run_id: str
) -> None:
    parent = Parent("s3://anna:sesame@bucket/faces", 1200, run_id, "0123")
    tracker = MlflowTracker.start(tracked_run(config), None, warm_start=parent)
    tracker.finish("FINISHED")
    tags = client.get_run(tracker.run_id).data.tags
    assert "mlflow.parentRunId" not in tags
    assert (tags["parent.url"], tags["parent.step"]) == ("s3://***@bucket/faces", "1200")


FULL = """
import resource, sys
from emocap_pretrain.config.schema import Config
from emocap_pretrain.terminal import errors_as_lines
from emocap_pretrain.tracking.mlflow_tracker import MlflowTracker
from emocap_pretrain.training.build import tracked_run

config = Config.model_validate_json(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
with errors_as_lines(debug=False):
    MlflowTracker.start(tracked_run(config), None)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("limit_bytes", "is_new"), [(0, True), (200_000, True), (0, False), (200_000, False)])
def test_a_full_disk_of_the_tracker_is_one_line_at_the_start(
    tiny_config: Config, tmp_path: Path, limit_bytes: int, is_new: bool
) -> None:
    if is_new:
        (tmp_path / "mlflow.db").unlink()
    command = [sys.executable, "-c", FULL, tiny_config.model_dump_json(), str(limit_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert re.fullmatch(r"error: tracking.uri=sqlite:.*/mlflow.db: MLflow refuses the run: .*make room.*", line)
