import logging
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from pretrain_fakes import changed

from emocap_pretrain.config.load import load
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import TrackingError
from emocap_pretrain.tracking.environment import versions
from emocap_pretrain.tracking.mlflow_tracker import MlflowTracker


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all tests of this file: making one takes seconds."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return tmp_path / "cache" / "emocap" / "spool"


@pytest.fixture
def config(tiny_config: Config, place: Path) -> Config:
    return changed(
        tiny_config,
        tracking__uri=f"sqlite:///{place / 'deep' / 'mlflow.db'}",
        tracking__artifacts=str(place / "artifacts"),
        tracking__experiment="faces",
    )


@pytest.fixture
def client(config: Config) -> MlflowClient:
    return MlflowClient(config.tracking.uri)


def points(client: MlflowClient, run_id: str, metric: str = "loss") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, metric)]


def test_a_new_run_has_its_name_experiment_settings_and_environment(config: Config, client: MlflowClient) -> None:
    tracker = MlflowTracker.start(config, None)
    tracker.describe("| | tiny |")
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


def test_metrics_arrive_with_their_steps(config: Config, client: MlflowClient) -> None:
    tracker = MlflowTracker.start(config, None)
    for step in (1, 2, 3):
        tracker.log({"loss": 1 / step, "scale": 14.0}, step)
    tracker.finish("FINISHED")
    assert points(client, tracker.run_id) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert points(client, tracker.run_id, "scale") == [(1, 14.0), (2, 14.0), (3, 14.0)]


def test_more_metrics_than_mlflow_takes_in_a_call_arrive(config: Config, client: MlflowClient) -> None:
    tracker = MlflowTracker.start(config, None)
    for step in range(1, 61):
        tracker.log({f"m{number}": 1.0 for number in range(20)} | {"loss": 1.0}, step)
    tracker.finish("FINISHED")
    assert len(points(client, tracker.run_id)) == 60
    assert len(points(client, tracker.run_id, "m19")) == 60


def test_a_run_that_goes_on_keeps_its_id_and_doubles_no_point(config: Config, client: MlflowClient) -> None:
    first = MlflowTracker.start(config, None)
    for step in (1, 2, 3, 4, 5):
        first.log({"loss": float(step)}, step)
    first.finish("KILLED")
    second = MlflowTracker.start(config, first.run_id)
    assert second.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "RUNNING"
    for step in (3, 4, 5, 6):
        second.log({"loss": -1.0}, step)
    second.finish("FINISHED")
    assert points(client, first.run_id) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.0), (6, -1.0)]
    assert client.get_run(first.run_id).data.tags["emocap.restarts"] == "1"


def test_starting_twice_puts_two_runs_into_one_experiment(config: Config, client: MlflowClient) -> None:
    runs = [MlflowTracker.start(config, None) for _ in range(2)]
    for run in runs:
        run.finish("FINISHED")
    assert runs[0].run_id != runs[1].run_id
    assert len({client.get_run(run.run_id).info.experiment_id for run in runs}) == 1


def test_pictures_and_texts_lie_in_the_run_and_not_in_the_working_folder(
    config: Config, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "samples.png"
    picture.write_bytes(b"pixels")
    before = sorted(tmp_path.iterdir())
    tracker = MlflowTracker.start(config, None)
    tracker.picture("pictures/samples.png", picture)
    tracker.text("report.json", "{}")
    tracker.checkpoint("s3://bucket/run/checkpoints/step-00000004/a", 4, "abc")
    tracker.finish("FINISHED")
    names = {each.path for each in client.list_artifacts(tracker.run_id)}
    assert {"pictures", "report.json"} <= names
    local = client.download_artifacts(tracker.run_id, "pictures/samples.png", str(tmp_path))
    assert Path(local).read_bytes() == b"pixels"
    assert {path.name for path in tmp_path.iterdir()} <= {path.name for path in before} | {"pictures", "cache"}


def test_a_checkpoint_is_an_external_model_of_the_run_s_experiment(config: Config, client: MlflowClient) -> None:
    tracker = MlflowTracker.start(config, None)
    tracker.checkpoint("s3://bucket/run/checkpoints/step-00000004/a", 4, "abc")
    tracker.finish("FINISHED")
    run = client.get_run(tracker.run_id)
    (model,) = mlflow.search_logged_models(
        [run.info.experiment_id], f"source_run_id='{tracker.run_id}'", output_format="list"
    )
    assert model.name == "step-00000004"
    assert [(each.model_id, each.step) for each in run.outputs.model_outputs] == [(model.model_id, 4)]
    assert model.tags["checkpoint.url"] == "s3://bucket/run/checkpoints/step-00000004/a"
    assert model.tags["checkpoint.manifest_sha256"] == "abc"
    assert run.data.tags["checkpoint.url"] == "s3://bucket/run/checkpoints/step-00000004/a"


def test_a_value_from_the_environment_is_tracked_as_the_text_that_stood_in_the_file(
    config: Config, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_URL", "s3://hidden/place")
    file = tmp_path / "cfg.yaml"
    file.write_text(f"name: a\nurl: ${{oc.env:SECRET_URL}}\nsteps: 1\nglobal_batch: 4\ndata: {{url: {tmp_path}}}\n")
    loaded = load(file, [f"tracking.uri={config.tracking.uri}", "tracking.experiment=faces"])
    assert loaded.url == "s3://hidden/place"
    tracker = MlflowTracker.start(loaded, None)
    tracker.finish("FINISHED")
    params = client.get_run(tracker.run_id).data.params
    assert params["url"] == "${oc.env:SECRET_URL}"
    assert "hidden" not in str(params)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/no/mlflow.db"])
def test_a_tracker_that_cannot_be_reached_at_the_start_is_one_line_that_names_it(config: Config, uri: str) -> None:
    began = time.perf_counter()
    with pytest.raises(TrackingError) as caught:
        MlflowTracker.start(changed(config, tracking__uri=uri), None)
    assert time.perf_counter() - began < 20
    assert uri in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_that_mlflow_does_not_know_is_a_tracking_error(config: Config) -> None:
    with pytest.raises(TrackingError, match="0123456789abcdef"):
        MlflowTracker.start(config, "0123456789abcdef0123456789abcdef")


def test_an_outage_after_the_start_costs_a_warning_and_the_rows_wait_for_the_next_start(
    config: Config, client: MlflowClient, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("the server is down")

    tracker = MlflowTracker.start(config, None)
    tracker.log({"loss": 1.0}, 1)
    with monkeypatch.context() as outage:
        outage.setattr("emocap_pretrain.tracking.mlflow_tracker.FLUSH_S", 0.1)
        outage.setattr(MlflowClient, "log_batch", refuse)
        outage.setattr(MlflowClient, "log_text", refuse)
        tracker.log({"loss": 2.0}, 2)
        tracker.text("report.json", "{}")
        tracker.finish("KILLED")
    assert "the server is down" in caplog.text
    assert len(list(cache.iterdir())) == 1
    again = MlflowTracker.start(config, tracker.run_id)
    again.log({"loss": 3.0}, 3)
    again.finish("FINISHED")
    assert points(client, tracker.run_id) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert list(cache.iterdir()) == []


def test_mlflow_s_migrations_stay_quiet(config: Config) -> None:
    MlflowTracker.start(config, None).finish("FINISHED")
    assert logging.getLogger("alembic").level == logging.WARNING
