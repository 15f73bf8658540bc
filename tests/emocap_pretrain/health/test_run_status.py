import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from emocap_shards.store import RetryConfig, Store, open_store
from pretrain_fakes import aged

from emocap_pretrain.errors import ConfigError, Superseded
from emocap_pretrain.health import status as statuses
from emocap_pretrain.health.position import TrainingPosition
from emocap_pretrain.health.status import StatusThread
from emocap_pretrain.run_folder import attempts, requests
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.documents import Failure, ProfileRequest, Status
from emocap_pretrain.run_folder.requests import Requests
from emocap_pretrain.run_folder.state import DEAD_S, RunState


@pytest.fixture(autouse=True)
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statuses, "INTERVAL_S", 0.02)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "run")


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def read_status(store: Store) -> Status:
    status = attempts.status(store, 1)
    assert isinstance(status, Status)
    return status


def test_the_status_follows_the_position_and_ends_with_a_reason(store: Store) -> None:
    attempt, position = Attempt.begin(store, ranks=2), TrainingPosition()
    status = StatusThread(attempt, position, ranks=2)
    wait_until(lambda: store.exists("attempts/00001/status.json"))
    assert read_status(store).state == "opening"
    position.enter("training", 7)
    status.update(loss=1.5)
    wait_until(lambda: read_status(store).step == 7)
    position.enter("saving", 7)
    wait_until(lambda: read_status(store).state == "saving")
    status.close("failed", "rank 1 is gone")
    last = read_status(store)
    assert (last.state, last.how, last.reason, last.loss) == ("ended", "failed", "rank 1 is gone", 1.5)
    assert abs(last.at - time.time()) < 10


def test_a_store_that_does_not_answer_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    nowhere = open_store("http://127.0.0.1:9/run", patience=RetryConfig(deadline_s=0.2))
    status = StatusThread(Attempt(nowhere, 1), TrainingPosition())
    wait_until(lambda: "the status of the run cannot be written" in caplog.text)
    assert status.take_requests() == Requests()
    status.close("done", "")


def test_a_request_is_taken_once_and_then_deleted(store: Store) -> None:
    status = StatusThread(Attempt.begin(store), TrainingPosition())
    request = ProfileRequest("ab12", steps=5, ranks=(0, 3))
    requests.ask_for_profile(store, request)
    requests.ask_to_stop(store)
    taken: list[Requests] = []

    def all_taken() -> bool:
        taken.append(status.take_requests())
        return any(each.stop for each in taken) and any(each.profile for each in taken)

    wait_until(all_taken)
    wait_until(lambda: not store.list("requests"))
    wait_until(lambda: status.take_requests() == Requests())
    assert [each.profile for each in taken if each.profile] == [request]
    status.close("done", "")


def test_a_stop_that_is_requested_while_the_run_stops_anyway_becomes_the_reason(store: Store) -> None:
    """Without the request the run would start again, because it only stopped for its node or for more ranks."""
    status = StatusThread(Attempt.begin(store), TrainingPosition())
    wait_until(lambda: store.exists("attempts/00001/status.json"))
    requests.ask_to_stop(store)
    status.close("stopped", "told to stop; the state is saved")
    assert read_status(store).reason == f"{attempts.STOP_REQUESTED}; the state is saved"
    assert store.list("requests") == []


def test_a_deleted_folder_is_noticed_and_not_written_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emocap_pretrain.health.status.INTERVAL_S", 0.05)
    attempt = Attempt.begin(store)
    status = StatusThread(attempt, TrainingPosition())
    wait_until(lambda: store.exists("attempts/00001/status.json"))
    for entry in store.list():
        store.delete(entry.path)
    wait_until(lambda: bool(status.superseded))
    assert "was deleted or replaced: attempt 1 ends" in status.superseded
    status.close("failed", "gone")
    attempt.record_failure(Failure(0, "here", 3, "Superseded", "gone"))
    with pytest.raises(Superseded, match="was deleted"):
        attempt.check()
    assert store.list() == []


def test_a_request_to_stop_is_kept_for_the_next_attempt_after_a_failure(store: Store) -> None:
    status = StatusThread(Attempt.begin(store), TrainingPosition())
    wait_until(lambda: store.exists("attempts/00001/status.json"))
    requests.ask_to_stop(store)
    status.close("failed", "rank 1 is gone")
    assert requests.pending(store).stop


def test_two_requests_for_profiles_are_served_one_after_the_other(store: Store) -> None:
    first, second = ProfileRequest("a", steps=1), ProfileRequest("b", steps=2)
    requests.ask_for_profile(store, first)
    requests.ask_for_profile(store, second)
    assert requests.pending(store).profile == first
    requests.mark_served(store, Requests(profile=first))
    assert requests.pending(store).profile == second


def test_no_request_that_came_while_the_run_was_ending_is_left_for_the_next_attempt(store: Store) -> None:
    status = StatusThread(Attempt.begin(store), TrainingPosition())
    wait_until(lambda: store.exists("attempts/00001/status.json"))
    for name in ("a", "b", "c"):
        requests.ask_for_profile(store, ProfileRequest(name, steps=1))
    status.close("stopped", "")
    assert store.list("requests") == []


def test_a_request_that_no_attempt_took_in_time_is_dropped(store: Store) -> None:
    requests.ask_to_stop(store)
    aged(store, requests.STOP, requests.VALID_S + 1)
    assert requests.pending(store) == Requests()
    assert store.list("requests") == []


def put_status(store: Store, number: int, **status: object) -> None:
    store.put(f"attempts/{number:05d}/status.json", json.dumps({"at": time.time(), **status}).encode())


def ending(store: Store) -> str:
    return RunState.read(store).newest.ending


def test_a_run_is_alive_while_its_status_is_fresh(store: Store) -> None:
    Attempt.begin(store)
    put_status(store, 1, state="training", step=7)
    assert RunState.read(store).newest.alive
    assert ending(store) == ""
    aged(store, "attempts/00001/status.json", DEAD_S + 1)
    assert not RunState.read(store).newest.alive
    assert "without a record of its end" in ending(store)


def test_a_run_that_has_ended_is_not_alive_and_its_reason_is_shown(store: Store) -> None:
    Attempt.begin(store)
    put_status(store, 1, state="ended", how="stopped", reason="asked to", step=7)
    assert not RunState.read(store).newest.alive
    assert ending(store) == "stopped: asked to"


def test_the_first_cause_of_a_failure_is_shown_and_not_what_followed_from_it(store: Store) -> None:
    attempt = Attempt.begin(store)
    put_status(store, 1, state="ended", how="failed", reason="rank 1 is gone", step=7)
    attempt.record_failure(Failure(0, "a", 7, "LostContact", "rank 1 is gone", lost=True))
    assert ending(store) == "failed: rank 1 is gone"
    attempt.record_failure(Failure(1, "b", 8, "ValueError", "no pixels"))
    assert ending(store) == "rank 1 (b): ValueError: no pixels"
    assert RunState.read(store).newest.step == 8


def test_the_end_of_an_attempt_without_rank_0_is_shown_from_another_rank(store: Store) -> None:
    attempt = Attempt.begin(store)
    put_status(store, 1, state="training", step=7)
    attempt.record_failure(Failure(1, "b", 7, "LostContact", "the job's store has not answered for 60 s", lost=True))
    assert ending(store) == "the job's store has not answered for 60 s"


def test_only_the_last_attempts_are_read(store: Store) -> None:
    for _ in range(4):
        Attempt.begin(store)
    assert [attempt.number for attempt in RunState.read(store, last=2).attempts] == [3, 4]


def test_a_folder_without_a_run_is_an_error_with_its_url(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"no run was ever started at .*run"):
        RunState.read(store)


BAD_REQUESTS = {
    "empty": b"",
    "torn": b'{"at": 17',
    "nothing": b"{}",
    "list": b"[1]",
    "text": b'"stop"',
    "types": b'{"at": {}, "id": [], "steps": "many", "ranks": 3}',
    "many steps": b'{"at": 1, "id": "ab", "steps": 1000000000}',
    "many ranks": b'{"at": 1, "id": "ab", "steps": 1, "ranks": [99999999999]}',
    "no steps": b'{"at": 1, "id": "ab", "steps": 0}',
    "climbs": b'{"at": 1, "id": "../../x", "steps": 1}',
    "another id": b'{"at": 1, "id": "cd", "steps": 1}',
    "time": b'{"at": 1e999}',
    "deep": b"[" * 100_000,
    "large": b" " * (2 << 20),
}


@pytest.mark.parametrize("body", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_is_refused_and_renamed_and_the_next_one_is_taken(
    store: Store, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    status = StatusThread(Attempt.begin(store), TrainingPosition())
    stop_too = body != BAD_REQUESTS["many steps"] and b'"at": 1,' not in body
    names = ["profile-ab.json", *(["stop.json"] if stop_too else [])]
    for name in names:
        store.put(f"requests/{name}", body)
    store.put("requests/00001 (copy)", b"?")
    wait_until(lambda: all(store.exists(f"requests/refused-{name}") for name in names))
    assert status.take_requests() == Requests()
    wait_until(lambda: not any(store.exists(f"requests/{name}") for name in names))
    assert "is refused" in caplog.text
    requests.ask_to_stop(store)
    wait_until(lambda: status.take_requests().stop)
    status.close("stopped", "")
    assert read_status(store).state == "ended"


def test_the_status_is_written_although_requests_cannot_be_read(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Store) -> Requests:
        raise TypeError("not a request")

    monkeypatch.setattr(requests, "pending", broken)
    position = TrainingPosition()
    status = StatusThread(Attempt.begin(store), position)
    for step in (1, 2):
        position.enter("training", step)
        wait_until(lambda step=step: store.exists("attempts/00001/status.json") and read_status(store).step == step)
    assert RunState.read(store).newest.alive
    status.close("done", "")
    assert read_status(store).how == "done"
    assert "requests to this run cannot be read: not a request" in caplog.text
