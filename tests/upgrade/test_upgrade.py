"""Tests that this version resumes, evaluates, lists and prunes the runs that earlier releases have written."""

import json
import sqlite3
import tarfile
from pathlib import Path

import pytest
from emocap_shards.store import open_store
from pretrain_fakes import FakeRuntime
from typer.testing import CliRunner, Result

from emocap_pretrain.checkpoint.manifest import committed
from emocap_pretrain.checkpoint.state import state_of
from emocap_pretrain.cli.app import app
from emocap_pretrain.config.load import load
from emocap_pretrain.config.schema import Config
from emocap_pretrain.run_folder import attempts, unsent
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.training.loop import pretrain

HERE = Path(__file__).parent
# Where the runs lay when they were made: `make_runs.py` says so, and their files remember it.
PLACE = "/tmp/emocap-upgrade"
RELEASES = sorted(path.name.removesuffix(".tar.xz") for path in HERE.glob("*.tar.xz"))
KINDS = ("alone", "zero2", "interrupted", "finished", "quarantine")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=RELEASES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacks the runs of a release and its MLflow database into a new folder, and returns the folder."""
    folder = tmp_path_factory.mktemp("upgrade")
    with tarfile.open(HERE / f"{request.param}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    place = folder / request.param
    with sqlite3.connect(place / "mlflow.db") as database:
        for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, '{PLACE}', '{place}')")
    return place


def config_of(place: Path, kind: str, steps: int) -> Config:
    faces = "faces-damaged" if kind == "quarantine" else "faces"
    moved = {
        "url": place / kind,
        "data.url": place / faces,
        "tracking.uri": f"sqlite:///{place}/mlflow.db",
        "tracking.artifacts": place / "artifacts",
        "steps": steps,
        "evaluation.url": "null",
    }
    return load(place / f"{kind}.yaml", [f"{key}={value}" for key, value in moved.items()])


def emocap(*words: str) -> Result:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_an_earlier_release_is_resumed_evaluated_listed_and_pruned(
    place: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(place / kind)
    before, told = committed(store)[0].step, json.loads(emocap("status", store.url, "--json").output)
    assert [each["number"] for each in told["attempts"]] == [1]
    assert told["attempts"][0]["unreadable"] == []
    assert told["status"]["name"] == kind
    assert not told["alive"]
    emocap("checkpoints", "verify", store.url)

    monkeypatch.setattr("emocap_pretrain.tracking.mlflow_tracker.FINISH_S", 120.0)  # A busy machine is slow.
    config = config_of(place, kind, before + 2)
    pretrain(config, FakeRuntime())

    report = RunFolder(store).report(before + 2)
    assert report
    assert report.run_id == json.loads(store.read("run.json"))["run_id"]
    assert attempts.numbers(store) == [1, 2]
    assert store.exists("starts/00002/start.json"), "a process of version 0.1.0 looks there for its successor"
    assert unsent.read(store) == []
    assert state_of(committed(store)[0]).config["schema"] >= 1
    if kind == "quarantine":
        assert json.loads(store.read("quarantine.json"))
    assert "prompted UAR" in emocap("evaluate", store.url, "--data", str(place / "faces")).output
    assert str(before + 2) in emocap("checkpoints", "list", store.url).output
    emocap("checkpoints", "prune", store.url, "--keep-last", "1")
    assert [each.step for each in committed(store)] == [before + 2]


def test_an_older_checkpoint_is_evaluated_by_this_version(place: Path) -> None:
    store = open_store(place / "finished")
    step = min(each.step for each in committed(store))
    done = emocap("evaluate", store.url, "--step", str(step), "--data", str(place / "faces"))
    assert "prompted UAR" in done.output
