import pytest
from checkpoint_cases import ALONE, FILES, FailingStore, Killed, content, read, saved, steps, writer
from emocap_shards.store import Store
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.checkpoint.commit import commit
from emocap_pretrain.checkpoint.layout import MANIFEST, manifest_of, step_folders
from emocap_pretrain.checkpoint.loader import downloaded
from emocap_pretrain.checkpoint.manifest import committed
from emocap_pretrain.checkpoint.retention import Retention, retain
from emocap_pretrain.errors import Superseded
from emocap_pretrain.starts import Start


def cut_off(store: Store, step: int, start: int) -> None:
    """An attempt of that start which ends before its manifest."""
    failing = FailingStore(store, MANIFEST, Killed())
    with pytest.raises(Killed):
        commit(failing, step, {}, writer(step), ALONE, Start(store, start))


def attempts(store: Store) -> dict[int, int]:
    """How many attempts lie in the store by step."""
    return {each.step: len(each.attempts) for each in step_folders(store)}


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(1, None, [12]), (3, None, [12, 10, 8]), (1, 6, [12, 6]), (2, 4, [12, 10, 8, 4]), (9, None, [12, 10, 8, 6, 4, 2])],
)
def test_the_newest_and_the_multiples_stay_and_the_others_are_named(
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


@given(st.sets(st.integers(0, 50)), st.integers(1, 9), st.none() | st.integers(1, 9))
def test_what_stays_always_holds_the_newest_ones(steps: set[int], keep_last: int, keep_every: int | None) -> None:
    kept = Retention(keep_last, keep_every).kept(steps)
    assert kept <= steps
    assert set(sorted(steps)[-keep_last:]) <= kept
    assert all(keep_every and step % keep_every == 0 for step in kept - set(sorted(steps)[-keep_last:]))
    assert not any(keep_every and step % keep_every == 0 for step in steps - kept)


def test_what_unfinished_attempts_of_older_starts_left_goes(store: Store) -> None:
    cut_off(store, 2, start=1)
    cut_off(store, 4, start=1)
    (checkpoint,) = saved(store, 4)
    assert retain(store, Retention(1), before=2) == []
    expected = {f"{checkpoint.folder}/{name}" for name in FILES} | {manifest_of(4)}
    assert {entry.path for entry in store.list("checkpoints")} == expected


def test_attempts_of_this_start_and_of_newer_ones_are_left_alone(store: Store) -> None:
    saved(store, 4)
    for start in (2, 3):
        cut_off(store, 4, start)
        cut_off(store, 6, start)
    retain(store, Retention(1), before=2)
    assert attempts(store) == {6: 2, 4: 3}
    retain(store, Retention(1), before=3)
    assert attempts(store) == {6: 1, 4: 2}
    retain(store, Retention(1))
    assert attempts(store) == {4: 1}


def test_a_start_that_is_superseded_meanwhile_deletes_nothing_more(store: Store) -> None:
    saved(store, 2, 4, 6)
    old = Start.begin(store, {})
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            Start.begin(store, {})
        old.check()

    with pytest.raises(Superseded):
        retain(store, Retention(1), before=1, check=check)
    assert steps(store) == [6, 2]


def test_a_deletion_that_is_cut_off_leaves_no_manifest_without_files(store: Store) -> None:
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
