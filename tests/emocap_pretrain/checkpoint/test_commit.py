import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoint_cases import (
    ALONE,
    FILES,
    FailingStore,
    Killed,
    KillingStore,
    UnconditionalStore,
    attempt_of,
    content,
    damage,
    flip,
    objects,
    read,
    resumed_step,
    saved,
    steps,
    writer,
)
from emocap_shards.errors import ConditionFailed, StoreError
from emocap_shards.store import Entry, Store, open_store
from pretrain_fakes import ThreadRanks, on_ranks

from emocap_pretrain.checkpoint.commit import commit
from emocap_pretrain.checkpoint.layout import MANIFEST, TOKENIZER, WEIGHTS, delete_checkpoint
from emocap_pretrain.checkpoint.loader import downloaded
from emocap_pretrain.checkpoint.manifest import Checkpoint, committed
from emocap_pretrain.checkpoint.retention import Retention, retain
from emocap_pretrain.errors import CheckpointError, Superseded
from emocap_pretrain.run_folder import attempts
from emocap_pretrain.run_folder.attempts import Attempt


def test_a_checkpoint_is_read_back_byte_for_byte(store: Store) -> None:
    before = time.time()
    (checkpoint,) = saved(store, 4)
    assert committed(store) == [checkpoint]
    assert checkpoint.state == {"cursor": 4}
    assert checkpoint.ranks == 1
    assert before <= checkpoint.at <= time.time()
    with downloaded(store, checkpoint, lambda _: True) as folder:
        assert read(folder) == {name: content(4, name) for name in FILES}


def test_the_newest_comes_first_whatever_the_number_of_digits(store: Store) -> None:
    saved(store, 2, 10, 9, 123_456_789)
    assert steps(store) == [123_456_789, 10, 9, 2]


def test_every_rank_s_files_are_in_one_manifest_with_the_number_of_ranks(store: Store) -> None:
    def act(world: ThreadRanks) -> Checkpoint:
        def write(folder: Path) -> None:
            (folder / f"rank-{world.rank}").write_bytes(bytes([world.rank]))

        return commit(store, 3, {}, write, world, attempt_of(store))

    first, second = on_ranks(2, act)
    assert first == second == committed(store)[0]
    assert first.ranks == 2
    assert [file.path for file in first.files] == ["rank-0", "rank-1"]


def test_a_rank_without_files_of_its_own_takes_part(store: Store) -> None:
    def act(world: ThreadRanks) -> Checkpoint:
        return commit(store, 3, {}, writer(3) if world.is_main else lambda _: None, world, attempt_of(store))

    assert on_ranks(2, act)[1].files == committed(store)[0].files


@pytest.mark.parametrize(
    ("error", "words"),
    [(OSError("the disk is gone"), "the disk is gone"), (ValueError("no tensor"), "ValueError: no tensor")],
)
@pytest.mark.parametrize("broken", [0, 1])
def test_a_write_that_raises_on_one_rank_raises_on_all_ranks(
    store: Store, broken: int, error: Exception, words: str
) -> None:
    def act(world: ThreadRanks) -> None:
        def write(folder: Path) -> None:
            writer(2)(folder)
            if world.rank == broken:
                raise error

        commit(store, 2, {}, write, world, attempt_of(store))

    for outcome in on_ranks(2, act):
        assert isinstance(outcome, CheckpointError)
        assert str(outcome) == f"the checkpoint of step 2 was not saved: rank {broken}: {words}"
    assert committed(store) == []


@pytest.mark.parametrize("broken", [0, 1])
def test_an_upload_that_fails_on_one_rank_raises_on_all_ranks_with_its_name(store: Store, broken: int) -> None:
    def act(world: ThreadRanks) -> None:
        error = StoreError("the bucket is full")
        own_store = FailingStore(store, WEIGHTS, error) if world.rank == broken else store
        commit(own_store, 2, {}, writer(2), world, attempt_of(own_store))

    for outcome in on_ranks(2, act):
        assert isinstance(outcome, CheckpointError)
        assert f"rank {broken}: the bucket is full" in str(outcome)
    assert committed(store) == []


def test_a_manifest_that_cannot_be_put_raises_on_all_ranks(store: Store) -> None:
    def act(world: ThreadRanks) -> None:
        commit(FailingStore(store, MANIFEST, StoreError("unreachable")), 2, {}, writer(2), world, attempt_of(store))

    assert [type(each) for each in on_ranks(2, act)] == [CheckpointError, CheckpointError]
    assert committed(store) == []


def test_a_state_that_is_too_large_for_the_reader_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emocap_pretrain.checkpoint.commit.LARGEST_BYTES", 5000)
    with pytest.raises(CheckpointError, match="keep less in its state"):
        commit(store, 2, {"rows": "x" * 5000}, writer(2), ALONE, attempt_of(store))


def test_a_manifest_of_the_largest_size_that_the_reader_takes_is_committed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "emocap_pretrain.checkpoint.commit"
    monkeypatch.setattr(f"{module}.time", SimpleNamespace(time=lambda: 1.5))  # So all manifests are equally long.
    saved(store, 2)
    size = len(store.read("checkpoints/step-00000002/manifest.json"))
    monkeypatch.setattr(f"{module}.LARGEST_BYTES", size - 1)
    with pytest.raises(CheckpointError, match=f"the manifest of step 3 has {size} bytes"):
        saved(store, 3)
    monkeypatch.setattr(f"{module}.LARGEST_BYTES", size)
    saved(store, 3)
    assert steps(store) == [3, 2]


@dataclass
class CountingStore(UnconditionalStore):
    """Forwards calls to a store, and counts the calls of `put_if_absent`, which writes manifests.

    With `refuse`, each of these calls fails as if the manifest existed already.
    """

    refuse: bool = False
    puts: int = 0

    def put_if_absent(self, path: str, data: bytes) -> None:
        self.puts += 1
        if self.refuse:
            raise ConditionFailed(path)
        self.store.put_if_absent(path, data)


def test_a_manifest_that_others_put_and_delete_at_each_of_three_attempts_is_an_error(store: Store) -> None:
    restless = CountingStore(store, refuse=True)
    with pytest.raises(CheckpointError, match="changes while it is read: end the other writers of this run"):
        saved(restless, 4)
    assert restless.puts == 3
    assert committed(store) == []


def test_a_damaged_checkpoint_is_replaced_at_the_first_attempt_and_its_first_damaged_file_is_named(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    (first,) = saved(store, 4)
    damaged = [file.path for file in first.files][1:3]
    for name in damaged:
        damage(store, f"{first.folder}/{name}", "flipped")
    counting = CountingStore(store)
    saved(counting, 4)
    assert counting.puts == 1
    assert f"was damaged ({damaged[0]}): a new one replaces it" in caplog.text


@pytest.mark.parametrize("at", [WEIGHTS, TOKENIZER, MANIFEST])
def test_a_save_that_was_interrupted_is_ignored_and_the_step_can_be_saved_again(store: Store, at: str) -> None:
    saved(store, 2)
    with pytest.raises(Killed):
        commit(FailingStore(store, at, Killed()), 4, {}, writer(4), ALONE, attempt_of(store))
    assert steps(store) == [2]
    assert resumed_step(store) == 2
    saved(store, 4)
    assert resumed_step(store) == 4


def test_the_first_manifest_of_a_step_has_precedence(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    (first,) = saved(store, 4)
    second = commit(store, 4, {"cursor": "another"}, writer(4), ALONE, attempt_of(store))
    assert second == first
    assert committed(store) == [first]
    assert "was already committed by attempt 0" in caplog.text
    retain(store, Retention(1))
    assert resumed_step(store) == 4


def test_a_manifest_whose_answer_was_lost_is_the_attempt_s_own(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    class Silent:
        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def put_if_absent(self, path: str, data: bytes) -> None:
            store.put_if_absent(path, data)
            store.put_if_absent(path, data)  # The store's retry finds what the first request has written.

    (own,) = saved(Silent(), 4)
    assert committed(store) == [own]
    assert resumed_step(store) == 4
    assert caplog.text == ""


@pytest.mark.parametrize("harm", [flip, lambda data: data[:0], lambda data: data[:-1], lambda _: b"1"])
def test_a_damaged_manifest_is_replaced_by_a_new_commit_and_its_bytes_are_kept(
    store: Store, harm: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    saved(store, 4)
    path = "checkpoints/step-00000004/manifest.json"
    store.put(path, damaged := harm(store.read(path)))
    before = objects(store)
    assert steps(store) == []
    with pytest.raises(CheckpointError):  # A save that fails before its manifest replaces nothing.
        commit(FailingStore(store, TOKENIZER, StoreError("full")), 4, {}, writer(4), ALONE, attempt_of(store))
    assert {name: data for name, data in objects(store).items() if name in before} == before
    saved(store, 4)
    assert "a new one replaces it" in caplog.text
    assert resumed_step(store) == 4
    kept = [data for name, data in objects(store).items() if "/replaced-" in name]
    assert kept == [damaged]
    lost = before.keys() - objects(store).keys()
    assert not lost


@pytest.mark.parametrize("how", ["flipped", "missing", "truncated"])
def test_a_checkpoint_with_a_damaged_file_is_replaced_when_its_step_is_saved_again(store: Store, how: str) -> None:
    (first,) = saved(store, 4)
    damage(store, f"{first.folder}/{WEIGHTS}", how)
    before = objects(store)
    (second,) = saved(store, 4)
    assert second.attempt != first.attempt
    assert committed(store) == [second]
    assert resumed_step(store) == 4
    after = objects(store)
    assert [name for name in before if name not in after] == []
    assert [data for name, data in after.items() if "/replaced-" in name] == [first.dump()]
    retain(store, Retention(1))
    assert resumed_step(store) == 4
    assert f"{first.folder}/{TOKENIZER}" not in objects(store), "retention deletes what the new one replaced"


@pytest.mark.parametrize("before", ["read_versioned", "put_if_match"])
def test_a_manifest_that_another_attempt_repairs_meanwhile_is_not_replaced(store: Store, before: str) -> None:
    saved(store, 4)
    path = "checkpoints/step-00000004/manifest.json"
    whole = store.read(path)
    store.put(path, whole[:-1])

    class Repaired:
        def __getattr__(self, name: str) -> Any:
            operation = getattr(store, name)
            return partial(self._repair_first, operation) if name == before else operation

        def _repair_first(self, operation: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            store.put(path, whole)
            return operation(*arguments, **options)

    (kept,) = saved(Repaired(), 4)
    assert store.read(path) == whole == kept.dump()
    assert resumed_step(store) == 4


def test_a_superseded_attempt_commits_nothing(store: Store) -> None:
    old = Attempt.begin(store)

    def write(folder: Path) -> None:
        writer(4)(folder)
        Attempt.begin(store)  # A newer attempt begins in the middle of the upload.

    with pytest.raises(Superseded, match=r"attempt 2 .* has taken over from attempt 1"):
        commit(store, 4, {}, write, ALONE, old)
    assert committed(store) == []
    files = len(store.list("checkpoints"))
    with pytest.raises(Superseded):
        commit(store, 6, {}, writer(6), ALONE, old)
    assert len(store.list("checkpoints")) == files, "an attempt that is superseded does not upload"


def test_superseded_is_raised_on_all_ranks(store: Store) -> None:
    old = Attempt.begin(store)
    Attempt.begin(store)
    outcomes = on_ranks(2, lambda world: commit(store, 4, {}, writer(4), world, old))
    assert [type(each) for each in outcomes] == [Superseded, Superseded]
    assert str(outcomes[0]) == str(outcomes[1])


def test_if_conditions_are_ignored_the_later_manifest_replaces_the_earlier_one(store: Store) -> None:
    careless = UnconditionalStore(store)
    saved(careless, 4)
    second = commit(careless, 4, {"cursor": "later"}, writer(4), ALONE, attempt_of(careless))
    assert committed(store) == [second]
    assert resumed_step(store) == 4


def test_the_digest_of_a_checkpoint_depends_on_every_byte_of_it(store: Store) -> None:
    (first,) = saved(store, 4)
    delete_checkpoint(store, 4)

    def other(folder: Path) -> None:
        writer(4)(folder)
        (folder / FILES[0]).write_bytes(flip(content(4, FILES[0])))

    second = commit(store, 4, {"cursor": 4}, other, ALONE, attempt_of(store))
    same = Checkpoint(4, first.attempt, second.files, first.state, first.ranks, first.at)
    assert same.digest != first.digest


def in_a_child(act: Callable[[], Any]) -> int:
    """Calls `act` in a forked process and returns its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def save_and_sweep(store: Store, step: int) -> None:
    """Begins an attempt of the run, saves its first checkpoint, and deletes old checkpoints."""
    attempt = Attempt.begin(store)
    commit(store, step, {}, writer(step), ALONE, attempt)
    retain(store, Retention(1), before=attempt.number, check=attempt.check)


def operations(folder: Path, step: int) -> int:
    counting = KillingStore(open_store(folder), -1, before=False)
    save_and_sweep(counting, step)
    return len(counting.done)


@pytest.mark.parametrize("before", [True, False])
def test_a_run_killed_at_any_operation_resumes_from_its_last_or_its_new_checkpoint(
    tmp_path: Path, before: bool
) -> None:
    rehearsal = tmp_path / "rehearsal"
    saved(open_store(rehearsal), 2)
    count = operations(rehearsal, 4)
    assert count >= 10
    seen: set[int | None] = set()
    for at in range(count):
        store = open_store(tmp_path / f"run-{at}")
        saved(store, 2)
        code = in_a_child(lambda s=store, a=at: save_and_sweep(KillingStore(s, a, before), 4))
        assert code == -signal.SIGKILL
        seen.add(step := resumed_step(store))
        assert step in {2, 4}, at
        save_and_sweep(store, 4)
        assert resumed_step(store) == 4
        names = {entry.path for entry in store.list("checkpoints")}
        assert len(names) == len(FILES) + 1, f"operation {at}: {names}"
        assert attempts.newest(store) <= 2
    assert seen == {2, 4}


def test_no_manifest_is_put_if_an_uploaded_file_is_gone(store: Store) -> None:
    """A user prunes a run that seems to be dead while its upload is in progress."""

    class Pruned(UnconditionalStore):
        def list(self, prefix: str = "") -> list[Entry]:
            for entry in self.store.list(prefix):
                if entry.path.endswith(FILES[:2]):
                    self.store.delete(entry.path)
            return self.store.list(prefix)

    with pytest.raises(
        CheckpointError, match=rf"step 4 is not committed: 2 of its 4 files, such as {FILES[0]}, are gone"
    ):
        commit(Pruned(store), 4, {}, writer(4), ALONE, attempt_of(store))
    assert committed(store) == []
