import gzip
import json
from pathlib import Path

import pytest
import torch
from emocap_shards.store import Store, open_store

from emocap_pretrain.health.profiler import Profiler, trace_path
from emocap_pretrain.health.timing import SectionTimer
from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.documents import PROFILE_ANSWER, ProfileAnswer, ProfileRequest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "run")


def record(profiler: Profiler, request: ProfileRequest, steps: int) -> None:
    timer = SectionTimer("cpu")
    for step in range(10, 10 + steps):
        profiler.stop_after(step)
        if step == 12:
            profiler.start(request, step)
        timer.record = profiler.recording
        with timer.measure("forward"):
            torch.ones(8, 8) @ torch.ones(8, 8)
    profiler.close(30)


def test_a_trace_holds_the_requested_steps_and_has_the_chrome_format(store: Store) -> None:
    record(Profiler(store, rank=0, world_size=2), ProfileRequest("a1", steps=3), steps=8)
    answer = storage.read(store, "profiles/a1.json", PROFILE_ANSWER)
    assert answer == ProfileAnswer((13, 15), (trace_path(13, 0), trace_path(13, 1)))
    trace = json.loads(gzip.decompress(store.read("profiles/step-00000013-rank-00000.json.gz")))
    # The Chrome trace format needs complete events with names, microseconds, a process and a thread.
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert all({"name", "ts", "dur", "pid", "tid"} <= event.keys() for event in events)
    assert sum(event["name"] == "forward" for event in events) == 3
    assert sum(event["name"] == "aten::mm" for event in events) == 3


def test_ranks_that_are_not_in_the_request_record_nothing(store: Store) -> None:
    record(Profiler(store, rank=1, world_size=2), ProfileRequest("a1", steps=3, ranks=(0,)), steps=8)
    assert store.list() == []


def test_a_run_that_ends_during_a_recording_stores_a_shorter_trace(store: Store) -> None:
    record(Profiler(store, rank=0, world_size=1), ProfileRequest("a1", steps=50), steps=5)
    assert store.exists(trace_path(13, 0))


def test_a_second_request_during_a_recording_is_refused(store: Store) -> None:
    profiler = Profiler(store, rank=0, world_size=1)
    profiler.start(ProfileRequest("a1", steps=3), 5)
    profiler.start(ProfileRequest("b2", steps=3), 6)
    profiler.close(30)
    answer = storage.read(store, "profiles/b2.json", PROFILE_ANSWER)
    refused = "steps 6 to 8 are being recorded; repeat the command after these steps"
    assert answer == ProfileAnswer(refused=refused)


@pytest.mark.parametrize("ranks", [(7,), (0, 7)])
def test_a_request_for_a_rank_that_does_not_exist_is_refused(store: Store, ranks: tuple[int, ...]) -> None:
    profiler = Profiler(store, rank=0, world_size=2)
    profiler.start(ProfileRequest("a1", steps=3, ranks=ranks), 5)
    assert not profiler.recording
    profiler.start(ProfileRequest("b2", steps=3, ranks=(1,)), 5)
    profiler.close(30)
    answer = storage.read(store, "profiles/a1.json", PROFILE_ANSWER)
    assert answer == ProfileAnswer(refused="rank 7 does not exist; the last rank of the run is 1")
    accepted = storage.read(store, "profiles/b2.json", PROFILE_ANSWER)
    assert accepted == ProfileAnswer((6, 8), (trace_path(6, 1),))


def test_an_error_of_the_profiler_is_a_warning(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("another tool holds the device's counters")

    monkeypatch.setattr(torch.profiler, "profile", refused)
    record(Profiler(store, rank=0, world_size=1), ProfileRequest("a1", steps=3), steps=8)
    assert "the profile of rank 0 failed: another tool holds the device's counters" in caplog.text


def test_a_trace_that_cannot_be_uploaded_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_text("a file where a folder belongs")
    record(Profiler(open_store(tmp_path / "run"), rank=0, world_size=1), ProfileRequest("a1", steps=2), steps=8)
    assert "the profile of rank 0 failed" in caplog.text
