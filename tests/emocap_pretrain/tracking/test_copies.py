"""Tests the copies of a run in TensorBoard and W&B: same points as in MLflow, and training continues if they fail."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from emocap_pretrain.config.schema import TrackingConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.run import OPEN, SECRET, chosen
from emocap_pretrain.tracking.copies import CopyingTracker, check_copies, with_copies
from emocap_pretrain.tracking.tracker import MemoryTracker, RunStatus, TrackedRun


def run_of(**settings: Any) -> TrackedRun:
    params = {"optimizer": {"lr": 0.1}, "tracking": {"uri": "http://anna:open-sesame@server"}}
    return TrackedRun("faces", TrackingConfig(**settings), params)


def events(folder: Path) -> list[Event]:
    """Returns the events of all files in a folder, in the order in which TensorBoard reads them."""
    found: list[Event] = []
    for file in sorted(folder.rglob("events.out.tfevents.*")):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def points(folder: Path) -> list[tuple[str, int, float]]:
    return [
        (value.tag, event.step, round(value.simple_value, 5))
        for event in events(folder)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def test_tensorboard_gets_metrics_texts_and_pictures(tmp_path: Path) -> None:
    main = MemoryTracker(run_id="0123456789")
    tracker = with_copies(main, run_of(tensorboard=str(tmp_path)), first_step=0)
    picture = tmp_path / "a.png"
    Image.new("RGB", (4, 3)).save(picture)
    tracker.log_metrics({"loss": 2.0}, 1)
    tracker.log_metrics({"loss": 9.0, "scale": 4.0}, 1)
    tracker.log_scores({"zero_shot/uar": 0.5}, 2)
    secret = "http://anna:open-sesame@server"
    tracker.log_text("starts/00001.json", secret)
    tracker.log_picture("pictures/samples.png", picture)
    tracker.set_description(secret)
    tracker.finish("FINISHED")
    (folder,) = [each for each in tmp_path.iterdir() if each.is_dir()]
    assert folder.name == "faces-01234567"
    assert points(folder) == [("loss", 1, 2.0), ("scale", 1, 4.0), ("zero_shot/uar", 2, 0.5)]
    tags = {value.tag for event in events(folder) for value in event.summary.value}
    assert {"config/text_summary", "starts/00001.json/text_summary", "pictures/samples.png"} <= tags
    assert b"open-sesame" not in b"".join(each.read_bytes() for each in folder.iterdir())
    assert (main.status, main.description, main.pictures) == (
        "FINISHED",
        secret,
        {"pictures/samples.png": picture.read_bytes()},
    )


def test_a_resumed_attempt_hides_the_steps_that_it_repeats(tmp_path: Path) -> None:
    run = run_of(tensorboard=str(tmp_path))
    with_copies(MemoryTracker(run_id="x"), run, first_step=0).finish("KILLED")
    tracker = with_copies(MemoryTracker(run_id="x"), run, first_step=5)
    tracker.log_metrics({"loss": 1.0}, 5)
    tracker.finish("FINISHED")
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts[-1] == 5


class FakeCopy:
    """Keeps what a copy gets, or fails at every call."""

    def __init__(self, *, fails: bool = False) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.fails = fails
        self.status: RunStatus | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if self.fails:
            raise OSError("no space left: token=open-sesame-1234")
        self.rows.append((step, dict(metrics)))

    def log_text(self, name: str, content: str) -> None: ...

    def log_picture(self, name: str, path: Path) -> None: ...

    def finish(self, status: RunStatus) -> None:
        self.status = status


names = st.dictionaries(st.sampled_from("abc"), st.floats(0, 1), max_size=3)


@given(st.lists(st.tuples(st.integers(0, 6), names), max_size=12))
def test_a_copy_gets_the_points_of_the_main_tracker(rows: list[tuple[int, dict[str, float]]]) -> None:
    main, copy = MemoryTracker(), FakeCopy()
    tracker = CopyingTracker(main, [copy])
    for step, metrics in rows:
        tracker.log_metrics(metrics, step)
    assert copy.rows == main.rows


def test_a_copy_that_fails_is_given_up_and_the_run_continues(caplog: pytest.LogCaptureFixture) -> None:
    main, broken, works = MemoryTracker(), FakeCopy(fails=True), FakeCopy()
    tracker = CopyingTracker(main, [broken, works])
    with caplog.at_level(logging.WARNING):
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.log_metrics({"loss": 0.5}, 2)
    assert main.rows == works.rows == [(1, {"loss": 1.0}), (2, {"loss": 0.5})]
    (line,) = caplog.messages
    assert "FakeCopy cannot be used any more" in line
    assert "open-sesame" not in line


def test_a_folder_that_cannot_be_made_leaves_mlflow_alone(caplog: pytest.LogCaptureFixture) -> None:
    main = MemoryTracker()
    assert with_copies(main, run_of(tensorboard="/proc/none"), first_step=0) is main
    assert "TensorBoard cannot be used" in caplog.text


def test_without_the_settings_there_is_no_copy() -> None:
    main = MemoryTracker()
    assert with_copies(main, run_of(), first_step=0) is main


def test_missing_tools_are_refused_before_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    check_copies(TrackingConfig())
    with pytest.raises(ConfigError, match="give a folder"):
        check_copies(TrackingConfig(tensorboard="s3://bucket/x"))
    monkeypatch.setattr("emocap_pretrain.tracking.copies.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="is not installed"):
        check_copies(TrackingConfig(wandb="faces"))


class StrictRun:
    """Takes rows by W&B's rule: its own step grows with each row, and a row of an earlier step is dropped."""

    def __init__(self, summary: dict[str, Any]) -> None:
        self.summary, self.step, self.rows = summary, 0, list[dict[str, Any]]()
        self.axes: dict[str, str | None] = {}

    def define_metric(self, name: str, *, step_metric: str | None = None, **_: Any) -> None:
        self.axes[name] = step_metric

    def log(self, row: dict[str, Any], step: int | None = None) -> None:
        if step is None or step >= self.step:
            self.rows.append(row)
            self.step = self.step + 1 if step is None else step


def strict_wandb(monkeypatch: pytest.MonkeyPatch, **summary: Any) -> StrictRun:
    run = StrictRun(summary)
    monkeypatch.setenv("WANDB_LOGIN_TIMEOUT", "20")  # The test restores the variable.
    module = SimpleNamespace(Settings=dict, Image=lambda path: path, init=lambda **_: run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return run


def test_wandb_keeps_scores_that_come_after_pictures_and_after_later_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    run = strict_wandb(monkeypatch)
    tracker = with_copies(MemoryTracker(run_id="0123456789"), run_of(wandb="faces"), first_step=0)
    picture = Path(__file__)
    tracker.log_picture("pictures/samples.png", picture)
    tracker.log_metrics({"cut/global": 0.1}, 0)
    tracker.log_metrics({"loss": 2.0}, 4)
    tracker.log_scores({"checkpoint/loss": 3.0}, 2)
    tracker.replace_scores({"zero_shot/uar": 0.5}, 4)
    tracker.log_picture("pictures/confusion.png", picture)
    tracker.replace_scores({"retrieval/r1": 0.2}, 4)
    assert run.axes["*"] == "step"
    assert [row for row in run.rows if "step" in row] == [
        {"cut/global": 0.1, "step": 0},
        {"loss": 2.0, "step": 4},
        {"checkpoint/loss": 3.0, "step": 2},
        {"zero_shot/uar": 0.5, "step": 4},
        {"retrieval/r1": 0.2, "step": 4},
    ]
    assert len(run.rows) == 7


@pytest.mark.parametrize("newest", [5, {"max": 5}])
def test_wandb_gets_the_steps_that_a_resumed_attempt_repeats_once(newest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = strict_wandb(monkeypatch, step=newest)
    tracker = with_copies(MemoryTracker(run_id="0123456789"), run_of(wandb="faces"), first_step=4)
    for step in (4, 5, 6):
        tracker.log_metrics({"loss": 1.0}, step)
    assert run.rows == [{"loss": 1.0, "step": 6}]


def test_a_missing_key_of_wandb_is_refused_before_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emocap_pretrain.tracking.copies.find_spec", lambda _: True)
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = TrackingConfig(wandb="faces")
    with pytest.raises(ConfigError, match="set WANDB_API_KEY"):
        check_copies(settings)
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_copies(settings)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    check_copies(settings)
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password x\n", encoding="utf-8")
    check_copies(settings)


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "FSSPEC_S3_ANON", "FSSPEC_S3_SECRET"])
def test_ranks_on_other_hosts_get_credentials_and_the_dashboard_of_ray_does_not(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "0" * 40)
    assert name in chosen(SECRET)
    assert name not in chosen(OPEN)


def test_wandb_records_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_LOGIN_TIMEOUT", "20")  # The test restores the variable.
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    main = MemoryTracker(run_id="0123456789")
    tracker = with_copies(main, run_of(wandb="faces"), first_step=0)
    assert isinstance(tracker, CopyingTracker)
    tracker.log_metrics({"loss": 2.0}, 1)
    tracker.log_text("report.json", "{}")
    tracker.finish("FINISHED")
    assert len(tracker.copies) == 1
    (file,) = tmp_path.rglob("run-0123456789.wandb")
    data = file.read_bytes()
    assert b"optimizer.lr" in data
    assert b"loss" in data
    assert b"open-sesame" not in data
    assert b"wandb_records" not in data  # The command line of this process, with the option -k.
