import pytest
from checkpoint_cases import ALONE, FILES, FailingStore, Killed, content, damage, read, saved, steps, writer
from emocap_shards.store import Store
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.checkpoint.commit import commit
from emocap_pretrain.checkpoint.layout import (
    MANIFEST,
    WEIGHTS,
    folder_of,
    manifest_of,
    replaced_manifest_of,
    step_folders,
)
from emocap_pretrain.checkpoint.loader import downloaded
from emocap_pretrain.checkpoint.manifest import Checkpoint, committed
from emocap_pretrain.checkpoint.retention import Retention, deletions, retain
from emocap_pretrain.errors import Superseded
from emocap_pretrain.run_folder.attempts import Attempt


def save_without_manifest(store: Store, step: int, run_attempt: int) -> None:
    """Saves a step in this run attempt, and dies before the manifest is put."""
    store.put(f"attempts/{run_attempt:05d}/attempt.json", b"{}")
    failing = FailingStore(store, MANIFEST, Killed())
    with pytest.raises(Killed):
        commit(failing, step, {}, writer(step), ALONE, Attempt(store, run_attempt))


def attempts(store: Store) -> dict[int, int]:
    """Returns how many save attempts the store has for each step."""
    return {each.step: len(each.attempts) for each in step_folders(store)}


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(1, None, [12]), (3, None, [12, 10, 8]), (1, 6, [12, 6]), (2, 4, [12, 10, 8, 4]), (9, None, [12, 10, 8, 6, 4, 2])],
)
def test_the_newest_and_the_multiples_are_kept_and_the_others_are_returned(
    store: Store, keep_last: int, keep_every: int | None, kept: list[int]
) -> None:
    all_steps = [2, 4, 6, 8, 10, 12]
    saved(store, *all_steps)
    deleted = retain(store, Retention(keep_last, keep_every))
    assert steps(store) == kept
    assert sorted([*deleted, *kept]) == all_steps
    folders = {entry.path.split("/")[1] for entry in store.list("checkpoints")}
    assert folders == {f"step-{step:08d}" for step in kept}
    for checkpoint in committed(store):
        with downloaded(store, checkpoint, lambda _: True) as folder:
            assert read(folder) == {name: content(checkpoint.step, name) for name in FILES}


@given(st.dictionaries(st.integers(0, 50), st.booleans()), st.integers(1, 9), st.none() | st.integers(1, 9))
def test_only_checkpoints_older_than_keep_last_intact_ones_are_deleted(
    whole: dict[int, bool], keep_last: int, keep_every: int | None
) -> None:
    retention = Retention(keep_last, keep_every)
    oldest = retention.oldest(whole, whole.__getitem__)
    gone = {step for step in whole if not retention.keeps(step, oldest)}
    newer = {step for step, is_intact in whole.items() if is_intact and step > max(gone, default=-1)}
    assert not gone or len(newer) >= keep_last
    assert not any(keep_every and step % keep_every == 0 for step in gone)
    enough = sorted((step for step, is_intact in whole.items() if is_intact), reverse=True)[:keep_last]
    if len(enough) == keep_last:
        kept = {step for step in whole if step >= enough[-1] or (keep_every and step % keep_every == 0)}
        assert gone == whole.keys() - kept - {0}


def test_the_weights_of_the_start_are_never_deleted(store: Store) -> None:
    saved(store, 0, 2, 4)
    assert retain(store, Retention(1)) == [2]
    assert steps(store) == [4, 0]


def test_files_of_unfinished_saves_of_older_attempts_are_deleted(store: Store) -> None:
    save_without_manifest(store, 2, run_attempt=1)
    save_without_manifest(store, 4, run_attempt=1)
    (checkpoint,) = saved(store, 4)
    assert retain(store, Retention(1), before=2) == []
    expected = {f"{checkpoint.folder}/{name}" for name in FILES} | {manifest_of(4)}
    assert {entry.path for entry in store.list("checkpoints")} == expected


def test_files_of_unfinished_saves_of_this_and_newer_attempts_are_kept(store: Store) -> None:
    saved(store, 4)
    for run_attempt in (2, 3):
        save_without_manifest(store, 4, run_attempt)
        save_without_manifest(store, 6, run_attempt)
    retain(store, Retention(1), before=2)
    assert attempts(store) == {6: 2, 4: 3}
    retain(store, Retention(1), before=3)
    assert attempts(store) == {6: 2, 4: 2}, "files newer than the newest checkpoint are deleted by a later call"
    retain(store, Retention(1))
    assert attempts(store) == {4: 1}


def test_an_attempt_that_is_superseded_meanwhile_deletes_nothing_more(store: Store) -> None:
    saved(store, 2, 4, 6)
    old = Attempt.begin(store)
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            Attempt.begin(store)
        old.check()

    with pytest.raises(Superseded):
        retain(store, Retention(1), before=1, check=check)
    assert steps(store) == [6, 2]


def test_an_interrupted_deletion_leaves_no_manifest_without_files(store: Store) -> None:
    saved(store, 2, 4)

    class Cut:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def delete_tree(self, _: str) -> None:
            raise Killed

    with pytest.raises(Killed):
        retain(Cut(), Retention(1))
    assert steps(store) == [4]
    retain(store, Retention(1), before=1)
    assert attempts(store) == {4: 1}


def test_a_damaged_checkpoint_does_not_count_and_is_deleted_once_enough_newer_ones_are_intact(store: Store) -> None:
    _, _, third, fourth = saved(store, 2, 4, 6, 8)
    damage(store, f"{fourth.folder}/{WEIGHTS}", "missing")
    store.put(manifest_of(6), store.read(manifest_of(6))[:-1])
    assert retain(store, Retention(2)) == []
    assert {entry.path for entry in store.list("checkpoints")} >= {f"{third.folder}/{WEIGHTS}", manifest_of(8)}
    saved(store, 10)
    assert retain(store, Retention(2)) == [2]
    saved(store, 12)
    assert retain(store, Retention(2)) == [8, 6, 4]
    assert steps(store) == [12, 10]


def test_a_checkpoint_that_the_caller_does_not_count_keeps_an_older_one(store: Store) -> None:
    saved(store, 2, 4, 6, 8)
    assert retain(store, Retention(2), counts=lambda checkpoint: checkpoint.step < 8) == [2]
    assert steps(store) == [8, 6, 4]


def test_a_checkpoint_of_another_version_does_not_count_and_is_not_deleted_before_older_ones(store: Store) -> None:
    saved(store, 2, 4)
    store.put(manifest_of(6), Checkpoint(6, "a", (), {}, schema=9).dump())
    assert retain(store, Retention(1)) == [2]
    assert store.exists(manifest_of(6))


def test_files_that_no_save_attempt_made_are_kept(store: Store) -> None:
    (checkpoint,) = saved(store, 4)
    strange = [
        f"checkpoints/step-00000004/{checkpoint.attempt} (copy)/{WEIGHTS}",
        "checkpoints/step-00000004/notes.txt",
        "checkpoints/step-6/00001-ab/x",
        "checkpoints/step-00000008/backup/x",
    ]
    for path in strange:
        store.put(path, b"x")
    assert retain(store, Retention(1)) == []
    assert all(store.exists(path) for path in strange)


def test_files_that_no_save_attempt_made_are_kept_when_the_checkpoint_beside_them_is_deleted(store: Store) -> None:
    old, _ = saved(store, 2, 4)
    save_without_manifest(store, 2, run_attempt=1)
    store.put(replaced_manifest_of(2, "ab" * 32), b"{")
    strange = [
        f"{old.folder} (copy)/{WEIGHTS}",
        f"{folder_of(2)}/00001-notes",
        f"{folder_of(2)}/notes.txt",
        f"{manifest_of(2)}.bak",
    ]
    for path in strange:
        store.put(path, b"x")
    (deletion,) = deletions(store, Retention(1))
    assert deletion.bytes == 2 * old.bytes
    assert retain(store, Retention(1)) == [2]
    assert {entry.path for entry in store.list(folder_of(2))} == set(strange)
    assert steps(store) == [4]
