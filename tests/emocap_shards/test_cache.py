import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import emocap_shards.segment as segment_module
import numpy as np
import pytest
from emocap_shards.cache import Cache
from emocap_shards.errors import StoreError
from emocap_shards.indexes import read_index
from emocap_shards.manifest import read_manifest
from emocap_shards.reader import Reader
from emocap_shards.sample import Encoded
from emocap_shards.segment import Rows
from emocap_shards.store import open_store
from emocap_shards.writer import write_shards
from shard_cases import records

PROCESS = Path(__file__).with_name("cache_process.py")
SAMPLES, SEGMENT = 40, 4000


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
    """All samples of the first shard."""
    store = open_store(url)
    shard = read_manifest(store).shards[0]
    return Rows(shard, read_index(store, shard), np.arange(shard.samples))


class Fetch:
    """Ranges of a dataset, counted; `change` may alter what a call gives."""

    def __init__(self, url, change=lambda _, parts: parts):
        self.store, self.change, self.calls = open_store(url), change, []

    def __call__(self, spans):
        self.calls.append(list(spans))
        return self.change(len(self.calls), self.store.read_ranges(spans))


def files(cache, suffix=".seg"):
    return sorted(Path(cache.folder).glob(f"*/*{suffix}"))


def blocks(cache, rows):
    return [block for segment, part in rows.segments() for block in cache.read(segment, part) or [None] * len(part)]


def segments(rows):
    return [segment for segment, _ in rows.segments()]


def test_segments_tile_a_shard_between_samples(rows):
    found = list(rows.segments())
    assert len(found) > 3
    assert np.concatenate([part.rows for _, part in found]).tolist() == list(range(10))
    assert all(segment.samples.rows.tolist() == part.rows.tolist() for segment, part in found)
    assert len({segment.name for segment, _ in found}) == len(found)


def test_a_few_samples_ask_for_the_segments_that_hold_them(rows):
    few = Rows(rows.shard, rows.index, np.array([1, 7]))
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
    assert blocks(cache, rows) == [bytes(block) for block in rows.pieces(open_store(url).read(rows.shard.path))]


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


@pytest.mark.parametrize("ledger", ["", "nonsense", "-5", "99999999999999999999"])
def test_a_broken_ledger_is_counted_anew(cache, rows, url, ledger):
    first, second, *_ = segments(rows)
    cache.fill([first], Fetch(url))
    (Path(cache.folder) / "ledger").write_text(ledger)
    cache.fill([second], Fetch(url))
    assert int((Path(cache.folder) / "ledger").read_text()) == sum(path.stat().st_size for path in files(cache))


def test_a_full_disk_is_said_and_costs_no_sample(cache, url, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    reader = Reader(open_store(url), read_manifest(url), cache)
    assert [sample.index for sample in reader.fetch(np.arange(SAMPLES))] == list(range(SAMPLES))
    assert "No space left on device" in caplog.text
    assert files(cache) == files(cache, ".part") == []


def test_a_folder_that_cannot_be_used_is_one_clear_line(tmp_path, rows, url):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"the cache .*file/cache cannot be used .*set another folder, or none"):
        Cache(str(tmp_path / "file/cache"), 100).fill(segments(rows), Fetch(url))


def test_nobody_else_may_read_the_folder(cache, rows, url):
    cache.fill(segments(rows), Fetch(url))
    assert Path(cache.folder).stat().st_mode & 0o77 == 0


def started(url, cache, log, seconds=0.0, max_bytes=None):
    arguments = [url, cache.folder, str(max_bytes or cache.max_bytes), str(log), str(seconds)]
    return subprocess.Popen([sys.executable, str(PROCESS), *arguments])


@pytest.fixture
def shards_of_segments(tmp_path_factory):
    """Shards that are larger than a true segment: other processes know nothing of the small ones here."""
    folder = str(tmp_path_factory.mktemp("large"))
    write_shards(large_records(), folder, samples_per_shard=8)
    return folder


def large_records():
    from shard_cases import encode, record

    for number in range(24):
        small = record(number)
        image = encode(number, size=700)  # 1.5 MB of noise
        yield type(small)(small.key, image, small.extension, small.caption, small.labels)


def test_processes_fetch_each_segment_once_between_them(cache, tmp_path, shards_of_segments):
    processes = [started(shards_of_segments, cache, tmp_path / "log", 0.05) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == len(set(lines)) == len(files(cache)) > 6
    assert files(cache, ".part") == []


def test_a_killed_process_leaves_nothing_that_others_wait_for(cache, tmp_path, shards_of_segments):
    dice = random.Random(5)
    for _ in range(4):
        process = started(shards_of_segments, cache, tmp_path / "log", 0.05)
        time.sleep(1.0 + dice.random())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert started(shards_of_segments, cache, tmp_path / "last").wait(timeout=60) == 0
    reader = Reader(open_store(shards_of_segments), read_manifest(shards_of_segments), cache)
    assert all(isinstance(sample, Encoded) for sample in reader.fetch(np.arange(24)))


def test_processes_keep_the_bound_together(cache, tmp_path, shards_of_segments):
    bound = 12 << 20
    processes = [started(shards_of_segments, cache, tmp_path / "log", 0.02, bound) for _ in range(3)]
    most = 0
    while any(process.poll() is None for process in processes):
        most = max(most, sum(size for size in map(size_of, files(cache))))
        time.sleep(0.01)
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert 0 < most <= bound


def size_of(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
