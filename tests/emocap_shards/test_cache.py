import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import emocap_shards.cache as cache_module
import emocap_shards.segment as segment_module
import numpy as np
import pytest
from emocap_shards.background import concurrently
from emocap_shards.cache import Cache
from emocap_shards.errors import StoreError
from emocap_shards.indexes import read_index
from emocap_shards.ledger import Ledger
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


@pytest.fixture(scope="module")
def far():
    """The same where no call to the disk is needed."""
    write_shards(records(SAMPLES), "memory://test-cache", samples_per_shard=10)
    return "memory://test-cache"


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


@pytest.mark.parametrize("ledger", ["", "nonsense", "-5", "99999999999999999999", "٣", "12\n"])
def test_a_broken_ledger_is_counted_anew(cache, rows, url, ledger):
    first, second, *_ = segments(rows)
    cache.fill([first], Fetch(url))
    (Path(cache.folder) / "ledger").write_text(ledger)
    cache.fill([second], Fetch(url))
    assert int((Path(cache.folder) / "ledger").read_text()) == sum(path.stat().st_size for path in files(cache))


class Counted:
    """A dataset's store whose ranges are counted, as a place far away."""

    def __init__(self, url):
        self.store, self.url, self.bytes = open_store(url), url, 0

    def __getattr__(self, name):
        return getattr(self.store, name)

    def read_ranges(self, spans):
        self.bytes += sum(stop - start for _, start, stop in spans)
        return self.store.read_ranges(spans)


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


def test_a_use_in_the_future_does_not_keep_a_segment_for_ever(cache, rows, url):
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


def started(url, cache, log, seconds=0.0, max_bytes=None, outage=0):
    arguments = [url, cache.folder, str(max_bytes or cache.max_bytes), str(log), str(seconds), str(outage)]
    with log.with_suffix(".err").open("a") as errors:
        return subprocess.Popen([sys.executable, str(PROCESS), *arguments], stderr=errors)


@pytest.fixture(scope="module")
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


@pytest.mark.parametrize("suffix", [".part", ".seg"])
@pytest.mark.parametrize("delay_s", [0, 0.1])
def test_a_killed_process_leaves_nothing_that_others_wait_for(cache, tmp_path, shards_of_segments, suffix, delay_s):
    process = started(shards_of_segments, cache, tmp_path / "log", 0.5)
    until(lambda: files(cache, suffix))
    time.sleep(delay_s)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert started(shards_of_segments, cache, tmp_path / "last").wait(timeout=20) == 0
    reader = Reader(open_store(shards_of_segments), read_manifest(shards_of_segments), cache)
    assert all(isinstance(sample, Encoded) for sample in reader.fetch(np.arange(24)))
    assert files(cache, ".part") == []


def test_processes_keep_the_bound_together(cache, tmp_path, shards_of_segments):
    bound = 12 << 20
    processes = [started(shards_of_segments, cache, tmp_path / "log", 0.02, bound) for _ in range(3)]
    most = 0
    while any(process.poll() is None for process in processes):
        most = max(most, taken(cache))
        time.sleep(0.002)
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert 0 < most <= bound


def test_threads_keep_the_bound_together_also_for_what_is_on_its_way(tmp_path, rows, monkeypatch, url):
    cache = Cache(str(tmp_path / "cache"), 3 * SEGMENT * 3)
    honest, most = os.pwrite, []

    def slow(file, data, offset):
        if len(data) > 100:
            time.sleep(0.01)
            most.append(taken(cache))
        return honest(file, data, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    fetch = Fetch(url)
    found = [(segment, part) for _ in range(8) for segment, part in rows.segments()]
    concurrently(lambda pair: cache.fill([pair[0]], fetch), found, at_once=8)
    assert 0 < max(most) <= cache.max_bytes


def taken(cache):
    """Bytes of all files of segments at one moment: nothing is booked or evicted while the ledger is held."""
    if not Path(cache.folder, "ledger").exists():
        return 0
    with Ledger(Path(cache.folder), cache.max_bytes).opened():
        stats = [path.stat() for suffix in (".part", ".seg") for path in files(cache, suffix) if path.exists()]
    return sum({stat.st_ino: stat.st_size for stat in stats}.values())


def test_a_store_that_is_gone_for_one_process_ends_that_one_alone(cache, tmp_path, shards_of_segments):
    broken = started(shards_of_segments, cache, tmp_path / "broken", 0.3, outage=1)
    until(lambda: files(cache, ".part"))
    others = [started(shards_of_segments, cache, tmp_path / "log", 0.05) for _ in range(2)]
    assert broken.wait(timeout=30) == 1
    assert "StoreError: the store does not answer" in (tmp_path / "broken.err").read_text()
    assert [other.wait(timeout=30) for other in others] == [0, 0]
    assert files(cache, ".part") == []


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


def held(cache, segment):
    """A descriptor that holds the segment's lock, as another process would."""
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
    rows = [Rows(shard, read_index(open_store(url), shard), np.arange(10)) for shard in read_manifest(url).shards]
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
    begin = time.monotonic()
    assert list(cache.bring(segments(rows), Fetch(url))) == []
    assert time.monotonic() - begin < 5
    for file in files_held:
        os.close(file)


def until(holds):
    limit = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.002)


def size_of(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
