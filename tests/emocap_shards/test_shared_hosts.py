"""Tests that a pipe, a link or a file that another user has put in place of ours is an error, and that no call blocks
on it.

A call that blocks hangs until the limit of pytest-timeout.
"""

import os
import shutil
import socket
import stat
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from cache_cases import Fetch, files, segments
from emocap_shards.cache import Cache
from emocap_shards.errors import ManifestError, StoreError
from emocap_shards.index import read_index
from emocap_shards.local_files import UnsafePath, make_own_folder, open_own, open_regular
from emocap_shards.manifest import read_manifest
from emocap_shards.reader import Reader
from emocap_shards.segment import ShardRows
from emocap_shards.store import open_store
from emocap_shards.writer import write_shards
from shard_cases import records

STRANGER = 4242
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to another user")
KINDS = ["pipe", "socket", pytest.param("device", marks=needs_root)]
NAMED = {"pipe": "a named pipe", "socket": "a socket", "device": "a device"}


def place(kind: str, path: Path) -> Path:
    """Puts something that is not a regular file at the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with closing(socket.socket(socket.AF_UNIX)) as listener:
            os.chdir(path.parent)  # an address is short
            listener.bind(path.name)
    else:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero, which has no end
    return path


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("dataset"))
    write_shards(records(8), folder, samples_per_shard=8)
    return folder


@pytest.fixture
def rows(url):
    """Returns all samples of the only shard."""
    store = open_store(url)
    shard = read_manifest(store).shards[0]
    return ShardRows(shard, read_index(store, shard), np.arange(shard.samples))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("act", ["read", "read_versioned", "read_range", "get_file", "put_if_match"])
def test_what_is_no_regular_file_is_named_and_never_waited_for(tmp_path, kind, act):
    store = open_store(tmp_path / "root")
    place(kind, tmp_path / "root" / "x")
    arguments = {"read_range": (0, 5), "get_file": (tmp_path / "back",), "put_if_match": (b"new", "v")}.get(act, ())
    if act == "put_if_match":
        (tmp_path / "root" / "x").rename(tmp_path / "root" / ".x.lock")
    with pytest.raises(StoreError, match=rf"it is {NAMED[kind]}, where a regular file must lie"):
        getattr(store, act)("x", *arguments)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_to_store_that_is_no_regular_file_is_named(tmp_path, kind):
    with pytest.raises(StoreError, match="where a regular file must lie"):
        open_store(tmp_path / "root").put_file("x", place(kind, tmp_path / "here"))
    assert open_store(tmp_path / "root").list() == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_an_index_and_a_shard_that_are_no_regular_files_are_named(url, tmp_path, kind):
    folder = tmp_path / "data"
    shutil.copytree(url, folder)
    manifest = read_manifest(folder)

    def read():
        return Reader(open_store(folder), manifest).fetch(np.array([0]))

    shard = manifest.shards[0]
    for name, act in ((shard.path, read), (shard.index_path, read), ("manifest.json", lambda: read_manifest(folder))):
        (folder / name).unlink()
        place(kind, folder / name)
        with pytest.raises((StoreError, ManifestError), match=rf"{name}.*where a regular file must lie"):
            act()


def test_links_among_the_objects_are_followed(tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"data")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "x").symlink_to(tmp_path / "elsewhere")
    store = open_store(tmp_path / "root")
    assert store.read("x") == b"data"
    assert [entry.size for entry in store.list()] == [4]
    store.put("x", b"new")
    assert (tmp_path / "elsewhere").read_bytes() == b"data"


def test_a_link_at_the_place_of_a_lock_is_not_followed(tmp_path):
    store = open_store(tmp_path / "root")
    store.put("x", b"old")
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "root" / ".x.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match=r"it is a link, which is not followed here: delete the link"):
        store.put_if_match("x", b"new", store.read_versioned("x")[1])
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert store.read("x") == b"old"


def test_the_folder_of_a_cache_is_for_its_user_alone(url, rows, tmp_path):
    cache = Cache(str(tmp_path / "a" / "cache"), 1 << 20)
    cache.fill(segments(rows), Fetch(url))
    assert files(cache)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (Path(cache.folder), *Path(cache.folder).rglob("*"))}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


@pytest.mark.parametrize("mode", [0o777, 0o720, 0o1777])
def test_a_cache_that_others_may_write_to_is_refused(url, rows, tmp_path, mode):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    fetch = Fetch(url)
    with pytest.raises(StoreError, match=rf"the cache .*other users may write to the folder \(mode {mode:o}\)"):
        Cache(str(tmp_path / "cache"), 1 << 20).fill(segments(rows), fetch)
    assert not fetch.calls


@needs_root
def test_a_cache_of_another_user_is_refused_and_so_is_a_link_of_theirs_to_one_of_ours(url, rows, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o700)
    os.chown(tmp_path / "cache", STRANGER, STRANGER)
    (tmp_path / "ours").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("ours")
    os.lchown(tmp_path / "link", STRANGER, STRANGER)
    for name in ("cache", "link"):
        with pytest.raises(StoreError, match=rf"belongs to uid {STRANGER}, not to root .*name a folder of your own"):
            Cache(str(tmp_path / name), 1 << 20).fill(segments(rows), Fetch(url))


def test_a_link_of_our_own_to_a_folder_of_our_own_is_a_cache(url, rows, tmp_path):
    (tmp_path / "ours").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("ours")
    cache = Cache(str(tmp_path / "link"), 1 << 20)
    cache.fill(segments(rows), Fetch(url))
    assert files(cache)


@pytest.mark.parametrize("kind", [*KINDS, "link"])
@pytest.mark.parametrize("name", ["ledger", "segment", "part"])
def test_a_cache_with_something_foreign_in_it_costs_no_wrong_byte_and_no_foreign_file(url, rows, tmp_path, kind, name):
    cache, wanted = Cache(str(tmp_path / "cache"), 1 << 20), segments(rows)
    make_own_folder(cache.folder)
    first = cache._file(wanted[0])
    path = {"ledger": Path(cache.folder, "ledger"), "segment": first, "part": first.with_suffix(".part")}[name]
    (tmp_path / "precious").write_bytes(b"precious")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(tmp_path / "precious") if kind == "link" else place(kind, path)
    if name == "ledger":
        with pytest.raises(StoreError, match=r"the cache .*cannot be used \(.*ledger: it is a"):
            cache.fill(wanted, Fetch(url))
    else:
        cache.fill(wanted, Fetch(url))
        assert cache.read(wanted[0], rows) is None
    assert (tmp_path / "precious").read_bytes() == b"precious"


@needs_root
def test_a_segment_of_another_user_is_not_read(url, rows, tmp_path):
    cache, (wanted, *_) = Cache(str(tmp_path / "cache"), 1 << 20), segments(rows)
    cache.fill([wanted], Fetch(url))
    assert cache.read(wanted, wanted.samples) is not None
    os.chown(cache._file(wanted), STRANGER, STRANGER)
    assert cache.read(wanted, wanted.samples) is None


def test_a_file_with_a_second_name_is_not_ours_alone(tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "lock").hardlink_to(tmp_path / "precious")
    with pytest.raises(UnsafePath, match="it has a second name, so others may change it"):
        open_own(tmp_path / "lock", os.O_RDWR)


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
