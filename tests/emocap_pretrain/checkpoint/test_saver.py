import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from checkpoint_cases import FILES, UnconditionalStore, resumed_step, saved, saver_of, steps, writer
from emocap_shards.errors import StoreError
from emocap_shards.store import Store, open_store
from pretrain_fakes import ThreadRanks, on_ranks

from emocap_pretrain.checkpoint.manifest import committed
from emocap_pretrain.checkpoint.retention import Retention
from emocap_pretrain.errors import CheckpointError, Superseded
from emocap_pretrain.run_folder.attempts import Attempt

LIMIT_S = 20.0


@dataclass
class Gate:
    """Forwards calls to a store, but blocks uploads until `open` is set, and then accepts them or raises `error`."""

    store: Store
    error: Exception | None = None
    open: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def put_file(self, path: str, local_path: Path) -> None:
        self.reached.set()
        assert self.open.wait(LIMIT_S)
        if self.error:
            raise self.error
        self.store.put_file(path, local_path)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(open_store(tmp_path / "run"))
    yield gate
    gate.open.set()


def until(condition: Any) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_training_continues_while_a_checkpoint_is_uploaded(gate: Gate) -> None:
    saver = saver_of(gate)
    state = {"rows": [1]}
    saver.save(4, state, writer(4))
    state["rows"].append(2)
    assert gate.reached.wait(LIMIT_S)
    assert saver.finished() == []
    assert committed(gate.store) == []
    gate.open.set()
    until(lambda: committed(gate.store))
    found: list[Any] = []
    until(lambda: found.extend(saver.finished()) or found)
    assert found == committed(gate.store)
    assert found[0].state == {"rows": [1]}, "the state is copied when `save` is called"
    assert saver.finished() == saver.wait() == []
    assert resumed_step(gate.store) == 4


def test_one_checkpoint_is_saved_at_a_time_and_none_is_lost(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    saver = saver_of(gate)
    saver.save(2, {}, writer(2))
    threading.Timer(1.3, gate.open.set).start()
    saver.save(4, {}, writer(4))
    assert steps(gate.store)[-1] == 2, "the second began when the first was committed"
    assert [each.step for each in saver.wait()] == [2, 4]
    assert "for the checkpoint of step 2, which took longer than the steps to the next" in caplog.text


def test_a_snapshot_is_released_once_its_files_are_written_and_before_they_are_uploaded(gate: Gate) -> None:
    saver, released = saver_of(gate), threading.Event()
    saver.save(2, {}, writer(2), released.set)
    assert gate.reached.wait(LIMIT_S)
    assert released.is_set()
    gate.open.set()
    saver.wait()


@pytest.mark.parametrize("when", ["writing", "superseded", "previous save", "not JSON"])
def test_a_snapshot_is_released_exactly_once_also_after_an_error(gate: Gate, when: str) -> None:
    gate.open.set()
    attempt, released = Attempt.begin(gate.store), []

    def fail(_: Path) -> None:
        raise OSError("the disk is gone")

    if when == "superseded":
        Attempt.begin(gate.store)
    saver = saver_of(gate, run_attempt=attempt)
    if when == "previous save":
        saver.save(1, {}, fail)
        with pytest.raises(CheckpointError):
            saver.save(2, {}, writer(2), lambda: released.append(2))
    elif when == "not JSON":
        with pytest.raises(TypeError, match="JSON"):
            saver.save(2, {"x": object()}, writer(2), lambda: released.append(2))
    else:
        saver.save(2, {}, fail if when == "writing" else writer(2), lambda: released.append(2))
        with pytest.raises((CheckpointError, Superseded)):
            saver.wait()
    assert released == [2]


@pytest.mark.parametrize("call", ["save", "finished", "wait", "wait_for_previous"])
@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_in_the_thread_of_a_rank_is_raised_on_all_ranks_at_the_next_call(
    tmp_path: Path, broken: int, call: str
) -> None:
    store = open_store(tmp_path / "run")

    def act(world: ThreadRanks) -> None:
        gate = Gate(store, StoreError("the bucket is gone") if world.rank == broken else None)
        gate.open.set()
        saver = saver_of(gate, world)
        saver.save(2, {}, writer(2))
        while call == "finished":
            assert saver.finished() == []
            time.sleep(0.01)
        {
            "save": lambda: saver.save(4, {}, writer(4)),
            "wait": saver.wait,
            "wait_for_previous": saver.wait_for_previous,
        }[call]()

    for outcome in on_ranks(2, act):
        assert isinstance(outcome, CheckpointError), outcome
        assert str(outcome) == f"the checkpoint of step 2 was not saved: rank {broken}: the bucket is gone"
    assert committed(store) == []


def test_an_error_is_raised_once(gate: Gate) -> None:
    gate.open.set()
    gate.error = StoreError("the bucket is gone")
    saver = saver_of(gate)
    saver.save(2, {}, writer(2))
    with pytest.raises(CheckpointError):
        saver.wait()
    assert saver.wait() == []


def test_all_ranks_learn_of_a_checkpoint_in_the_same_call_although_one_is_slower(tmp_path: Path) -> None:
    store = open_store(tmp_path / "run")

    def act(world: ThreadRanks) -> list[list[int]]:
        gate = Gate(store)
        if world.is_main:
            gate.open.set()
        saver, heard = saver_of(gate, world), []
        saver.save(2, {}, writer(2) if world.rank else lambda _: None)
        for call in range(200):
            if call == 5:
                gate.open.set()
            heard.append([each.step for each in saver.finished()])
            time.sleep(0.005)
        return heard

    first, second = on_ranks(2, act)
    assert first == second
    assert [2] in first


def test_a_superseded_saver_commits_nothing_and_deletes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "run")
    old = Attempt.begin(store)
    zombie = saver_of(store, run_attempt=old, retention=Retention(1))
    zombie.save(2, {}, writer(2))
    zombie.wait()
    gate = Gate(store)
    slow = saver_of(gate, run_attempt=old, retention=Retention(1))
    slow.save(4, {}, writer(4))
    assert gate.reached.wait(LIMIT_S)
    new = saver_of(store, run_attempt=Attempt.begin(store), retention=Retention(2))
    gate.open.set()
    with pytest.raises(Superseded, match="attempt 2"):
        slow.wait()
    new.save(4, {}, writer(4))
    (done,) = new.wait()
    new.sweep(5)
    new.wait()
    assert done.attempt.startswith("00002-")
    assert steps(store) == [4, 2]
    assert len(store.list("checkpoints")) == 2 * (len(FILES) + 1), "the files of the superseded attempt are deleted"
    assert resumed_step(store) == 4


def test_deleted_steps_are_returned_on_rank_0(tmp_path: Path) -> None:
    store = open_store(tmp_path / "run")
    saved(store, 1, 2)

    def act(world: ThreadRanks) -> list[int]:
        saver = saver_of(store, world, retention=Retention(1))
        saver.save(3, {}, writer(3) if world.is_main else lambda _: None)
        saver.wait()
        saver.sweep(4)
        saver.wait()
        return saver.swept() + saver.swept()

    assert on_ranks(2, act) == [[2, 1], []]
    assert steps(store) == [3]


def test_a_checkpoint_without_a_later_step_does_not_count(tmp_path: Path) -> None:
    store = open_store(tmp_path / "run")
    saver = saver_of(store, retention=Retention(1))
    for step in (1, 2, 3):
        saver.save(step, {}, writer(step))
        saver.wait()
        saver.sweep(step)
    saver.wait()
    assert steps(store) == [3, 2]
    saver.sweep(4)
    saver.wait()
    assert steps(store) == [3]
    assert saver.swept() == [1, 2]


def test_checkpoints_that_were_refused_do_not_count(tmp_path: Path) -> None:
    store = open_store(tmp_path / "run")
    *_, refused = saved(store, 1, 2)
    saver = saver_of(store, retention=Retention(2), refused=[refused.attempt])
    saver.save(3, {}, writer(3))
    saver.wait()
    saver.sweep(4)
    saver.wait()
    assert steps(store) == [3, 2, 1]


def test_a_store_that_refuses_to_delete_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Keeper(Gate):
        def delete(self, _: str) -> None:
            raise StoreError("no right to delete")

    store = Keeper(open_store(tmp_path / "run"))
    store.open.set()
    saver = saver_of(store, retention=Retention(1))
    for step in (1, 2):
        saver.save(step, {}, writer(step))
    assert [each.step for each in saver.wait()] == [1, 2]
    saver.sweep(3)
    saver.wait()
    assert saver.swept() == []
    assert steps(store.store) == [2, 1]
    assert "old checkpoints could not be deleted: no right to delete" in caplog.text


def test_a_store_that_hangs_at_a_deletion_delays_no_checkpoint(tmp_path: Path) -> None:
    class Slow(Gate):
        def __init__(self, store: Store) -> None:
            super().__init__(store)
            self.deleting = threading.Event()

        def delete(self, path: str) -> None:
            assert self.deleting.wait(LIMIT_S)
            self.store.delete(path)

    slow = Slow(open_store(tmp_path / "run"))
    slow.open.set()
    saver = saver_of(slow, retention=Retention(1))
    for step in (1, 2, 3):
        saver.save(step, {}, writer(step))
        saver.wait_for_previous()
        saver.sweep(step + 1)
    assert saver.swept() == []
    assert steps(slow.store) == [3, 2, 1]
    slow.deleting.set()
    saver.wait()
    assert sorted(saver.swept()) == [1, 2]


def test_wait_raises_after_its_timeout(gate: Gate) -> None:
    saver = saver_of(gate)
    saver.save(2, {}, writer(2))
    with pytest.raises(CheckpointError, match=r"step 2 is not committed after 0\.05 s more"):
        saver.wait(0.05)


@pytest.mark.parametrize("honours", [True, False])
def test_a_store_that_ignores_conditions_causes_one_warning(
    tmp_path: Path, honours: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path / "run")
    saver = saver_of(store if honours else UnconditionalStore(store))
    for step in (1, 2):
        saver.save(step, {}, writer(step))
    saver.wait()
    assert caplog.text.count("ignores conditions") == (0 if honours else 1)


def test_a_store_that_cannot_say_whether_it_honours_conditions_is_accepted(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    class Mute(Gate):
        def honours_conditions(self) -> bool:
            raise StoreError("no answer")

    gate.open.set()
    saver = saver_of(Mute(gate.store, open=gate.open))
    saver.save(2, {}, writer(2))
    assert [each.step for each in saver.wait()] == [2]
    assert "supports conditional writes: no answer" in caplog.text


def test_no_save_begins_after_close(gate: Gate) -> None:
    saver = saver_of(gate)
    saver.save(2, {}, writer(2))
    assert gate.reached.wait(LIMIT_S)
    saver.close()
    gate.open.set()
    assert [each.step for each in saver.wait()] == [2]
    saver.save(4, {}, writer(4))
    with pytest.raises((CancelledError, CheckpointError)):
        saver.wait(0.2)
    assert steps(gate.store) == [2]
