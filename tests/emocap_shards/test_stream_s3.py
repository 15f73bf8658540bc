"""Tests epochs that are read from a real S3 server that is slow, sends wrong bytes, resets connections, or dies."""

import io
import itertools
import logging
import tarfile
import threading
import time
from dataclasses import replace

import pytest
from emocap_shards.cache import Cache
from emocap_shards.errors import DamagedSample
from emocap_shards.store import open_store
from emocap_shards.stream import Stream
from emocap_shards.tar_samples import TarSamples, list_tars
from emocap_shards.webdataset_stream import WebDatasetStream
from emocap_shards.writer import write_shards
from shard_cases import encode, records

from launch.local_s3 import BUCKET, LocalS3

SAMPLES = 60


@pytest.fixture
def dataset(s3, faulty_s3):
    """Returns a dataset that was written, and is then read, through the proxy."""
    write_shards(records(SAMPLES), s3, samples_per_shard=12)
    return s3


@pytest.fixture(params=["cache", "no cache"])
def stream(request, dataset, tmp_path):
    cache = Cache(str(tmp_path / "cache"), 1 << 30) if request.param == "cache" else None
    return Stream(url=dataset, global_batch=7, seed=2, window_samples=24, epochs=1, cache=cache)


def epoch(stream):
    return [sample.index for rank_step in stream.steps() for sample in rank_step.samples]


def test_an_epoch_is_whole(stream):
    assert sorted(epoch(stream)) == list(range(SAMPLES))


@pytest.mark.parametrize("fault", ["reset", "truncate", "flip", "500", "503", "429"])
def test_an_epoch_is_whole_whatever_the_line_does(stream, faulty_s3, fault):
    faulty_s3.inject(fault, probability=0.3)
    assert sorted(epoch(stream)) == list(range(SAMPLES))
    assert faulty_s3.counts[fault] > 0


def test_a_second_epoch_comes_from_the_cache(dataset, tmp_path, faulty_s3):
    stream = Stream(url=dataset, global_batch=7, epochs=1, cache=Cache(str(tmp_path), 1 << 30))
    first = epoch(stream)
    faulty_s3.forget()
    assert epoch(stream) == first
    # The first step requests nothing that is in the cache; indexes and manifest are read again.
    assert not [line for line in faulty_s3.requests if line.endswith(".tar") or ".tar?" in line]


def test_a_sample_that_is_damaged_in_the_store_is_named_after_a_second_look(dataset, stream, faulty_s3):
    store = open_store(dataset)
    tar = bytearray(store.read("shard-000002.tar"))
    tar[700] ^= 1
    store.put("shard-000002.tar", bytes(tar))
    with pytest.raises(DamagedSample, match=r"sample 'face-0024' of shard shard-000002.tar: its CRC-32C"):
        epoch(stream)
    portions = list(replace(stream, error_budget=1).steps())
    seen = sorted(sample.index for rank_step in portions for sample in rank_step.samples)
    assert seen == [number for number in range(SAMPLES) if number != 24]
    assert [damage.key for rank_step in portions for damage in rank_step.damaged] == ["face-0024"]


def test_a_server_that_is_killed_in_the_middle_of_an_epoch_costs_time_and_no_sample(tmp_path, monkeypatch, caplog):
    with LocalS3(tmp_path / "s3") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        url = f"s3://{BUCKET}/killed"
        write_shards(records(SAMPLES), url, samples_per_shard=6)
        stream = Stream(url=url, global_batch=4, window_samples=12, epochs=1)
        steps, seen = stream.steps(), []
        for _ in range(3):
            seen += [sample.index for sample in next(steps).samples]
        server.kill()
        back = threading.Thread(target=lambda: (time.sleep(8), server.restart()))
        back.start()
        with caplog.at_level(logging.INFO):
            seen += [sample.index for rank_step in steps for sample in rank_step.samples]
        back.join()
    assert sorted(seen) == list(range(SAMPLES))
    assert "cannot read" in caplog.text
    assert "answers again" in caplog.text


def test_the_tars_of_another_program_are_streamed_from_a_bucket(faulty_s3, s3, tmp_path):
    for name in "ab":
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for number, extension in itertools.product(range(4), ("png", "txt")):
                data = encode(number) if extension == "png" else f"{name}{number}".encode()
                info = tarfile.TarInfo(f"{number}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        open_store(s3).put_file(f"tars/{name}.tar", tmp_path / f"{name}.tar")
    faulty_s3.inject("reset", containing="/tars/a.tar", count=1)
    tars = list_tars(f"{s3}/tars")
    stream = WebDatasetStream(source=TarSamples(tars=tars), samples=8, global_batch=4, world_size=2)
    ranks = [replace(stream, rank=rank).steps(each=lambda sample: sample.caption.global_) for rank in range(2)]
    epoch = [caption for steps in ranks for step in itertools.islice(steps, 2) for caption in step.samples]
    assert faulty_s3.counts["reset"] == 1
    assert sorted(epoch) == [f"{name}{number}" for name in "ab" for number in range(4)]
