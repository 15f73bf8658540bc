import hashlib
import multiprocessing
import os
import pickle
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from emocap_shards.errors import ConditionFailed, NotFound, StoreError
from emocap_shards.store import Entry, RetryConfig, Store, open_store
from fsspec.implementations.memory import MemoryFileSystem


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request, tmp_path):
    if request.param == "s3":
        return open_store(request.getfixturevalue("s3"))
    return open_store(tmp_path / "root" if request.param == "folder" else f"memory://{uuid.uuid4().hex}/root")


def test_it_has_the_shape_of_the_protocol(store):
    assert isinstance(store, Store)


def test_what_was_put_is_read(store):
    store.put("a/b.bin", b"old")
    store.put("a/b.bin", b"0123456789")
    assert store.read("a/b.bin") == b"0123456789"
    assert store.read_range("a/b.bin", 3, 6) == b"345"
    assert store.exists("a/b.bin")
    assert not store.exists("a")


def test_a_range_after_the_end_is_short_rather_than_an_error(store):
    store.put("x", b"0123456789")
    assert store.read_ranges([("x", 8, 20), ("x", 0, 2)]) == [b"89", b"01"]
    assert store.read_range("x", 30, 40) == b""


def test_files_travel_both_ways(store, tmp_path):
    data = bytes(range(256)) * 9000
    (tmp_path / "here").write_bytes(data)
    store.put_file("deep/down/there", tmp_path / "here")
    store.get_file("deep/down/there", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data


def test_the_age_of_an_object_is_told_by_the_store_s_clock(store, monkeypatch):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 7200)  # This computer's clock is wrong.
    store.put("a", b"1")
    assert 0 <= store.age_s("a") < 60
    with pytest.raises(NotFound):
        store.age_s("b")


def test_the_age_of_a_file_grows_and_a_new_version_is_young(tmp_path):
    store = open_store(tmp_path)
    store.put("a/b", b"1")
    os.utime(tmp_path / "a/b", (1e9, 1e9))
    assert store.age_s("a/b") > 1e6
    store.put("a/b", b"2")
    assert store.age_s("a/b") < 60
    assert [entry.path for entry in store.list()] == ["a/b"]


def test_a_listing_is_sorted_and_below_its_folder(store):
    for path in ("b/2", "b/1", "a", "bb/3", "b/c/4"):
        store.put(path, path.encode())
    assert store.list() == [Entry(path, len(path)) for path in ("a", "b/1", "b/2", "b/c/4", "bb/3")]
    assert [entry.path for entry in store.list("b")] == ["b/1", "b/2", "b/c/4"]
    assert store.list("nowhere") == store.list("a") == []


def test_deleting_leaves_the_rest_and_minds_no_absence(store):
    for path in ("b/1", "b/c/2", "bb/3"):
        store.put(path, b"x")
    store.delete("bb/3")
    store.delete("bb/3")
    assert [entry.path for entry in store.list()] == ["b/1", "b/c/2"]
    store.delete_tree("b")
    store.delete_tree("b")
    assert store.list() == []


@pytest.mark.parametrize("act", ["read", "read_versioned", "get_file", "read_range"])
def test_what_is_missing_is_named(store, act, tmp_path):
    arguments = {"get_file": [tmp_path / "back"], "read_range": [0, 4]}.get(act, [])
    with pytest.raises(NotFound, match=r"gone/file.*check the path"):
        getattr(store, act)("gone/file", *arguments)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../up", "a/../../up", "a//b", "."])
def test_no_path_leaves_the_root(store, path):
    with pytest.raises(StoreError, match="not a path below"):
        store.read(path)


def test_put_if_absent_does_not_overwrite(store):
    store.put_if_absent("x", b"first")
    with pytest.raises(ConditionFailed, match="x exists already"):
        store.put_if_absent("x", b"second")
    assert store.read("x") == b"first"
    assert store.honours_conditions()


def test_a_store_that_ignores_conditions_says_so(monkeypatch):
    store = open_store(f"memory://{uuid.uuid4().hex}")
    write = MemoryFileSystem.pipe_file
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lambda self, path, value, **_: write(self, path, value))
    assert not store.honours_conditions()
    assert store.list() == []


def test_put_if_match_wants_the_version_that_was_read(store):
    store.put("x", b"1")
    _, version = store.read_versioned("x")
    store.put_if_match("x", b"2", version)
    with pytest.raises(ConditionFailed, match="read it again"):
        store.put_if_match("x", b"3", version)
    with pytest.raises(ConditionFailed):
        store.put_if_match("y", b"3", version)
    assert store.read("x") == b"2"


def test_of_sixteen_racing_creators_one_wins(store):
    def create(number):
        try:
            store.put_if_absent("prize", str(number).encode())
        except ConditionFailed:
            return None
        return number

    with ThreadPoolExecutor(16) as pool:
        winners = [number for number in pool.map(create, range(16)) if number is not None]
    assert len(winners) == 1
    assert store.read("prize") == str(winners[0]).encode()


def test_racing_swaps_lose_no_update(store):
    store.put("count", b"0")

    def increment(_):
        while True:
            data, version = store.read_versioned("count")
            try:
                return store.put_if_match("count", str(int(data) + 1).encode(), version)
            except ConditionFailed:
                continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(increment, range(20)))
    assert store.read("count") == b"20"


def test_it_pickles(store):
    store.put("x", b"1")
    assert pickle.loads(pickle.dumps(store)).read("x") == b"1"


def test_a_failed_write_leaves_neither_target_nor_rest(tmp_path):
    store = open_store(tmp_path)
    with pytest.raises(NotFound):
        store.put_file("x", tmp_path / "no such file")
    assert list(tmp_path.iterdir()) == []


def test_half_written_files_are_not_listed(tmp_path):
    (tmp_path / ".x.3f2a").write_bytes(b"half")
    assert open_store(tmp_path).list() == []


def test_an_overwrite_is_never_seen_half_done(tmp_path):
    store = open_store(tmp_path)
    bodies = [bytes([number]) * 300_000 for number in range(2)]
    whole = {hashlib.sha256(body).digest() for body in bodies}
    store.put("x", bodies[0])
    with ThreadPoolExecutor(2) as pool:
        writer = pool.submit(lambda: [store.put("x", bodies[turn % 2]) for turn in range(40)])
        while not writer.done():
            assert hashlib.sha256(store.read("x")).digest() in whole


def test_plain_paths_and_file_urls_are_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_store("data") == open_store(f"file://{tmp_path}/data") == open_store(Path(tmp_path, "data"))


def test_an_unknown_protocol_is_refused_with_the_ones_that_work():
    with pytest.raises(StoreError, match=r"unknown protocol 's4'.*s3://"):
        open_store("s4://bucket/x")


def test_a_store_that_cannot_be_reached_is_an_error_and_not_an_empty_one(monkeypatch):
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    store = open_store(f"s3://bucket/{uuid.uuid4().hex}", patience=RetryConfig(deadline_s=0))
    for ask in (lambda: store.exists("x"), lambda: store.read("x"), store.list):
        with pytest.raises(StoreError, match="check endpoint, credentials and bucket"):
            ask()


def _read(store, pipe):
    pipe.send(store.read("x"))


def test_another_process_opens_its_own_connection(tmp_path):
    store = open_store(tmp_path)
    store.put("x", b"1")
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_read, args=(store, theirs))
    process.start()
    process.join(30)
    assert ours.recv() == b"1"
