import time
from pathlib import Path

import pytest
from emocap_shards.store import Store, open_store

from emocap_pretrain.errors import Superseded
from emocap_pretrain.run_folder import attempts
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.documents import Failure, Status


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "run")


def test_attempts_are_numbered_from_1_and_know_their_ranks(store: Store) -> None:
    assert attempts.newest(store) == 0
    assert [Attempt.begin(store, ranks=2).number for _ in range(3)] == [1, 2, 3]
    assert attempts.numbers(store) == [1, 2, 3]
    assert b'"ranks": 2' in store.read("attempts/00002/attempt.json")


def test_two_attempts_that_begin_at_once_get_different_numbers(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    Attempt.begin(store)
    monkeypatch.setattr(attempts, "numbers", lambda _store: [])
    assert Attempt.begin(store).number == 2


def test_an_older_attempt_learns_that_it_is_superseded_and_the_newest_does_not(store: Store) -> None:
    old, new = Attempt.begin(store), Attempt.begin(store)
    new.check()
    with pytest.raises(Superseded, match=r"attempt 2 .* has taken over from attempt 1"):
        old.check()


def test_failures_are_read_by_rank_and_the_cause_is_not_the_loss_of_another_rank(store: Store) -> None:
    attempt = Attempt.begin(store)
    lost = Failure(0, "a", 7, "LostContact", "rank 1 is gone", lost=True)
    bug = Failure(1, "b", 7, "ValueError", "x" * 5000)
    for each in (bug, lost):
        attempt.record_failure(each)
    found = attempts.failures(store, attempt.number)
    assert [each.rank for each in found] == [0, 1]
    assert found[0] == lost
    assert found[1].message == "x" * attempts.LONGEST_MESSAGE
    cause = attempts.cause(found)
    assert cause
    assert cause.rank == 1
    assert attempts.cause([lost]) == lost
    assert attempts.cause([]) is None


def test_the_status_is_the_one_written_last(store: Store) -> None:
    attempt = Attempt.begin(store)
    assert attempts.status(store, attempt.number) is None
    for step in (1, 2):
        attempt.write_status(Status(at=time.time(), step=step))
    status = attempts.status(store, attempt.number)
    assert isinstance(status, Status)
    assert status.step == 2
