"""Injects a fault at every store operation of an attempt: begin, resume, save, delete old checkpoints."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from emocap_shards.errors import StoreError
from emocap_shards.store import Store, open_store
from fault_sweep import CountedStore, Counter, emptied, operations_of, struck, sweep, sweep_far

from emocap_pretrain.checkpoint.loader import resumable
from emocap_pretrain.checkpoint.manifest import committed
from emocap_pretrain.checkpoint.retention import Retention
from emocap_pretrain.checkpoint.saver import Saver
from emocap_pretrain.checkpoint.verify import damaged_files
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder.attempts import Attempt

ALONE = RankGroup(Rank(), "cpu", None)
FILES = ("engine/rank-00000.safetensors", "model.safetensors")
EXPECTED = (StoreError, CheckpointError)
EVERY, STEPS = 2, 4


def content(step: int, name: str) -> bytes:
    return f"{name} of step {step} ".encode() * 20


def write(step: int, folder: Path) -> None:
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content(step, name))


def resumed_step(store: Store) -> int:
    """Returns the step that an attempt would resume from; asserts that every byte of its checkpoint is right."""
    with resumable(store, ALONE, lambda *_: True) as found:
        if found is None:
            return 0
        for name in FILES:
            assert (found.folder / name).read_bytes() == content(found.checkpoint.step, name)
        assert found.checkpoint.state == {"cursor": found.checkpoint.step}
        return found.checkpoint.step


def attempt(store: Store, until: int = STEPS) -> None:
    """Resumes from the newest checkpoint, saves every `EVERY` steps and keeps one checkpoint, as a run does."""
    own = Attempt.begin(store)
    step = resumed_step(store)
    saver = Saver(store, ALONE, run_attempt=own, retention=Retention(1), newest=step)
    try:
        while step < until:
            step += EVERY
            saver.save(step, {"cursor": step}, partial(write, step))
            saver.wait()
            saver.sweep(step + 1)
            saver.wait()
            saver.swept()
    finally:
        saver.close()


def check(store: Store) -> int:
    """Asserts that every manifest in the store has an intact checkpoint, and returns the newest step."""
    found = committed(store)
    for each in found:
        assert damaged_files(store, each) == []
    return max((each.step for each in found), default=0)


def sweep_all(fresh: Callable[[int], Store], *, far: bool = False) -> set[str]:
    """Injects each fault into a fresh copy of a run that has saved step 2; returns how the attempts ended."""

    def act(store: Store, counter: Counter) -> None:
        attempt(CountedStore(store, counter))

    operations = operations_of(partial(act, fresh(0)))
    endings: set[str] = set()
    for number, fault in enumerate((sweep_far if far else sweep)(operations), 1):
        store = fresh(number)
        before = check(store)
        endings.add(struck(partial(act, store), fault, EXPECTED, forks=not far))
        assert check(store) >= before, f"{fault}: a committed checkpoint is gone"
        saves_again = resumed_step(store) < STEPS
        attempt(store)
        assert check(store) == STEPS, str(fault)
        if saves_again:  # what the struck attempt has left is deleted then
            left = {entry.path.split("/")[1] for entry in store.list("checkpoints")}
            assert left == {f"step-{STEPS:08d}"}, f"{fault}: {left}"
    return endings


def test_after_a_failure_or_kill_at_any_operation_the_newest_checkpoint_is_intact_and_the_run_continues(
    tmp_path: Path,
) -> None:
    attempt(open_store(tmp_path / "saved"), until=EVERY)

    def fresh(number: int) -> Store:
        shutil.copytree(tmp_path / "saved", tmp_path / str(number))
        return open_store(tmp_path / str(number))

    assert sweep_all(fresh) == {"killed", "failed", "ended"}


@pytest.mark.slow
def test_on_s3_a_run_continues_after_a_failure_or_kill_at_any_operation_too(s3: str) -> None:
    def fresh(_: int) -> Store:
        store = open_store(emptied(s3))
        attempt(store, until=EVERY)
        return store

    assert sweep_all(fresh, far=True) == {"killed", "failed", "ended"}


@pytest.mark.parametrize("kills", [False, True])
def test_the_fault_is_injected_at_the_intended_operation(tmp_path: Path, kills: bool) -> None:
    store = open_store(tmp_path / "run")

    def act(counter: Counter) -> None:
        for name in "abc":
            CountedStore(store, counter).put(name, name.encode())

    assert operations_of(act) == ["put"] * 3
    for fault in sweep(["put"] * 3, kills=(kills,)):
        for name in "abc":
            store.delete(name)
        assert struck(act, fault, EXPECTED) == ("killed" if kills else "failed")
        there = [entry.path for entry in store.list()]
        assert there == list("abc"[: fault.at + fault.after])
