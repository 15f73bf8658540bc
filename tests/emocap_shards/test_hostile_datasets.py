"""Tests that datasets with false numbers are refused before memory is allocated for them."""

import hashlib
import io
import json
import tracemalloc
from dataclasses import asdict, replace

import pytest
from emocap_shards.decode import MAX_SCANS, decode_image
from emocap_shards.errors import DamagedShard, ImageError, ManifestError, RecordError, ShardsError
from emocap_shards.index import Slot, dump_index, read_index
from emocap_shards.manifest import MOST_SAMPLES, Manifest, Shard, read_manifest
from emocap_shards.store import open_store
from emocap_shards.stream import Stream
from emocap_shards.writing import dataset as dataset_module
from emocap_shards.writing.dataset import DatasetSource
from emocap_shards.writing.journal import Journal
from emocap_shards.writing.shards import ShardSize
from PIL import Image

MIB = 1 << 20


def shard(number=0, *, samples, size=1 << 39):
    return Shard(f"shard-{number}.tar", samples, size, "0" * 64, f"shard-{number}.npy", "0" * 64)


def put(folder, shards):
    """Writes a manifest as a program of other people may write it."""
    fields = [{name: value for name, value in asdict(each).items() if name != "without_caption"} for each in shards]
    rows = {"schema": 1, "shards": fields}
    open_store(folder).put("manifest.json", json.dumps(rows).encode())
    return str(folder)


def peak_bytes(act):
    tracemalloc.start()
    try:
        with pytest.raises(ShardsError) as caught:
            act()
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "samples", [MOST_SAMPLES + 1, 10**12, 1 << 60, 10**400, -1, 0, 1.5, "7"], ids=lambda value: str(value)[:20]
)
def test_a_shard_with_more_samples_than_one_may_have_is_refused(tmp_path, samples):
    url = put(tmp_path, [shard(samples=samples)])
    peak, message = peak_bytes(lambda: read_manifest(url))
    assert "manifest.json is damaged" in message
    assert len(message) < 500
    assert peak < MIB


def test_a_manifest_that_claims_a_billion_samples_costs_no_memory_for_them(tmp_path):
    url = put(tmp_path, [shard(number, samples=MOST_SAMPLES) for number in range(1000)])
    assert read_manifest(url).samples == MOST_SAMPLES * 1000
    peak, message = peak_bytes(lambda: next(iter(Stream(url=url, global_batch=8).steps())))
    assert "is missing" in message
    assert peak < 100 * MIB  # a window of one shard, shuffled


def test_so_many_samples_are_shuffled_by_nobody_in_memory(tmp_path, monkeypatch):
    url = put(tmp_path, [shard(number, samples=MOST_SAMPLES) for number in range(1000)])
    peak, message = peak_bytes(lambda: DatasetSource.open([url], seed=1))
    assert "cannot be shuffled in memory" in message
    assert peak < 4 * MIB
    monkeypatch.setattr(dataset_module, "_MOST_SHUFFLED", 0)
    with pytest.raises(RecordError, match="cannot be shuffled in memory"):
        DatasetSource.open([url], seed=0)


def test_read_in_order_they_cost_no_memory_either(tmp_path):
    url = put(tmp_path, [shard(number, samples=MOST_SAMPLES) for number in range(1000)])
    tracemalloc.start()
    try:
        assert "is missing" in str(next(iter(DatasetSource.open([url]).rows())))
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


def test_a_header_that_claims_rows_that_are_not_there_is_refused(tmp_path):
    index = dump_index([Slot("a", 0, 2048, 1)])
    for claimed in (b"(999999999999,)", b"(1152921504606846976,)"):
        forged = index.replace(b"(1,)", claimed)
        open_store(tmp_path).put("shard-0.npy", forged)
        lying = replace(shard(samples=1), index_sha256=hashlib.sha256(forged).hexdigest())
        with pytest.raises(DamagedShard, match="its index cannot be read"):
            read_index(open_store(tmp_path), lying)


def test_an_index_that_is_longer_than_any_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("emocap_shards.index.MOST_INDEX_BYTES", 1000)
    open_store(tmp_path).put("shard-0.npy", bytes(1001))
    with pytest.raises(ShardsError, match="1001 bytes, where 1000 is the limit"):
        read_index(open_store(tmp_path), shard(samples=MOST_SAMPLES))


def test_our_own_writer_makes_no_shard_that_our_reader_refuses():
    with pytest.raises(RecordError, match=rf"a shard holds 1 to {MOST_SAMPLES:,} samples"):
        ShardSize(samples=MOST_SAMPLES + 1)


@pytest.mark.parametrize("document", [b"[" * 100_000, b'{"schema":' * 50_000, b'{"schema": ' + b"9" * 5000 + b"}"])
def test_deep_nesting_and_huge_numbers_are_damage_of_one_line(tmp_path, document):
    store = open_store(tmp_path)
    for path, act in (
        ("manifest.json", lambda: read_manifest(store)),
        ("journal/shard-000000.json", lambda: Journal(store, {}).finished()),
    ):
        store.put(path, document)
        with pytest.raises((ManifestError, RecordError)) as caught:
            act()
        assert len(str(caught.value)) < 1000
        assert "\n" not in str(caught.value)


def progressive(scans):
    """Returns a JPEG with empty scans. Each scan takes some 100 bytes and makes a decoder go through all pixels."""
    file = io.BytesIO()
    Image.new("L", (64, 64), 128).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rfind(b"\xff\xda")
    have = data.count(b"\xff\xda")
    return data[:-2] + data[last:-2] * (scans - have) + b"\xff\xd9"


def test_a_jpeg_of_many_scans_is_not_decoded():
    assert decode_image(progressive(MAX_SCANS)).shape == (64, 64, 3)
    with pytest.raises(ImageError, match="the JPEG has 65 scans, more than 64"):
        decode_image(memoryview(progressive(MAX_SCANS + 1)))


def test_our_own_writer_makes_no_manifest_that_our_reader_refuses(tmp_path, monkeypatch):
    monkeypatch.setattr("emocap_shards.manifest.DOCUMENT_BYTES", 1000)
    with pytest.raises(ManifestError, match=r"a manifest\.json of 9 shards is too long: put more samples into a shard"):
        Manifest([shard(number, samples=1) for number in range(9)]).write(open_store(tmp_path))
    assert open_store(tmp_path).list() == []


def test_a_manifest_of_ours_is_read_again(tmp_path):
    Manifest([shard(samples=MOST_SAMPLES)]).write(open_store(tmp_path))
    assert read_manifest(tmp_path).samples == MOST_SAMPLES
