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


def recorded(profiler: Profiler, request: ProfileRequest, steps: int) -> None:
    timer = SectionTimer("cpu")
    for step in range(10, 10 + steps):
        profiler.at(step)
        if step == 12:
            profiler.begin(request, step)
        timer.record = profiler.active
        with timer.measure("forward"):
            torch.ones(8, 8) @ torch.ones(8, 8)
    profiler.close(30)


def test_a_trace_holds_the_steps_that_were_asked_for_and_opens_in_perfetto(store: Store) -> None:
    recorded(Profiler(store, rank=0, world=2), ProfileRequest("a1", steps=3), steps=8)
    answer = storage.read(store, "profiles/a1.json", PROFILE_ANSWER)
    assert answer == ProfileAnswer((13, 15), (trace_path(13, 0), trace_path(13, 1)))
    trace = json.loads(gzip.decompress(store.read("profiles/step-00000013-rank-00000.json.gz")))
    # What the Chrome trace format asks for: complete events with names, microseconds, a process and a thread.
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert all({"name", "ts", "dur", "pid", "tid"} <= event.keys() for event in events)
    assert sum(event["name"] == "forward" for event in events) == 3
    assert sum(event["name"] == "aten::mm" for event in events) == 3


def test_ranks_that_were_not_asked_record_nothing(store: Store) -> None:
    recorded(Profiler(store, rank=1, world=2), ProfileRequest("a1", steps=3, ranks=(0,)), steps=8)
    assert store.list() == []


def test_a_run_that_ends_first_leaves_a_shorter_trace(store: Store) -> None:
    recorded(Profiler(store, rank=0, world=1), ProfileRequest("a1", steps=50), steps=5)
    assert store.exists(trace_path(13, 0))


def test_a_second_request_during_a_recording_is_refused(store: Store) -> None:
    profiler = Profiler(store, rank=0, world=1)
    profiler.begin(ProfileRequest("a1", steps=3), 5)
    profiler.begin(ProfileRequest("b2", steps=3), 6)
    profiler.close(30)
    answer = storage.read(store, "profiles/b2.json", PROFILE_ANSWER)
    assert answer == ProfileAnswer(refused="steps 6 to 8 are being recorded")


def test_a_profiler_that_fails_is_a_warning(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("another tool holds the device's counters")

    monkeypatch.setattr(torch.profiler, "profile", refused)
    recorded(Profiler(store, rank=0, world=1), ProfileRequest("a1", steps=3), steps=8)
    assert "no profile of rank 0: another tool holds the device's counters" in caplog.text


def test_a_trace_that_cannot_be_uploaded_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_text("a file where a folder belongs")
    recorded(Profiler(open_store(tmp_path / "run"), rank=0, world=1), ProfileRequest("a1", steps=2), steps=8)
    assert "no profile of rank 0" in caplog.text
