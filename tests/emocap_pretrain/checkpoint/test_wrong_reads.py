"""Tests that no checkpoint is lost if the store returns wrong data or incomplete listings."""

import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from checkpoint_cases import (
    ALONE,
    FILES,
    attempt_of,
    damage,
    everything,
    flip,
    objects,
    resumed_step,
    saved,
    steps,
    writer,
)
from emocap_shards.errors import NotFound
from emocap_shards.store import Entry, Store, open_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pretrain_fakes import ThreadRanks, on_ranks

from emocap_pretrain.checkpoint.commit import commit
from emocap_pretrain.checkpoint.layout import manifest_of
from emocap_pretrain.checkpoint.loader import resumable
from emocap_pretrain.checkpoint.retention import Retention, retain
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.run_folder import storage

OK, FLIP, HIDE = "ok", "flip", "hide"
WRONG = st.lists(st.sampled_from([OK, FLIP, HIDE]), max_size=25)
KEEPING = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass
class WrongReads:
    """Forwards calls to a store. An element of `wrong` damages or empties one reading; later readings are right."""

    store: Store
    wrong: list[str]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def list(self, prefix: str = "") -> list[Entry]:
        found, how = self.store.list(prefix), self._next()
        if how == HIDE:
            return found[::2]
        return [Entry(each.path, each.size + 1) for each in found] if how == FLIP else found

    def exists(self, path: str) -> bool:
        return self.store.exists(path) and self._next() != HIDE

    def read(self, path: str, *, limit_bytes: int | None = None) -> bytes:
        return self._changed(path, self.store.read(path, limit_bytes=limit_bytes))

    def read_versioned(self, path: str, *, limit_bytes: int) -> tuple[bytes, str]:
        data, version = self.store.read_versioned(path, limit_bytes=limit_bytes)
        return self._changed(path, data), version

    def read_range(self, path: str, start: int, end: int) -> bytes:
        return self._changed(path, self.store.read_range(path, start, end))

    def get_file(self, path: str, local_path: Path) -> None:
        data = self._changed(path, self.store.read(path))
        local_path.write_bytes(data)

    def _changed(self, path: str, data: bytes) -> bytes:
        how = self._next()
        if how == HIDE:
            raise NotFound(f"{path} is hidden", path=path)
        return flip(data) if how == FLIP and len(data) > 7 else data

    def _next(self) -> str:
        return self.wrong.pop(0) if self.wrong else OK


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSE_S", 0.0)


def memory() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


@KEEPING
@given(WRONG, st.lists(st.sampled_from(["whole", "flipped", "missing", "torn"]), min_size=3, max_size=3))
def test_resuming_changes_no_object_whatever_is_read(wrong: list[str], states: list[str]) -> None:
    store = memory()
    for checkpoint, state in zip(saved(store, 2, 4, 6), states, strict=True):
        if state == "torn":
            store.put(manifest_of(checkpoint.step), store.read(manifest_of(checkpoint.step))[:-1])
        elif state != "whole":
            damage(store, f"{checkpoint.folder}/{FILES[1]}", state)
    before = objects(store)
    with suppress(CheckpointError):
        resumed_step(WrongReads(store, list(wrong)))
    assert objects(store) == before


@KEEPING
@given(WRONG, st.integers(1, 3), st.booleans())
def test_saving_and_deleting_with_wrong_reads_lose_no_checkpoint_that_should_be_kept(
    wrong: list[str], keep_last: int, is_resaved: bool
) -> None:
    store = memory()
    saved(store, 2, 4, 6, 8)
    step = 8 if is_resaved else 10
    with suppress(CheckpointError):
        commit(WrongReads(store, list(wrong)), step, {"cursor": step}, writer(step), ALONE, attempt_of(store))
    newest = steps(store)[0]
    assert newest in {8, 10}
    assert resumed_step(store) == newest, "a reader without faults finds the newest one intact"
    should_stay = steps(store)[:keep_last]
    retain(WrongReads(store, list(wrong)), Retention(keep_last), before=1)
    assert steps(store)[:keep_last] == should_stay
    assert resumed_step(store) == newest


@pytest.mark.parametrize("kind", [FLIP, HIDE])
def test_one_or_two_wrong_reads_lose_no_progress(kind: str) -> None:
    store = memory()
    saved(store, 2, 4)
    for place in range(12):
        for length in (1, 2):
            wrong = [OK] * place + [kind] * length
            # A listing that hides an object entirely looks like an older state of the store, which is a valid one.
            hidden = kind == HIDE and place == 0
            assert resumed_step(WrongReads(store, wrong)) in ({2, 4} if hidden else {4}), wrong


def act_with(stores: dict[int, Store]) -> Callable[[ThreadRanks], int | None]:
    def act(world: ThreadRanks) -> int | None:
        with resumable(stores[world.rank], world, everything) as found:
            return found.checkpoint.step if found else None

    return act


@pytest.mark.parametrize("wrong_rank", [0, 1])
def test_a_host_that_misreads_every_manifest_does_not_refuse_what_another_host_reads_correctly(
    wrong_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = memory()
    saved(store, 2, 4)

    class Torn(WrongReads):
        def read(self, path: str, *, limit_bytes: int | None = None) -> bytes:
            return flip(self.store.read(path, limit_bytes=limit_bytes))

    monkeypatch.setattr(ThreadRanks, "gather", with_own_hosts(ThreadRanks.gather))
    stores: dict[int, Store] = {wrong_rank: Torn(store, []), 1 - wrong_rank: store}
    assert on_ranks(2, act_with(stores)) == [4, 4]


@pytest.mark.parametrize("wrong_rank", [0, 1])
def test_a_host_that_misreads_a_file_every_time_is_named_by_another_host(
    wrong_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = memory()
    saved(store, 2, 4)

    class Bad(WrongReads):
        def get_file(self, path: str, local_path: Path) -> None:
            local_path.write_bytes(flip(self.store.read(path)))

        def read_range(self, path: str, start: int, end: int) -> bytes:
            return flip(data) if len(data := self.store.read_range(path, start, end)) > 7 else data

    monkeypatch.setattr(ThreadRanks, "gather", with_own_hosts(ThreadRanks.gather))
    stores: dict[int, Store] = {wrong_rank: Bad(store, []), 1 - wrong_rank: store}
    for outcome in on_ranks(2, act_with(stores)):
        assert isinstance(outcome, CheckpointError)
        assert f"rank {wrong_rank} on " in str(outcome)
        assert "than the store holds" in str(outcome)


def with_own_hosts(collect: Callable[[ThreadRanks, Any], list[Any]]) -> Callable[[ThreadRanks, Any], list[Any]]:
    """Makes the ranks of one process appear as different hosts: the first collective gathers the host names."""

    def collected(world: ThreadRanks, value: Any) -> list[Any]:
        return collect(world, f"host{world.rank}" if isinstance(value, str) else value)

    return collected
