import os
import pickle
import time
from pathlib import Path

import emocap_shards.segment as segment_module
import numpy as np
import pytest
from cache_cases import SAMPLES, SEGMENT, Counted, Fetch, files, segments, taken
from emocap_shards.background import concurrently
from emocap_shards.cache import Cache
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


@pytest.fixture
def cache(tmp_path):
    return Cache(str(tmp_path / "cache"), 1 << 30)


@pytest.fixture
def rows(url):
    """Returns all samples of the first shard."""
    store = open_store(url)
    shard = read_manifest(store).shards[0]
    return ShardRows(shard, read_index(store, shard), np.arange(shard.samples))


def blocks(cache, rows):
    return [block for segment, part in rows.segments() for block in cache.read(segment, part) or [None] * len(part)]


def test_segments_tile_a_shard_between_samples(rows):
    found = list(rows.segments())
    assert len(found) > 3
    assert np.concatenate([part.rows for _, part in found]).tolist() == list(range(10))
    assert all(segment.samples.rows.tolist() == part.rows.tolist() for segment, part in found)
    assert len({segment.name for segment, _ in found}) == len(found)


def test_a_few_samples_ask_for_the_segments_that_hold_them(rows):
    few = ShardRows(rows.shard, rows.index, np.array([1, 7]))
    whole = {segment.name: segment.samples.rows.tolist() for segment in segments(rows)}
    for segment, part in few.segments():
        assert whole[segment.name] == segment.samples.rows.tolist()
        assert set(part.rows.tolist()) <= set(segment.samples.rows.tolist())


def test_what_was_filled_is_read_and_not_fetched_again(cache, rows, url):
    fetch = Fetch(url)
    assert blocks(cache, rows) == [None] * 10
    cache.fill(segments(rows), fetch)
    cache.fill(segments(rows), fetch)
    (tar,) = open_store(url).read_ranges([(rows.shard.path, rows.start, rows.stop)])
    assert b"".join(blocks(cache, rows)) == tar
    assert sum(map(len, fetch.calls)) == len(segments(rows))
    assert files(cache, ".part") == []


def test_bits_that_flip_on_the_way_are_fetched_once_more(cache, rows, url):
    def flipped(call, parts):
        return [bytes([parts[0][0] ^ 1]) + parts[0][1:], *parts[1:]] if call == 1 else parts

    fetch = Fetch(url, flipped)
    cache.fill(segments(rows), fetch)
    assert [len(call) for call in fetch.calls] == [len(segments(rows)), 1]
    tar = open_store(url).read(rows.shard.path)
    places = zip(rows.starts.tolist(), rows.stops.tolist(), strict=True)
    assert blocks(cache, rows) == [tar[start:stop] for start, stop in places]


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "delete"])
def test_a_file_that_is_damaged_here_costs_a_request_and_no_data(cache, url, harm):
    reader = Reader(open_store(url), read_manifest(url), cache)
    expected = reader.fetch(np.arange(SAMPLES))
    for path in files(cache):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes({"flip": data, "cut": data[:100], "empty": b""}.get(harm, b""))
        if harm == "delete":
            path.unlink()
    assert reader.fetch(np.arange(SAMPLES)) == expected
    assert all(isinstance(sample, Encoded) for sample in expected)


def test_the_room_is_bounded_and_the_least_used_goes_first(cache, rows, url):
    sizes = [segment.samples.stop - segment.samples.start for segment in segments(rows)]
    small = Cache(cache.folder, sum(sizes) - 1)
    first, *rest = segments(rows)
    small.fill([first], Fetch(url))
    os.utime(files(small)[0], (1, 1))
    for segment in rest:
        small.fill([segment], Fetch(url))
    assert sum(path.stat().st_size for path in files(small)) <= small.max_bytes
    assert first.name not in {path.stem for path in files(small)}
    assert rest[-1].name in {path.stem for path in files(small)}


def test_a_cache_smaller_than_a_segment_still_gives_every_sample(tmp_path, url):
    reader = Reader(open_store(url), read_manifest(url), Cache(str(tmp_path), 10))
    assert [sample.index for sample in reader.fetch(np.arange(SAMPLES))] == list(range(SAMPLES))


@pytest.mark.parametrize("ledger", ["", "nonsense", "-5", "99999999999999999999", "000000000000000001x", "12\n"])
def test_a_broken_ledger_is_counted_anew(cache, rows, url, ledger):
    first, second, *_ = segments(rows)
    cache.fill([first], Fetch(url))
    (Path(cache.folder) / "ledger").write_text(ledger)
    cache.fill([second], Fetch(url))
    assert int((Path(cache.folder) / "ledger").read_text()) == sum(path.stat().st_size for path in files(cache))


def test_a_cache_that_is_too_small_never_asks_for_whole_segments(tmp_path, url):
    store = Counted(url)
    reader = Reader(store, read_manifest(url), Cache(str(tmp_path), 10))
    for _ in range(2):
        reader.warm(np.arange(SAMPLES))
        sample = reader.fetch(np.array([3]))[0]
    assert store.bytes == 2 * len(sample.block)


def test_what_is_evicted_at_once_is_not_read_again(tmp_path, rows, url):
    largest = max(segment.size_bytes for segment in segments(rows))
    store = Counted(url)
    reader = Reader(store, read_manifest(url), Cache(str(tmp_path), largest))
    reader.fetch(np.arange(10))
    assert store.bytes == sum(segment.size_bytes for segment in segments(rows))


def test_a_use_in_the_future_does_not_keep_a_segment_without_end(cache, rows, url):
    cache.fill(segments(rows), Fetch(url))
    (first, *_) = files(cache)
    os.utime(first, (time.time() + 9e6,) * 2)
    small = Cache(cache.folder, taken(cache) - 1)
    small.drop(segments(rows)[-1])
    small.fill(segments(rows)[-1:], Fetch(url))
    assert first.stat().st_mtime <= time.time()


def test_a_segment_of_another_size_has_another_name(rows, monkeypatch):
    before = segments(rows)[0].name
    monkeypatch.setattr(segment_module, "SEGMENT_BYTES", 2 * SEGMENT)
    assert segments(rows)[0].name != before


def test_the_folder_may_be_in_the_home_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Cache("~/cache", 1).folder == str(tmp_path / "cache")


def test_a_cache_travels_to_another_process_without_what_this_one_has_seen(cache, monkeypatch):
    assert cache._keeps()
    again = pickle.loads(pickle.dumps(cache))
    assert again == cache
    assert not again._seen.usable


def test_a_folder_that_cannot_be_used_is_one_clear_line(tmp_path, rows, url):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"the cache .*file/cache cannot be used .*set another folder, or none"):
        Cache(str(tmp_path / "file/cache"), 100).fill(segments(rows), Fetch(url))


def test_nobody_else_may_read_the_folder(cache, rows, url):
    cache.fill(segments(rows), Fetch(url))
    assert Path(cache.folder).stat().st_mode & 0o77 == 0


def test_threads_keep_the_bound_together_also_for_what_is_on_its_way(tmp_path, rows, url, monkeypatch):
    sizes = sorted(segment.size_bytes for segment in segments(rows))
    cache = Cache(str(tmp_path / "cache"), sum(sizes[-2:]))
    honest, seen = os.pwrite, []

    def slow(file, data, offset):
        if len(data) > 100:
            seen.append(taken(cache))
            time.sleep(0.01)
        return honest(file, data, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    concurrently(lambda segment: cache.fill([segment], Fetch(url)), segments(rows) * 12, at_once=6)
    assert len(seen) > len(sizes)
    assert sizes[0] < max(seen) <= cache.max_bytes
