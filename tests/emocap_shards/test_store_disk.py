import os
import resource
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
