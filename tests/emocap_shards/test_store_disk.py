import os
import resource
import shutil
import uuid

import pytest
from emocap_shards.errors import StoreError
from emocap_shards.store import open_store

LIMIT_BYTES = 200_000


@pytest.fixture
def full_disk():
    """Limits the size of files, so that the kernel refuses in the middle of a write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def not_root():
    """Makes the test run as another user for a while, because the permissions of files do not bind root."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65_534)
    yield
    os.seteuid(before)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, full_disk):
    store = open_store(tmp_path / "root")
    store.put("x", b"old")
    with pytest.raises(StoreError, match=r"cannot write 'x' in .*: a file must not grow so large there: free some"):
        store.put("x", bytes(LIMIT_BYTES + 1))
    assert store.read("x") == b"old"
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["x"]


@pytest.mark.parametrize("kind", ["folder", "memory", "s3"])
def test_a_disk_that_fills_while_a_file_is_fetched_is_named_and_leaves_nothing(kind, tmp_path, request):
    url = {"folder": tmp_path / "root", "memory": f"memory://{uuid.uuid4().hex}"}.get(kind)
    store = open_store(url or request.getfixturevalue("s3"))
    store.put("x", bytes(LIMIT_BYTES * 3))
    (tmp_path / "here").mkdir()
    request.getfixturevalue("full_disk")
    with pytest.raises(
        StoreError, match=r"cannot write '.*/here/back': a file must not grow so large there: free some"
    ):
        store.get_file("x", tmp_path / "here" / "back")
    assert list((tmp_path / "here").iterdir()) == []


def test_a_folder_that_may_not_be_written_is_named(tmp_path, not_root):
    with pytest.raises(StoreError, match=r"cannot write 'x' in .*: permission denied: check who owns the folder"):
        open_store(tmp_path / "root").put("x", b"1")


def test_a_missing_local_folder_is_not_a_missing_object(tmp_path, s3):
    store = open_store(s3)
    store.put("x", b"1")
    with pytest.raises(StoreError, match=r"cannot write '.*/nowhere/back': No such file or directory"):
        store.get_file("x", tmp_path / "nowhere" / "back")
    with pytest.raises(StoreError, match=r"no such local file, '.*/nothing'; check its path"):
        store.put_file("x", tmp_path / "nothing")


def test_what_another_process_deletes_during_a_listing_is_absent(tmp_path, monkeypatch):
    """A rank lists the checkpoints while another one deletes an old checkpoint."""
    store = open_store(tmp_path)
    for path in ("a/1", "b/1", "b/2", "c/deep/1", "d/1"):
        store.put(path, b"123")
    stat, scandir = os.stat, os.scandir

    def deleting_stat(path, *arguments, **options):
        if str(path) == f"{tmp_path}/b/1":
            (tmp_path / "b" / "1").unlink(missing_ok=True)
        return stat(path, *arguments, **options)

    def deleting_scandir(path):
        if str(path) == f"{tmp_path}/c/deep":
            shutil.rmtree(tmp_path / "c")
        return scandir(path)

    with monkeypatch.context() as deleting:
        deleting.setattr(os, "stat", deleting_stat)
        deleting.setattr(os, "scandir", deleting_scandir)
        assert [entry.path for entry in store.list()] == ["a/1", "b/2", "d/1"]
    assert store.list("gone") == []
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert [entry.path for entry in store.list()] == ["a/1", "b/2", "d/1"]


def test_a_folder_that_may_not_be_listed_is_an_error_and_not_empty(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    store.put("closed/1", b"1")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(StoreError, match=r"cannot list '' in .*permission denied"):
        store.list()
