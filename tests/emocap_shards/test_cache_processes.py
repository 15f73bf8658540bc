"""Tests a cache that several processes fill at once with segments of the real size, also when processes are killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cache_cases import files, taken, until
from emocap_shards.cache import Cache
from emocap_shards.manifest import read_manifest
from emocap_shards.reader import Reader
from emocap_shards.sample import Encoded
from emocap_shards.store import open_store
from emocap_shards.writer import write_shards

PROCESS = Path(__file__).with_name("cache_process.py")


@pytest.fixture
def cache(tmp_path):
    return Cache(str(tmp_path / "cache"), 1 << 30)


def started(url, cache, log, seconds=0.0, max_bytes=None, outage=0):
    arguments = [url, cache.folder, str(max_bytes or cache.max_bytes), str(log), str(seconds), str(outage)]
    with log.with_suffix(".err").open("a") as errors:
        return subprocess.Popen([sys.executable, str(PROCESS), *arguments], stderr=errors)


@pytest.fixture(scope="module")
def shards_of_segments(tmp_path_factory):
    """Returns shards that are larger than a real segment, because other processes do not see the size set in this
    process.
    """
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


def test_a_store_that_is_gone_for_one_process_ends_that_one_alone(cache, tmp_path, shards_of_segments):
    broken = started(shards_of_segments, cache, tmp_path / "broken", 0.3, outage=1)
    until(lambda: files(cache, ".part"))
    others = [started(shards_of_segments, cache, tmp_path / "log", 0.05) for _ in range(2)]
    assert broken.wait(timeout=30) == 1
    assert "StoreError: the store does not answer" in (tmp_path / "broken.err").read_text()
    assert [other.wait(timeout=30) for other in others] == [0, 0]
    assert files(cache, ".part") == []
