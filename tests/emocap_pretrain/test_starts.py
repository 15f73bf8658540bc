import time
from pathlib import Path

import pytest
from emocap_shards.errors import NotFound
from emocap_shards.store import Store, open_store

from emocap_pretrain import starts
from emocap_pretrain.errors import Superseded
from emocap_pretrain.starts import Failure, Start


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "run")


def test_starts_are_numbered_from_1_and_know_their_facts(store: Store) -> None:
    assert starts.newest(store) == 0
    assert [Start.begin(store, {"ranks": 2}).number for _ in range(3)] == [1, 2, 3]
    assert starts.numbers(store) == [1, 2, 3]
    assert b'"ranks": 2' in store.read("starts/00002/start.json")


def test_of_two_that_saw_the_same_newest_start_each_gets_a_number_of_its_own(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    Start.begin(store, {})
    monkeypatch.setattr(starts, "newest", lambda _store: 0)
    assert Start.begin(store, {}).number == 2


def test_an_older_start_learns_that_it_is_superseded_and_the_newest_does_not(store: Store) -> None:
    old, new = Start.begin(store, {}), Start.begin(store, {})
    new.check()
    with pytest.raises(Superseded, match=r"start 2 .* has taken over from start 1"):
        old.check()


def test_failures_come_back_by_rank_and_the_cause_is_not_the_loss_of_another_rank(store: Store) -> None:
    start = Start.begin(store, {})
    lost = Failure(0, "a", 7, "LostContact", "rank 1 is gone", lost=True)
    bug = Failure(1, "b", 7, "ValueError", "x" * 5000)
    for each in (bug, lost):
        start.fail(each)
    found = starts.failures(store, start.number)
    assert [each.rank for each in found] == [0, 1]
    assert found[0] == lost
    assert found[1].message == "x" * starts.LONGEST_MESSAGE
    cause = starts.cause(found)
    assert cause
    assert cause.rank == 1
    assert starts.cause([lost]) == lost
    assert starts.cause([]) is None


def test_the_status_is_what_was_told_last(store: Store) -> None:
    start = Start.begin(store, {})
    with pytest.raises(NotFound):
        starts.status(store, start.number)
    for step in (1, 2):
        start.tell({"step": step, "at": time.time()})
    assert starts.status(store, start.number)["step"] == 2
