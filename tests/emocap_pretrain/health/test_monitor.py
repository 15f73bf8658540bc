import math
import time
from pathlib import Path

import pytest
import torch
from emocap_shards.store import Store, open_store

from emocap_pretrain.data.batch import Batch, Texts
from emocap_pretrain.errors import ConfigError, LostContact
from emocap_pretrain.health import status
from emocap_pretrain.health.monitor import Monitor
from emocap_pretrain.health.timing import SECTIONS
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder import attempts, requests
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.documents import ProfileRequest, Status

ALONE = RankGroup(Rank(), "cpu", None)
GONE = "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "run")


@pytest.fixture(autouse=True)
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "INTERVAL_S", 0.05)


def batch(rows: int) -> Batch:
    texts = Texts(torch.zeros((1, 5), dtype=torch.int64), torch.ones((1, 5), dtype=torch.bool))
    return Batch(torch.zeros((rows, 3, 2, 2), dtype=torch.uint8), {"global": texts})


def train(monitor: Monitor, steps: int) -> dict[str, float]:
    row: dict[str, float] = {}
    for step in range(steps):
        monitor.enter("training", step)
        for name in SECTIONS:
            with monitor.timer.measure(name):
                pass
        monitor.count(batch(8))
        monitor.enter("training", step + 1)
        row = monitor.exchange({"loss": 1.5}).metrics
    return row


def watched(attempt: Attempt) -> Monitor:
    return Monitor(ALONE, attempt, name="tiny", steps=4, timeout_s=300, silence_s=60)


def read_status(store: Store) -> Status:
    status = attempts.status(store, 1)
    assert isinstance(status, Status)
    return status


def test_gathered_metrics_hold_loss_speed_memory_and_sections(store: Store) -> None:
    with watched(Attempt.begin(store)) as monitor:
        row = train(monitor, 4)
    assert row["loss"] == 1.5
    assert row["samples_per_s"] == pytest.approx(8 / row["time/step_s"])
    assert {f"time/{name}_s" for name in SECTIONS} <= row.keys()
    assert all(math.isfinite(value) for value in row.values())
    last = read_status(store)
    assert (last.state, last.how, last.step, last.steps, last.loss) == ("ended", "done", 4, 4, 1.5)


def test_a_run_that_ends_before_its_last_step_was_stopped(store: Store) -> None:
    with watched(Attempt.begin(store)) as monitor:
        train(monitor, 2)
        assert monitor.exchange({}, should_stop=True).stop
    assert read_status(store).how == "stopped"


def test_a_request_to_stop_is_found_by_a_poll(store: Store) -> None:
    with watched(Attempt.begin(store)) as monitor:
        assert not monitor.poll(False)
        requests.ask_to_stop(store)
        for _ in range(200):
            if monitor.poll(False):
                break
            time.sleep(0.05)
        else:
            pytest.fail("the request was not found")
    assert store.list("requests") == []


def test_a_requested_profile_is_recorded_and_stored(store: Store) -> None:
    requests.ask_for_profile(store, ProfileRequest("ab", steps=2))
    with watched(Attempt.begin(store)) as monitor:
        for step in range(200):
            monitor.enter("training", step)
            monitor.poll(False)
            if store.exists("profiles/ab.json"):
                break
            time.sleep(0.05)
        train(monitor, 4)
    assert len([entry for entry in store.list("profiles") if entry.path.endswith(".json.gz")]) == 1


def fail_after(monitor: Monitor, steps: int) -> None:
    train(monitor, steps)
    raise ConfigError("no such class")


def test_an_error_is_stored_with_step_and_kind_and_raised(store: Store) -> None:
    with (
        pytest.raises(ConfigError, match="no such class"),
        watched(Attempt.begin(store)) as monitor,
    ):
        fail_after(monitor, 3)
    (failure,) = attempts.failures(store, 1)
    assert (failure.rank, failure.step, failure.kind, failure.final, failure.lost) == (0, 3, "ConfigError", True, False)
    assert read_status(store).reason == "no such class"


def test_a_collective_that_lost_its_peer_raises_lost_contact(store: Store) -> None:
    with (
        pytest.raises(LostContact, match="the same command resumes from the newest checkpoint") as caught,
        watched(Attempt.begin(store)),
    ):
        raise RuntimeError(GONE)
    assert str(caught.value.__cause__) == GONE
    assert [each.lost for each in attempts.failures(store, 1)] == [True]


def test_another_runtime_error_is_raised_unchanged(store: Store) -> None:
    with (
        pytest.raises(RuntimeError, match="shapes"),
        watched(Attempt.begin(store)),
    ):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert [each.kind for each in attempts.failures(store, 1)] == ["RuntimeError"]


def test_a_run_ends_although_its_store_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where a folder belongs")
    with watched(Attempt(open_store(tmp_path / "run"), 1)) as monitor:
        assert train(monitor, 4)["loss"] == 1.5
