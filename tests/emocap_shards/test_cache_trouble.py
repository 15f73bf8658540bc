"""Tests a cache whose disk fails or whose locks are held."""

import errno
import os
import signal
import time
from pathlib import Path

import emocap_shards.cache as cache_module
import emocap_shards.segment as segment_module
import numpy as np
import pytest
from cache_cases import SAMPLES, SEGMENT, Counted, Fetch, files, segments, size_of, taken
from emocap_shards.cache import Cache
from emocap_shards.cache_ledger import CacheLedger
from emocap_shards.errors import StoreError
from emocap_shards.index import read_index
from emocap_shards.manifest import read_manifest
from emocap_shards.reader import Reader
from emocap_shards.sample import Encoded
from emocap_shards.segment import ShardRows
from emocap_shards.store import open_store
from emocap_shards.writer import write_shards
from shard_cases import records


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    monkeypatch.setattr(segment_module, "SEGMENT_BYTES", SEGMENT)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("dataset"))
    write_shards(records(SAMPLES), folder, samples_per_shard=10)
    return folder


@pytest.fixture(scope="module")
def far():
    """Returns the URL of the same dataset in memory, for tests in which the store does not call the disk."""
    write_shards(records(SAMPLES), "memory://test-cache", samples_per_shard=10)
    return "memory://test-cache"


@pytest.fixture
def cache(tmp_path):
    return Cache(str(tmp_path / "cache"), 1 << 30)


@pytest.fixture
def rows(url):
    """Returns all samples of the first shard."""
    store = open_store(url)
    shard = read_manifest(store).shards[0]
    return ShardRows(shard, read_index(store, shard), np.arange(shard.samples))


def refuse(monkeypatch, number, *calls):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    for call in calls:
        monkeypatch.setattr(os, call, refused)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_is_said_once_and_costs_no_sample_and_no_byte_twice(
    cache, url, monkeypatch, caplog, number
):
    store = Counted(url)
    reader = Reader(store, read_manifest(url), cache)
    assert cache._keeps()
    refuse(monkeypatch, number, "pwrite")
    assert [sample.index for sample in reader.fetch(np.arange(SAMPLES))] == list(range(SAMPLES))
    whole = store.bytes
    reader.warm(np.arange(SAMPLES))
    assert store.bytes == whole
    for index in range(SAMPLES):
        reader.fetch(np.array([index]))
    assert store.bytes == 2 * whole
    assert caplog.text.count(os.strerror(number)) == len(caplog.records) == 1
    assert files(cache) == files(cache, ".part") == []


def test_a_disk_that_refuses_is_tried_again_later(cache, rows, url, monkeypatch):
    assert cache._keeps()
    with monkeypatch.context() as full:
        refuse(full, errno.ENOSPC, "pwrite")
        cache.fill(segments(rows), Fetch(url))
    fetch = Fetch(url)
    cache.fill(segments(rows), fetch)
    assert fetch.calls == []
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + cache_module.REST_S + 1)
    cache.fill(segments(rows), fetch)
    assert len(files(cache)) == len(segments(rows))


def test_after_a_disk_that_was_full_at_first_no_other_fault_ends_the_run(cache, rows, url, monkeypatch):
    now, fetch = time.monotonic(), Fetch(url)
    for later_s, number in ((0, errno.ENOSPC), (cache_module.REST_S + 1, errno.EIO)):
        monkeypatch.setattr(time, "monotonic", lambda later_s=later_s: now + later_s)
        refuse(monkeypatch, number, "mkdir")
        cache.fill(segments(rows), fetch)
    assert fetch.calls == []


def test_a_full_disk_makes_room_by_half_of_the_cache_first(cache, rows, url, monkeypatch, caplog):
    *old, new = segments(rows)
    cache.fill(old, Fetch(url))
    held_bytes, honest = taken(cache), os.pwrite

    def full(file, data, offset):
        if len(data) > 100 and taken_unlocked(cache) > held_bytes // 2 + len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        return honest(file, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    cache.fill([new], Fetch(url))
    assert new.name in {path.stem for path in files(cache)}
    assert 1 < len(files(cache)) < len(old)
    assert not caplog.records


def taken_unlocked(cache):
    return sum(map(size_of, (*files(cache), *files(cache, ".part"))))


@pytest.mark.parametrize("call", ["open", "mkdir", "utime", "pread"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EMFILE])
def test_no_call_that_fails_later_ends_the_run(cache, far, monkeypatch, call, number):
    reader = Reader(open_store(far), read_manifest(far), cache)
    reader.fetch(np.arange(20))
    refuse(monkeypatch, number, call)
    assert [sample.index for sample in reader.fetch(np.arange(SAMPLES))] == list(range(SAMPLES))


def test_a_child_that_was_forked_in_the_middle_of_a_fetch_holds_nothing(cache, rows, url):
    children = []

    def forks(_, __):
        children.append(os.fork())
        if children[-1] == 0:
            time.sleep(60)
            os._exit(0)
        raise StoreError("the store does not answer")

    try:
        with pytest.raises(StoreError):
            cache.fill(segments(rows), Fetch(url, forks))
        fetch = Fetch(url)
        assert len(list(cache.bring(segments(rows), fetch))) == len(segments(rows))
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_child_that_was_forked_while_the_ledger_was_held_does_not_hold_it(cache):
    assert cache._keeps()
    ledger = CacheLedger(Path(cache.folder), cache.max_bytes)
    with ledger.opened():
        child = os.fork()
        if child == 0:
            time.sleep(600)
            os._exit(0)
    try:
        with ledger.opened():  # or else a TimeoutError
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def held(cache, segment):
    """Yields a descriptor that holds the lock of a segment, as another process would."""
    file = cache._claim(segment)
    assert file is not None
    return file


def test_a_segment_that_nobody_brings_in_time_is_left_to_the_direct_read(cache, url, monkeypatch):
    monkeypatch.setattr(cache_module, "WAIT_S", 0.3)
    reader = Reader(open_store(url), read_manifest(url), cache)
    reader.fetch(np.arange(SAMPLES))
    (path, *_) = files(cache)
    path.unlink()
    name = path.stem
    rows = [ShardRows(shard, read_index(open_store(url), shard), np.arange(10)) for shard in read_manifest(url).shards]
    (segment,) = [segment for each in rows for segment in segments(each) if segment.name == name]
    file = held(cache, segment)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert all(isinstance(sample, Encoded) for sample in reader.fetch(np.arange(SAMPLES)))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    os.close(file)


def test_who_holds_a_segment_without_a_sign_of_life_is_not_waited_for(cache, rows, url):
    assert cache._keeps()
    files_held = [held(cache, segment) for segment in segments(rows)]
    for part in files(cache, ".part"):
        os.utime(part, (1, 1))
    assert list(cache.bring(segments(rows), Fetch(url), wait_s=3600)) == []
    for file in files_held:
        os.close(file)


def test_the_wait_for_others_has_a_limit(cache, rows, url):
    assert cache._keeps()
    files_held = [held(cache, segment) for segment in segments(rows)]
    begin = time.monotonic()
    assert list(cache.bring(segments(rows), Fetch(url), wait_s=0.3)) == []
    assert time.monotonic() - begin >= 0.3
    for file in files_held:
        os.close(file)
