from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.tracking.mlflow_run import new_points
from emocap_pretrain.tracking.spool import row
from emocap_pretrain.tracking.tracker import MemoryTracker, Tracker

names = st.dictionaries(st.sampled_from("abc"), st.floats(0, 1), max_size=3)
reported = st.lists(st.tuples(st.integers(0, 6), names), max_size=12)


@given(reported)
def test_both_trackers_record_the_same_points(rows: list[tuple[int, dict[str, float]]]) -> None:
    tracker: Tracker = (memory := MemoryTracker())
    for step, metrics in rows:
        tracker.log_metrics(metrics, step)
    points = new_points([row("metrics", step, dict(metrics)) for step, metrics in rows], {})
    kept = [(step, name, value) for step, metrics in memory.rows for name, value in metrics.items()]
    assert kept == [(point.step, point.key, point.value) for point in points]


@given(reported, st.dictionaries(st.sampled_from("abc"), st.integers(0, 6), max_size=3))
def test_points_have_higher_steps_than_the_run_and_each_step_once(
    rows: list[tuple[int, dict[str, float]]], last: dict[str, int]
) -> None:
    before = dict(last)
    points = new_points([row("metrics", step, dict(metrics)) for step, metrics in rows], last)
    for name in "abc":
        steps = [point.step for point in points if point.key == name]
        assert steps == sorted(set(steps))
        assert all(step > last.get(name, -1) for step in steps)
        logged = [step for step, metrics in rows if name in metrics]
        assert (max(logged, default=-1) > last.get(name, -1)) == bool(steps)
    assert last == before


def test_the_memory_tracker_keeps_all_reports(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"pixels")
    tracker = MemoryTracker()
    for step in (2, 4, 4, 6):
        tracker.log_checkpoint(f"url-{step}", step, "abc")
    tracker.delete_checkpoints([2])
    tracker.keep_checkpoints([4, 8])
    tracker.log_scores({"uar": 0.5}, 4)
    tracker.log_scores({"uar": 0.9, "war": 0.25}, 4)
    tracker.log_text("t", "1")
    tracker.log_picture("p", picture)
    tracker.set_description("d")
    assert tracker.flush(0)
    assert tracker.unsent() == []
    tracker.finish("KILLED")
    assert tracker.checkpoints == [("url-4", 4)]
    assert tracker.rows == [(4, {"uar": 0.5}), (4, {"war": 0.25})]
    assert tracker.scores == {4: {"uar": 0.5, "war": 0.25}}
    assert (tracker.texts, tracker.pictures) == ({"t": "1"}, {"p": b"pixels"})
    assert (tracker.description, tracker.status) == ("d", "KILLED")
