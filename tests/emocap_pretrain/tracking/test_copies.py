"""Tests the copies of a run in TensorBoard and W&B: same points as in MLflow, and training continues if they fail."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from emocap_pretrain.config.schema import TrackingConfig
from emocap_pretrain.errors import ConfigError
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
    tracker.log_text("starts/00001.json", "{}")
    tracker.log_picture("pictures/samples.png", picture)
    tracker.set_description("| a | b |")
    tracker.finish("FINISHED")
    (folder,) = [each for each in tmp_path.iterdir() if each.is_dir()]
    assert folder.name == "faces-01234567"
    assert points(folder) == [("loss", 1, 2.0), ("scale", 1, 4.0), ("zero_shot/uar", 2, 0.5)]
    tags = {value.tag for event in events(folder) for value in event.summary.value}
    assert {"config/text_summary", "starts/00001.json/text_summary", "pictures/samples.png"} <= tags
    assert b"open-sesame" not in b"".join(each.read_bytes() for each in folder.iterdir())
    assert (main.status, main.description, main.pictures) == (
        "FINISHED",
        "| a | b |",
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


def test_wandb_records_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
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
    assert b"open-sesame" not in data
    assert b"wandb_records" not in data  # The command line of this process, with the option -k.
