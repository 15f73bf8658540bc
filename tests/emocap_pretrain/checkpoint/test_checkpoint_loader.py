import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from checkpoint_cases import (
    ALONE,
    FILES,
    attempt_of,
    content,
    damage,
    everything,
    flip,
    objects,
    read,
    resumed_step,
    saved,
    steps,
)
from emocap_shards.errors import StoreError
from emocap_shards.store import Store, open_store
from pretrain_fakes import ThreadRanks, on_ranks

from emocap_pretrain.checkpoint.layout import WEIGHTS, manifest_of
from emocap_pretrain.checkpoint.loader import downloaded, resumable
from emocap_pretrain.checkpoint.manifest import Checkpoint
from emocap_pretrain.checkpoint.verify import PIECE_BYTES, damaged_files, is_intact
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.documents import Status


@dataclass
class FaultyDownloads:
    """Forwards calls to a store, and calls `on_arrival` with the first `times` downloaded files of `folder`."""

    store: Store
    folder: str
    on_arrival: Callable[[Path], object]
    times: int = 10**9
    got: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def get_file(self, path: str, local_path: Path) -> None:
        self.store.get_file(path, local_path)
        self.got.append(path)
        if path.startswith(self.folder) and self.times:
            self.times -= 1
            self.on_arrival(local_path)


def flip_a_bit(path: Path) -> None:
    path.write_bytes(flip(path.read_bytes()))


def test_a_run_without_checkpoints_has_none_to_resume(store: Store) -> None:
    assert steps(store) == []
    assert resumed_step(store) is None


def test_temporary_folders_are_gone_afterwards(store: Store, own_tmpdir: Path) -> None:
    _, newest = saved(store, 2, 4)
    damage(store, f"{newest.folder}/{WEIGHTS}", "flipped")
    with downloaded(store, saved(store, 6)[0], lambda _: True):
        assert len(list(own_tmpdir.iterdir())) == 1
    assert resumed_step(store) == 6
    assert list(own_tmpdir.iterdir()) == []


def test_files_of_a_damaged_checkpoint_are_deleted_from_the_local_disk(store: Store, own_tmpdir: Path) -> None:
    _, newest = saved(store, 2, 4)
    damage(store, f"{newest.folder}/{WEIGHTS}", "flipped")
    with resumable(store, ALONE, everything) as found:
        assert found
        assert len(list(own_tmpdir.iterdir())) == 1


def test_each_rank_downloads_only_the_files_it_selects(store: Store) -> None:
    saved(store, 2)

    def act(world: ThreadRanks) -> set[str]:
        own = f"engine/rank-{world.rank:05d}.safetensors"
        with resumable(store, world, lambda _, path: path == own or world.is_main) as found:
            assert found
            return set(read(found[1]))

    assert on_ranks(2, act) == [set(FILES), {"engine/rank-00001.safetensors"}]


@pytest.mark.parametrize("how", ["flipped", "missing", "truncated"])
@pytest.mark.parametrize("name", FILES)
def test_damage_of_any_file_is_an_error_that_names_the_file(store: Store, name: str, how: str) -> None:
    (checkpoint,) = saved(store, 4)
    assert damaged_files(store, checkpoint) == []
    damage(store, f"{checkpoint.folder}/{name}", how)
    with pytest.raises(CheckpointError, match=name), downloaded(store, checkpoint, lambda _: True):
        pass
    assert damaged_files(store, checkpoint) == [name]


@pytest.mark.parametrize("how", ["flipped", "missing", "truncated"])
@pytest.mark.parametrize("name", FILES)
def test_resuming_skips_a_damaged_checkpoint_warns_and_changes_nothing(
    store: Store, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, newest = saved(store, 2, 4)
    damage(store, f"{newest.folder}/{name}", how)
    before = objects(store)
    assert resumed_step(store) == 2
    assert objects(store) == before
    assert "step 4" in caplog.text
    assert name in caplog.text


def test_resuming_skips_several_damaged_checkpoints_and_returns_them(store: Store) -> None:
    _, third, fourth, fifth = saved(store, 2, 3, 4, 5)
    damage(store, f"{third.folder}/{WEIGHTS}", "missing")
    damage(store, f"{fourth.folder}/{WEIGHTS}", "flipped")
    damage(store, f"{fifth.folder}/{FILES[0]}", "flipped")
    with resumable(store, ALONE, everything) as found:
        assert found
        assert found.checkpoint.step == 2
        assert found.refused == (fifth.attempt, fourth.attempt)
    assert steps(store) == [5, 4, 3, 2]


@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_a_run_whose_checkpoints_are_all_damaged_ends_with_an_error_that_says_what_to_do(
    store: Store, how: str
) -> None:
    for checkpoint in saved(store, 2, 4):
        damage(store, f"{checkpoint.folder}/{WEIGHTS}", how)
    store.put(manifest_of(6), b"torn")
    before = objects(store)
    with pytest.raises(CheckpointError, match=r"every checkpoint .*step 6: manifest.json; step 4: .*verify") as caught:
        resumed_step(store)
    assert "begin anew with another url" in str(caught.value)
    assert objects(store) == before


def test_a_run_that_has_reported_a_checkpoint_does_not_begin_anew_when_none_is_listed(store: Store) -> None:
    attempt = Attempt.begin(store)
    attempt.write_status(Status(at=0.0, step=5))
    assert resumed_step(store) is None
    attempt.write_status(Status(at=0.0, step=5, checkpoint=4))
    Attempt.begin(store)
    with pytest.raises(CheckpointError, match="has committed a checkpoint of step 4, and none is listed now"):
        resumed_step(store)


@pytest.mark.parametrize("harm", [flip, lambda data: data[:0], lambda data: data[:-1], lambda _: b"1"])
def test_a_damaged_manifest_makes_only_its_own_checkpoint_unusable(
    store: Store, harm: Callable[[bytes], bytes]
) -> None:
    saved(store, 2, 4)
    store.put(manifest_of(4), harm(store.read(manifest_of(4))))
    assert resumed_step(store) == 2
    saved(store, 4)
    assert resumed_step(store) == 4


def test_damage_in_the_store_makes_all_ranks_take_the_previous_checkpoint(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    _, newest = saved(store, 2, 4)
    damage(store, f"{newest.folder}/{FILES[1]}", "flipped")

    def act(world: ThreadRanks) -> int | None:
        own_file = FILES[1 - world.rank]  # Rank 0 reads the damaged file, rank 1 does not.
        with resumable(store, world, lambda _, path: path == own_file) as found:
            return found[0].step if found else None

    before = objects(store)
    assert on_ranks(2, act) == [2, 2]
    assert objects(store) == before


def test_a_file_whose_bits_flip_in_transit_is_read_again(store: Store) -> None:
    _, newest = saved(store, 2, 4)
    assert resumed_step(FaultyDownloads(store, newest.folder, flip_a_bit, times=2)) == 4
    assert steps(store) == [4, 2]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_that_changes_bytes_is_named_and_no_checkpoint_is_refused(tmp_path: Path, rank: int) -> None:
    store = open_store(tmp_path)
    _, newest = saved(store, 2, 4)
    damaging = FaultyDownloads(store, newest.folder, flip_a_bit)

    def act(world: ThreadRanks) -> None:
        with resumable(damaging if world.rank == rank else store, world, everything):
            pass

    for outcome in on_ranks(2, act):
        assert isinstance(outcome, CheckpointError)
        assert f"rank {rank} on " in str(outcome)
        assert "than the store holds" in str(outcome)
    assert steps(store) == [4, 2]


@pytest.mark.parametrize("error", [StoreError("no answer"), OSError("no such device")])
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_while_downloading_is_raised_on_all_ranks_and_deletes_nothing(
    tmp_path: Path, rank: int, error: Exception
) -> None:
    store = open_store(tmp_path)
    _, newest = saved(store, 2, 4)

    def fail(_: Path) -> None:
        raise error

    def act(world: ThreadRanks) -> None:
        own_store = FaultyDownloads(store, newest.folder, fail) if world.rank == rank else store
        with resumable(own_store, world, everything):
            pass

    for outcome in on_ranks(2, act):
        assert isinstance(outcome, CheckpointError)
        assert str(outcome) == f"the checkpoint of step 4 could not be read: rank {rank}: {error}"
    assert steps(store) == [4, 2]
    assert resumed_step(store) == 4


def test_a_newer_checkpoint_that_is_committed_while_an_older_one_is_read_is_not_lost(store: Store) -> None:
    """While step 4 is read, a superseded attempt commits step 6 and deletes step 4. The reader then takes step 6."""
    _, older = saved(store, 2, 4)

    def overtake(_: Path) -> None:
        saved(store, 6)
        store.delete(manifest_of(4))
        store.delete_tree(older.folder)

    faulty = FaultyDownloads(
        store, f"{older.folder}/{FILES[0]}", lambda path: overtake(path) or flip_a_bit(path), times=1
    )
    assert resumed_step(faulty) == 6
    assert steps(store) == [6, 2]


def test_a_file_that_grew_is_not_downloaded(store: Store) -> None:
    _, newest = saved(store, 2, 4)
    store.put(f"{newest.folder}/{FILES[0]}", bytes(10_000))
    counting = FaultyDownloads(store, newest.folder, lambda _: None)
    assert resumed_step(counting) == 2
    assert not any(path.startswith(newest.folder) for path in counting.got)


def test_files_of_many_pieces_are_verified_completely(tmp_path: Path) -> None:
    from emocap_pretrain.checkpoint.commit import commit

    store, data = open_store(tmp_path / "run"), random.Random(0).randbytes(2 * PIECE_BYTES)

    def write(folder: Path) -> None:
        (folder / "exact").write_bytes(data)
        (folder / "empty").write_bytes(b"")
        (folder / "odd").write_bytes(data + b"1")

    checkpoint: Checkpoint = commit(store, 2, {}, write, ALONE, attempt_of(store))
    bytes_read: list[int] = []
    assert damaged_files(store, checkpoint, progress=bytes_read.append) == []
    assert sum(bytes_read) == checkpoint.bytes == 4 * PIECE_BYTES + 1
    for file, harm in zip(checkpoint.files, (data[:-1], data + b"2", b"1"), strict=False):
        store.put(f"{checkpoint.folder}/{file.path}", harm)
    assert not any(is_intact(store, checkpoint, file) for file in checkpoint.files)


def test_a_selected_file_is_downloaded_with_the_right_bytes(store: Store) -> None:
    (checkpoint,) = saved(store, 4)
    with downloaded(store, checkpoint, WEIGHTS.__eq__) as folder:
        assert read(folder) == {WEIGHTS: content(4, WEIGHTS)}
