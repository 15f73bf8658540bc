"""Injects a fault at every store operation of an attempt: begin, resume, save, delete old checkpoints."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from emocap_shards.errors import StoreError
from emocap_shards.store import Store, open_store
from fault_sweep import CountedStore, Counter, emptied, operations_of, struck, sweep, sweep_far

from emocap_pretrain.checkpoint.best import Criterion, file_of, write_results
from emocap_pretrain.checkpoint.loader import resumable
from emocap_pretrain.checkpoint.manifest import committed
from emocap_pretrain.checkpoint.retention import Retention
from emocap_pretrain.checkpoint.saver import Saver
from emocap_pretrain.checkpoint.verify import damaged_files
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.documents import STEP_RESULTS
from emocap_pretrain.run_folder.results import Score, TaskResult

ALONE = RankGroup(Rank(), "cpu", None)
FILES = ("engine/rank-00000.safetensors", "model.safetensors")
EXPECTED = (StoreError, CheckpointError)
EVERY, STEPS = 2, 4
SETTINGS = EvaluationConfig(url="faces").model_dump(mode="json")
BEST = Criterion("task/loss", SETTINGS)


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


def evaluate(store: Store, step: int) -> None:
    """Stores the loss of a checkpoint, unless it is stored, as an evaluation during training does. Step 2 is best."""
    found = storage.read(store, file_of(step), STEP_RESULTS)
    if step and found is None:
        score = Score("loss", "loss", float(step), is_share=False, lower_is_better=True)
        write_results(store, step, (TaskResult("task", 8, (score,)),), SETTINGS)


def attempt(store: Store, until: int = STEPS, best: Criterion | None = None) -> None:
    """Resumes from the newest checkpoint, saves every `EVERY` steps and keeps one checkpoint, as a run does.

    With `best`, it also evaluates each checkpoint before the next step, and keeps the best one.
    """
    own = Attempt.begin(store)
    step = resumed_step(store)
    saver = Saver(store, ALONE, run_attempt=own, retention=Retention(1, keep_best=best), newest=step)
    try:
        if best:
            evaluate(store, step)
        while step < until:
            step += EVERY
            saver.save(step, {"cursor": step}, partial(write, step))
            saver.wait()
            if best:
                evaluate(store, step)
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


def test_after_a_failure_or_kill_at_any_operation_the_best_checkpoint_exists(tmp_path: Path) -> None:
    attempt(open_store(tmp_path / "saved"), until=2 * EVERY, best=BEST)

    def fresh(number: int) -> Store:
        shutil.copytree(tmp_path / "saved", tmp_path / str(number))
        return open_store(tmp_path / str(number))

    def act(store: Store, counter: Counter) -> None:
        attempt(CountedStore(store, counter), until=3 * EVERY, best=BEST)

    operations = operations_of(partial(act, fresh(0)))
    for number, fault in enumerate(sweep(operations), 1):
        store = fresh(number)
        struck(partial(act, store), fault, EXPECTED)
        assert EVERY in {each.step for each in committed(store)}, f"{fault}: the best checkpoint is gone"
        attempt(store, until=3 * EVERY, best=BEST)
        assert {EVERY, 3 * EVERY} <= {each.step for each in committed(store)}, str(fault)
        assert damaged_files(store, committed(store)[-1]) == []


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
