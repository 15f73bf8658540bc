from pathlib import Path

import pytest
from emocap_shards.store import open_store
from mlflow.tracking import MlflowClient
from pretrain_fakes import changed

from emocap_pretrain.config.schema import Config
from emocap_pretrain.run_folder import unsent
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.tracking.mlflow_tracker import MlflowTracker, deliver_unsent
from emocap_pretrain.tracking.spool import row
from emocap_pretrain.training.build import tracked_run

ROWS = [row("metrics", 4, {"zero_shot/uar": 0.5}), row("status", 0, {"status": "FINISHED"})]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("emocap_pretrain.tracking.mlflow_tracker.FINISH_S", 5.0)


def test_rows_are_kept_in_the_folder_of_the_run_until_all_are_sent(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert unsent.read(store) == []
    unsent.write_or_warn(store, ROWS, number=1)
    assert unsent.read(store) == ROWS
    unsent.write_or_warn(store, ROWS[:1], number=1)
    assert unsent.read(store) == ROWS[:1]
    unsent.write_or_warn(store, [], number=1)
    unsent.write_or_warn(store, [], number=1)
    assert list(tmp_path.iterdir()) == []


def test_a_superseded_attempt_does_not_change_the_rows_of_the_newer_one(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    old, new = Attempt.begin(store), Attempt.begin(store)
    unsent.write_or_warn(store, ROWS, number=new.number)
    unsent.write_or_warn(store, [], number=old.number)
    assert unsent.read(store) == ROWS
    unsent.write_or_warn(store, [], number=new.number)
    assert unsent.read(store) == []


def test_a_store_that_refuses_rows_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / unsent.UNSENT_FILE).mkdir()
    unsent.write_or_warn(open_store(str(tmp_path)), ROWS, number=1)
    assert "2 rows for the tracker could not be kept" in caplog.text


def test_a_finished_run_sends_the_rows_that_an_outage_delayed(config: Config, client: MlflowClient) -> None:
    store = open_store(config.url)
    tracker = MlflowTracker.start(tracked_run(config), None)
    tracker.finish("FINISHED")
    unsent.write_or_warn(store, ROWS, number=1)
    assert deliver_unsent(store, tracked_run(config), tracker.run_id, number=1)
    assert unsent.read(store) == []
    run = client.get_run(tracker.run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"zero_shot/uar": 0.5})


def test_rows_that_still_cannot_be_sent_are_kept_again(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emocap_pretrain.tracking.mlflow_tracker.FINISH_S", 0.1)
    unreachable, store = changed(config, tracking__uri="http://127.0.0.1:9"), open_store(config.url)
    unsent.write_or_warn(store, ROWS, number=1)
    assert not deliver_unsent(store, tracked_run(unreachable), "0123456789abcdef0123456789abcdef", number=1)
    assert unsent.read(store)[:2] == ROWS


def test_a_run_without_unsent_rows_does_not_connect_to_the_server(config: Config) -> None:
    unreachable = changed(config, tracking__uri="http://127.0.0.1:9")
    assert deliver_unsent(open_store(config.url), tracked_run(unreachable), "unknown", number=1)
