import errno
import os
import signal
import time
from pathlib import Path

import pytest
from checkpoint_cases import ALONE, attempt_of
from emocap_shards.errors import StoreError
from emocap_shards.store import open_store
from safetensors import SafetensorError

from emocap_pretrain.checkpoint.commit import commit
from emocap_pretrain.checkpoint.manifest import committed
from emocap_pretrain.checkpoint.scratch import scratch
from emocap_pretrain.errors import CheckpointError


def aged(folder: Path) -> Path:
    """Sets the time of a folder's last change to an hour ago."""
    before = time.time() - 3600
    os.utime(folder, (before, before))
    return folder


def abandoned(own_tmpdir: Path) -> Path:
    """Makes a scratch folder in a process that is then killed, and returns it."""
    child = os.fork()
    if child == 0:
        with scratch() as folder:
            (folder / "gigabytes").write_bytes(b"x" * 1000)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = own_tmpdir.iterdir()
    return left


def test_the_folder_of_a_killed_process_is_deleted_by_the_next_one(own_tmpdir: Path) -> None:
    left = abandoned(own_tmpdir)
    with scratch():
        assert left.exists(), "it is too young: the process that made it may not have locked it yet"
    aged(left)
    with scratch() as folder:
        assert not left.exists()
        assert list(folder.iterdir()) == []
    assert list(own_tmpdir.iterdir()) == []


def test_the_folder_of_a_living_process_is_kept(own_tmpdir: Path) -> None:
    with scratch() as first:
        aged(first.parent)
        with scratch() as second:
            assert first.exists()
            assert first != second


def test_links_and_files_with_the_prefix_are_not_followed(own_tmpdir: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "lock").touch()
    link = own_tmpdir / "emocap-checkpoint-link"
    link.symlink_to(aged(tmp_path / "precious"))
    (own_tmpdir / "emocap-checkpoint-file").touch()
    aged(own_tmpdir / "emocap-checkpoint-file")
    with scratch():
        assert (tmp_path / "precious" / "lock").exists()


@pytest.mark.parametrize("is_foreign", [False, True])
def test_a_pipe_in_place_of_the_lock_does_not_block(own_tmpdir: Path, is_foreign: bool) -> None:
    if is_foreign and os.geteuid():
        pytest.skip("only root gives folders to another user")
    folder = own_tmpdir / "emocap-checkpoint-trap"
    folder.mkdir()
    os.mkfifo(folder / "lock")
    if is_foreign:
        os.chown(folder, 4242, 4242)
    aged(folder)
    with scratch():
        assert folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders to another user")
def test_a_folder_of_another_user_is_not_cleared(own_tmpdir: Path) -> None:
    left = aged(abandoned(own_tmpdir))
    os.chown(left, 4242, 4242)
    with scratch():
        assert left.exists()


FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=repr)
def test_a_full_disk_is_an_error_that_says_what_has_to_fit(tmp_path: Path, own_tmpdir: Path, error: Exception) -> None:
    store = open_store(tmp_path / "run")

    def write(folder: Path) -> None:
        (folder / "half").write_bytes(bytes(2_500_000))
        raise error

    with pytest.raises(CheckpointError, match=r"rank 0: .* is full: 2.5 MB of this rank's share .*TMPDIR") as caught:
        commit(store, 2, {}, write, ALONE, attempt_of(store))
    assert str(own_tmpdir) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert committed(store) == []
    assert list(own_tmpdir.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_device_that_is_really_full_is_recognized(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        with Path("/dev/full").open("wb", buffering=0) as device:
            device.write(b"x")

    with pytest.raises(CheckpointError, match="is full"):
        commit(open_store(tmp_path / "run"), 2, {}, write, ALONE, attempt_of(open_store(tmp_path / "run")))


def test_a_full_store_is_not_reported_as_a_full_local_disk() -> None:
    with pytest.raises(StoreError, match="no space there"), scratch():
        raise StoreError("cannot write 'x' in /mnt/store: no space there (os error 28)")
