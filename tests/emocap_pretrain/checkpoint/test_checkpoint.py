import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from emocap_shards.errors import StoreError
from emocap_shards.store import Store, open_store
from pretrain_fakes import ThreadWorld, on_ranks

from emocap_pretrain.checkpoint import checkpoint as checkpoints
from emocap_pretrain.checkpoint.checkpoint import Checkpoint, committed, downloaded, resumable, retain, save
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.runtime import Rank
from emocap_pretrain.world import World

ALONE = World(Rank(), "cpu", None)
FILES = ("engine/state/optimizer.pt", "engine/state/weights.pt", checkpoints.WEIGHTS, checkpoints.TOKENIZER)


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    place = open_store(tmp_path / "run" if request.param == "folder" else f"memory://{uuid.uuid4().hex}")
    yield place
    place.delete_tree("checkpoints")


@dataclass
class FailingStore:
    """Raises at the first write to a path that ends in `at`, then works."""

    store: Store
    at: str
    error: BaseException

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def put_file(self, path: str, local_path: Path) -> None:
        self._stumble(path)
        self.store.put_file(path, local_path)

    def put_if_absent(self, path: str, data: bytes) -> None:
        self._stumble(path)
        self.store.put_if_absent(path, data)

    def _stumble(self, path: str) -> None:
        if path.endswith(self.at):
            raise self.error


class Killed(BaseException):
    """Ends a rank as no handler expects it."""


def content(step: int, name: str) -> bytes:
    return f"{name} of step {step} ".encode() * 20


def writer(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in FILES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content(step, name))

    return write


def saved(store: Store, *steps: int) -> list[Checkpoint]:
    return [save(store, step, {"cursor": step}, writer(step), ALONE) for step in steps]


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resumed_step(store: Store) -> int | None:
    with resumable(store, ALONE) as found:
        return found[0].step if found else None


def steps(store: Store) -> list[int]:
    return [each.step for each in committed(store)]


def flip(data: bytes) -> bytes:
    return data[:-7] + bytes([data[-7] ^ 1]) + data[-6:]


def damage(store: Store, path: str, how: str) -> None:
    data = store.read(path)
    store.delete(path)
    if how != "missing":
        store.put(path, flip(data) if how == "flipped" else data[:-1])


def test_what_was_saved_comes_back_byte_for_byte(store: Store) -> None:
    (checkpoint,) = saved(store, 4)
    assert committed(store) == [checkpoint]
    with downloaded(store, checkpoint, lambda _: True) as folder:
        assert read(folder) == {name: content(4, name) for name in FILES}
    with resumable(store, ALONE) as found:
        assert found is not None
        assert found[0] == checkpoint
        assert found[0].state == {"cursor": 4}
        assert read(found[1])["engine/state/weights.pt"] == content(4, "engine/state/weights.pt")


def test_a_run_without_checkpoints_has_none_to_resume(store: Store) -> None:
    assert committed(store) == []
    assert resumed_step(store) is None


def test_the_newest_comes_first_whatever_the_number_of_digits(store: Store) -> None:
    saved(store, 2, 10, 9, 123_456_789)
    assert steps(store) == [123_456_789, 10, 9, 2]


def test_temporary_folders_are_gone_afterwards(store: Store) -> None:
    (checkpoint,) = saved(store, 4)
    with downloaded(store, checkpoint, lambda _: True) as folder:
        pass
    assert not folder.exists()


def test_every_rank_s_files_are_in_one_manifest(store: Store) -> None:
    def act(world: ThreadWorld) -> Checkpoint:
        def write(folder: Path) -> None:
            (folder / f"rank-{world.place.rank}").write_bytes(bytes([world.place.rank]))

        return save(store, 3, {}, write, world)

    first, second = on_ranks(2, act)
    assert first == second == committed(store)[0]
    assert [file.path for file in first.files] == ["rank-0", "rank-1"]


@pytest.mark.parametrize("broken", [0, 1])
def test_a_write_that_raises_on_one_rank_leaves_no_manifest(store: Store, broken: int) -> None:
    def act(world: ThreadWorld) -> None:
        def write(folder: Path) -> None:
            writer(2)(folder)
            if world.place.rank == broken:
                raise OSError("no space left")

        save(store, 2, {}, write, world)

    outcomes = on_ranks(2, act)
    assert all(isinstance(each, Exception) for each in outcomes)
    assert "no space left" in str(outcomes[broken])
    assert committed(store) == []


@pytest.mark.parametrize("broken", [0, 1])
def test_an_upload_that_fails_on_one_rank_is_every_rank_s_error_and_names_it(store: Store, broken: int) -> None:
    def act(world: ThreadWorld) -> None:
        error = StoreError("the bucket is full")
        its = FailingStore(store, "optimizer.pt", error) if world.place.rank == broken else store
        save(its, 2, {}, writer(2), world)

    for outcome in on_ranks(2, act):
        assert isinstance(outcome, CheckpointError)
        assert f"rank {broken}" in str(outcome)
        assert "the bucket is full" in str(outcome)
    assert committed(store) == []


def test_a_manifest_that_cannot_be_put_is_every_rank_s_error(store: Store) -> None:
    def act(world: ThreadWorld) -> None:
        save(FailingStore(store, checkpoints.MANIFEST, StoreError("unreachable")), 2, {}, writer(2), world)

    assert [type(each) for each in on_ranks(2, act)] == [CheckpointError, CheckpointError]
    assert committed(store) == []


@pytest.mark.parametrize("at", ["optimizer.pt", checkpoints.TOKENIZER, checkpoints.MANIFEST])
def test_a_kill_before_the_manifest_leaves_nothing_that_is_believed(store: Store, at: str) -> None:
    saved(store, 2)
    with pytest.raises(Killed):
        save(FailingStore(store, at, Killed()), 4, {}, writer(4), ALONE)
    assert steps(store) == [2]
    assert resumed_step(store) == 2


def test_a_step_that_was_cut_off_can_be_saved_again(store: Store) -> None:
    with pytest.raises(Killed):
        save(FailingStore(store, checkpoints.MANIFEST, Killed()), 4, {}, writer(4), ALONE)
    saved(store, 4)
    assert resumed_step(store) == 4


def test_the_manifest_is_put_once_and_a_late_attempt_loses(store: Store) -> None:
    (first,) = saved(store, 4)
    with pytest.raises(CheckpointError, match="exists already"):
        saved(store, 4)
    assert committed(store) == [first]
    assert resumed_step(store) == 4


@pytest.mark.parametrize("how", ["flipped", "missing", "truncated"])
@pytest.mark.parametrize("name", FILES)
def test_damage_of_any_file_is_refused_and_named(store: Store, name: str, how: str) -> None:
    (checkpoint,) = saved(store, 4)
    damage(store, f"{checkpoint.folder}/{name}", how)
    with pytest.raises(CheckpointError, match=name), downloaded(store, checkpoint, lambda _: True):
        pass


@pytest.mark.parametrize("how", ["flipped", "missing", "truncated"])
@pytest.mark.parametrize("name", FILES)
def test_resuming_falls_back_behind_damage_and_deletes_it(
    store: Store, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, newest = saved(store, 2, 4)
    damage(store, f"{newest.folder}/{name}", how)
    assert resumed_step(store) == 2
    assert steps(store) == [2]
    assert store.list("checkpoints/step-00000004") == []
    assert "step 4" in caplog.text


def test_resuming_passes_over_several_damaged_ones(store: Store) -> None:
    _, third, fourth = saved(store, 2, 3, 4)
    damage(store, f"{third.folder}/engine/state/weights.pt", "missing")
    damage(store, f"{fourth.folder}/engine/state/weights.pt", "flipped")
    assert resumed_step(store) == 2
    assert steps(store) == [2]


def test_a_manifest_with_any_byte_flipped_is_not_believed() -> None:
    whole = Checkpoint(4, "attempt", (checkpoints.File("a", 1, "0" * 64),), {"cursor": {"epoch": 1}}).dump()
    assert Checkpoint.parse(whole) is not None
    for place in range(len(whole)):
        changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        assert Checkpoint.parse(changed) is None, f"byte {place}: {whole[place : place + 1]!r}"


@pytest.mark.parametrize("harm", [flip, lambda data: data[:0], lambda data: data[:-1], lambda _: b"1"])
def test_a_damaged_manifest_is_not_in_the_way_of_a_new_one(store: Store, harm: Callable[[bytes], bytes]) -> None:
    saved(store, 2, 4)
    path = "checkpoints/step-00000004/manifest.json"
    store.put(path, harm(store.read(path)))
    assert steps(store) == [2]
    assert resumed_step(store) == 2
    saved(store, 4)
    assert resumed_step(store) == 4


@dataclass
class BadLine:
    """What one rank's download of a checkpoint comes to."""

    store: Store
    folder: str
    arrive: Callable[[Path], None]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def get_file(self, path: str, local_path: Path) -> None:
        self.store.get_file(path, local_path)
        if path.startswith(self.folder):
            self.arrive(local_path)


@pytest.mark.parametrize("rank", [0, 1])
def test_damage_that_one_rank_alone_meets_sends_all_of_them_back(tmp_path: Path, rank: int) -> None:
    store = open_store(tmp_path)
    _, newest = saved(store, 2, 4)
    damaging = BadLine(store, newest.folder, lambda path: path.write_bytes(flip(path.read_bytes())) and None)

    def act(world: ThreadWorld) -> int | None:
        with resumable(damaging if world.place.rank == rank else store, world) as found:
            return found[0].step if found else None

    assert on_ranks(2, act) == [2, 2]
    assert steps(store) == [2]


@pytest.mark.parametrize("error", [StoreError("no answer"), OSError("no space left on the local disk")])
@pytest.mark.parametrize("rank", [0, 1])
def test_trouble_on_the_way_is_every_rank_s_error_and_deletes_nothing(
    tmp_path: Path, rank: int, error: Exception
) -> None:
    store = open_store(tmp_path)
    _, newest = saved(store, 2, 4)

    def fail(_: Path) -> None:
        raise error

    failing = BadLine(store, newest.folder, fail)

    def act(world: ThreadWorld) -> None:
        with resumable(failing if world.place.rank == rank else store, world):
            pass

    for outcome in on_ranks(2, act):
        assert isinstance(outcome, CheckpointError)
        assert f"rank {rank}" in str(outcome)
        assert str(error) in str(outcome)
    assert steps(store) == [4, 2]
    assert resumed_step(store) == 4


def test_a_checkpoint_of_another_schema_is_refused_and_kept(store: Store) -> None:
    checkpoint = Checkpoint(4, "attempt", (), {}, schema=2)
    store.put("checkpoints/step-00000004/manifest.json", checkpoint.dump())
    with pytest.raises(CheckpointError, match="schema 2"):
        resumed_step(store)
    assert store.exists("checkpoints/step-00000004/manifest.json")


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(1, None, [12]), (3, None, [12, 10, 8]), (1, 6, [12, 6]), (2, 4, [12, 10, 8, 4]), (9, None, [12, 10, 8, 6, 4, 2])],
)
def test_retention_keeps_the_newest_and_the_multiples(
    store: Store, keep_last: int, keep_every: int | None, kept: list[int]
) -> None:
    saved(store, 2, 4, 6, 8, 10, 12)
    retain(store, keep_last=keep_last, keep_every=keep_every)
    assert steps(store) == kept
    folders = {entry.path.split("/")[1] for entry in store.list("checkpoints")}
    assert folders == {f"step-{step:08d}" for step in kept}
    for checkpoint in committed(store):
        with downloaded(store, checkpoint, lambda _: True) as folder:
            assert read(folder) == {name: content(checkpoint.step, name) for name in FILES}


def test_retention_removes_what_unfinished_attempts_left(store: Store) -> None:
    for step in (2, 4):
        with pytest.raises(Killed):
            save(FailingStore(store, checkpoints.MANIFEST, Killed()), step, {}, writer(step), ALONE)
    (checkpoint,) = saved(store, 4)
    retain(store, keep_last=1, keep_every=None)
    expected = {f"{checkpoint.folder}/{name}" for name in FILES} | {"checkpoints/step-00000004/manifest.json"}
    assert {entry.path for entry in store.list("checkpoints")} == expected


def test_the_digest_of_a_checkpoint_depends_on_every_byte_of_it(store: Store) -> None:
    (first,) = saved(store, 4)
    checkpoints.forget(store, 4)

    def other(folder: Path) -> None:
        writer(4)(folder)
        (folder / FILES[0]).write_bytes(flip(content(4, FILES[0])))

    second = save(store, 4, {"cursor": 4}, other, ALONE)
    same = Checkpoint(4, first.attempt, second.files, first.state)
    assert same.digest != first.digest
