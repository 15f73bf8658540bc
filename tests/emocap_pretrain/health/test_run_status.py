import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from emocap_shards.store import RetryConfig, Store, open_store
from pretrain_fakes import aged

from emocap_pretrain.errors import ConfigError, Superseded
from emocap_pretrain.health import status as statuses
from emocap_pretrain.health.beat import Beat
from emocap_pretrain.health.status import StatusThread
from emocap_pretrain.run_folder import attempts, requests
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.documents import Failure, ProfileRequest, Status
from emocap_pretrain.run_folder.requests import Requests
from emocap_pretrain.run_folder.state import DEAD_S, RunState


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statuses, "EVERY_S", 0.02)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "run")


def until(true: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def told(store: Store) -> Status:
    status = attempts.status(store, 1)
    assert isinstance(status, Status)
    return status


def test_the_status_follows_the_beat_and_ends_with_a_reason(store: Store) -> None:
    start, beat = Attempt.begin(store, ranks=2), Beat()
    status = StatusThread(start, beat, ranks=2)
    until(lambda: store.exists("attempts/00001/status.json"))
    assert told(store).state == "opening"
    beat.enter("training", 7)
    status.tell(loss=1.5)
    until(lambda: told(store).step == 7)
    beat.enter("saving", 7)
    until(lambda: told(store).state == "saving")
    status.close("failed", "rank 1 is gone")
    last = told(store)
    assert (last.state, last.how, last.reason, last.loss) == ("ended", "failed", "rank 1 is gone", 1.5)
    assert abs(last.at - time.time()) < 10


def test_a_store_that_does_not_answer_costs_a_warning_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    nowhere = open_store("http://127.0.0.1:9/run", patience=RetryConfig(deadline_s=0.2))
    status = StatusThread(Attempt(nowhere, 1), Beat())
    until(lambda: "the run's status is stale" in caplog.text)
    assert status.asked() == Requests()
    status.close("done", "")


def test_a_request_is_heard_once_and_is_gone_then(store: Store) -> None:
    status = StatusThread(Attempt.begin(store), Beat())
    request = ProfileRequest("ab12", steps=5, ranks=(0, 3))
    requests.ask_for_profile(store, request)
    requests.ask_to_stop(store)
    heard: list[Requests] = []

    def all_heard() -> bool:
        heard.append(status.asked())
        return any(each.stop for each in heard) and any(each.profile for each in heard)

    until(all_heard)
    until(lambda: not store.list("requests"))
    until(lambda: status.asked() == Requests())
    assert [each.profile for each in heard if each.profile] == [request]
    status.close("done", "")


def test_a_stop_that_is_asked_for_while_the_run_stops_anyway_is_the_reason_then(store: Store) -> None:
    """It would have gone on by itself: after a drain, or to grow."""
    status = StatusThread(Attempt.begin(store), Beat())
    until(lambda: store.exists("attempts/00001/status.json"))
    requests.ask_to_stop(store)
    status.close("stopped", "told to stop; the state is saved")
    assert told(store).reason == f"{attempts.ASKED}; the state is saved"
    assert store.list("requests") == []


def test_a_folder_that_is_deleted_is_noticed_and_does_not_come_back(store: Store, monkeypatch) -> None:
    monkeypatch.setattr("emocap_pretrain.health.status.EVERY_S", 0.05)
    attempt = Attempt.begin(store)
    status = StatusThread(attempt, Beat())
    until(lambda: store.exists("attempts/00001/status.json"))
    for entry in store.list():
        store.delete(entry.path)
    until(lambda: bool(status.gone))
    assert "was deleted or replaced: attempt 1 ends" in status.gone
    status.close("failed", "gone")
    attempt.fail(Failure(0, "here", 3, "Superseded", "gone"))
    with pytest.raises(Superseded, match="was deleted"):
        attempt.check()
    assert store.list() == []


def test_a_stop_is_kept_for_the_next_start_where_this_one_failed(store: Store) -> None:
    status = StatusThread(Attempt.begin(store), Beat())
    until(lambda: store.exists("attempts/00001/status.json"))
    requests.ask_to_stop(store)
    status.close("failed", "rank 1 is gone")
    assert requests.waiting(store).stop


def test_of_two_people_who_ask_for_a_profile_nobody_is_forgotten(store: Store) -> None:
    first, second = ProfileRequest("a", steps=1), ProfileRequest("b", steps=2)
    requests.ask_for_profile(store, first)
    requests.ask_for_profile(store, second)
    assert requests.waiting(store).profile == first
    requests.served(store, Requests(profile=first))
    assert requests.waiting(store).profile == second


def test_a_request_that_came_too_late_for_its_start_does_not_stop_the_next_one(store: Store) -> None:
    requests.ask_to_stop(store)
    aged(store, requests.STOP, requests.VALID_S + 1)
    assert requests.waiting(store) == Requests()
    assert store.list("requests") == []


def put_status(store: Store, number: int, **status: object) -> None:
    store.put(f"attempts/{number:05d}/status.json", json.dumps({"at": time.time(), **status}).encode())


def ending(store: Store) -> str:
    return RunState.read(store).newest.ending


def test_a_run_is_alive_while_it_gives_word(store: Store) -> None:
    Attempt.begin(store)
    put_status(store, 1, state="training", step=7)
    assert RunState.read(store).newest.alive
    assert ending(store) == ""
    aged(store, "attempts/00001/status.json", DEAD_S + 1)
    assert not RunState.read(store).newest.alive
    assert "without a word" in ending(store)


def test_a_run_that_ended_is_not_alive_and_says_how(store: Store) -> None:
    Attempt.begin(store)
    put_status(store, 1, state="ended", how="stopped", reason="asked to", step=7)
    assert not RunState.read(store).newest.alive
    assert ending(store) == "stopped: asked to"


def test_the_cause_of_a_failure_says_more_than_what_followed_from_it(store: Store) -> None:
    start = Attempt.begin(store)
    put_status(store, 1, state="ended", how="failed", reason="rank 1 is gone", step=7)
    start.fail(Failure(0, "a", 7, "LostContact", "rank 1 is gone", lost=True))
    assert ending(store) == "failed: rank 1 is gone"
    start.fail(Failure(1, "b", 8, "ValueError", "no pixels"))
    assert ending(store) == "rank 1 (b): ValueError: no pixels"
    assert RunState.read(store).newest.step == 8


def test_a_start_whose_rank_0_fell_silent_is_told_by_another_rank(store: Store) -> None:
    start = Attempt.begin(store)
    put_status(store, 1, state="training", step=7)
    start.fail(Failure(1, "b", 7, "LostContact", "no answer for 60 s", lost=True))
    assert ending(store) == "no answer for 60 s"


def test_only_the_last_starts_are_read(store: Store) -> None:
    for _ in range(4):
        Attempt.begin(store)
    assert [story.number for story in RunState.read(store, last=2).attempts] == [3, 4]


def test_a_folder_without_a_run_is_named(store: Store) -> None:
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
def test_a_bad_request_is_refused_and_renamed_and_the_next_one_is_heard(
    store: Store, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    status = StatusThread(Attempt.begin(store), Beat())
    stop_too = body != BAD_REQUESTS["many steps"] and b'"at": 1,' not in body
    names = ["profile-ab.json", *(["stop.json"] if stop_too else [])]
    for name in names:
        store.put(f"requests/{name}", body)
    store.put("requests/00001 (copy)", b"?")
    until(lambda: all(store.exists(f"requests/refused-{name}") for name in names))
    assert status.asked() == Requests()
    until(lambda: not any(store.exists(f"requests/{name}") for name in names))
    assert "is refused" in caplog.text
    requests.ask_to_stop(store)
    until(lambda: status.asked().stop)
    status.close("stopped", "")
    assert told(store).state == "ended"


def test_a_store_that_cannot_list_requests_does_not_keep_the_status_from_being_written(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Store) -> Requests:
        raise TypeError("not a request")

    monkeypatch.setattr(requests, "waiting", broken)
    beat = Beat()
    status = StatusThread(Attempt.begin(store), beat)
    for step in (1, 2):
        beat.enter("training", step)
        until(lambda step=step: store.exists("attempts/00001/status.json") and told(store).step == step)
    assert RunState.read(store).newest.alive
    status.close("done", "")
    assert told(store).how == "done"
    assert "requests to this run cannot be read: not a request" in caplog.text
