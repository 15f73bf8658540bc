import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset
from emocap_shards.errors import ManifestError, RecordError
from emocap_shards.index import load_index
from emocap_shards.inspecting.verify import verify
from emocap_shards.manifest import Manifest, read_manifest
from emocap_shards.sample import Caption
from emocap_shards.store.folder import FolderStore
from emocap_shards.writer import write_shards
from shard_cases import encode, record, records


def test_the_same_records_make_the_same_bytes(tmp_path):
    first = write_shards(records(11), tmp_path / "a", samples_per_shard=4)
    second = write_shards(iter(records(11)), tmp_path / "b", samples_per_shard=4)
    assert first == second
    assert first.digest == second.digest
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_bytes_are_pinned_so_that_old_digests_stay_true(tmp_path):
    image = bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415478da63606060000000040001"
        "27f5aeaa0000000049454e44ae426082"
    )
    manifest = write_shards([replace(record(0), image=image)], tmp_path)
    assert manifest.shards[0].sha256 == "a8ed4c414bf21659cecdc9f96e431af0a7edef6da3da0b5a247e27619b07e585"


def test_the_manifest_describes_the_files_there(tmp_path):
    told = []
    manifest = write_shards(records(11), tmp_path, samples_per_shard=4, progress=told.append)
    assert manifest == read_manifest(tmp_path)
    assert manifest.counts.tolist() == [4, 4, 3]
    assert told == [4, 8, 11]
    for shard in manifest.shards:
        data = (tmp_path / shard.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
        assert hashlib.sha256((tmp_path / shard.index_path).read_bytes()).hexdigest() == shard.index_sha256


def test_the_index_cuts_the_tar_into_its_samples(tmp_path):
    (shard,) = write_shards(records(3), tmp_path).shards
    data = (tmp_path / shard.path).read_bytes()
    index = load_index((tmp_path / shard.index_path).read_bytes(), shard=shard.path)
    assert tuple(slot.key for slot in index) == ("face-0000", "face-0001", "face-0002")
    assert sum(slot.length for slot in index) == len(data) - 1024
    with tarfile.open(tmp_path / shard.path) as tar:
        firsts = [member.offset for member in tar if member.name.endswith(".png")]
    assert [slot.offset for slot in index] == firsts


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_same_samples(tmp_path):
    manifest = write_shards(records(9), tmp_path, samples_per_shard=4)
    urls = [str(tmp_path / shard.path) for shard in manifest.shards]
    groups = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [group["__key__"] for group in groups] == [written.key for written in records(9)]
    for group, written in zip(groups, records(9), strict=True):
        assert group["png"] == written.image
        caption = json.loads(group["json"])["caption"]
        assert (caption["global"], tuple(caption["local"])) == (written.caption.global_, written.caption.local)


def test_an_existing_dataset_is_not_overwritten(tmp_path):
    write_shards(records(2), tmp_path)
    with pytest.raises(ManifestError, match="holds a dataset already: choose another URL"):
        write_shards(records(2), tmp_path)


def test_an_existing_dataset_is_refused_before_the_first_record_is_made(tmp_path):
    write_shards(records(2), tmp_path)
    source = iter(records(2))
    with pytest.raises(ManifestError):
        write_shards(source, tmp_path)
    assert len(list(source)) == 2


def test_the_manifest_is_put_on_condition_even_if_nobody_was_seen(tmp_path, monkeypatch):
    first = write_shards(records(2), tmp_path)
    exists = FolderStore.exists
    monkeypatch.setattr(FolderStore, "exists", lambda store, path: path != "manifest.json" and exists(store, path))
    with pytest.raises(ManifestError, match="holds a dataset already"):
        write_shards(records(3), tmp_path)
    assert read_manifest(tmp_path) == first


def test_of_two_writers_the_later_is_refused_and_touches_nothing(tmp_path):
    def meanwhile():
        yield record(0)
        write_shards(records(2), tmp_path)

    with pytest.raises(ManifestError, match="holds a dataset already"):
        write_shards(meanwhile(), tmp_path)
    assert verify(tmp_path).whole


def test_nothing_to_write_is_refused(tmp_path):
    with pytest.raises(RecordError, match="no record to write"):
        write_shards([], tmp_path)


BAD = {
    "caption without a global part": ({"caption": Caption(" ", (), "x")}, 'no "global" part'),
    "empty local sentence": ({"caption": Caption("x", ("",), "x")}, '"local" part'),
    "label that is not a number": ({"labels": {"valence": float("nan")}}, "finite number"),
    "bytes that are not an image": ({"image": b"GIF89a, or so"}, "the image is a GIF"),
    "image that is cut": ({"image": encode(1)[:-40]}, "cannot be decoded"),
    "image of another format": ({"extension": "jpg"}, "the image is PNG"),
    "unknown extension": ({"extension": "tiff"}, "not one of jpg"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_refused_by_its_key(tmp_path, name):
    change, reason = BAD[name]
    with pytest.raises(RecordError, match=f"record 'face-0001'.*{reason}"):
        write_shards([record(0), replace(record(1), **change)], tmp_path)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "a\\b", "new\nline", "k" * 81, "é" * 41])
def test_an_unusable_key_is_refused(tmp_path, key):
    with pytest.raises(RecordError, match="unusable key"):
        write_shards([replace(record(0), key=key)], tmp_path)


def test_a_key_that_comes_twice_is_refused_across_shards(tmp_path):
    with pytest.raises(RecordError, match="'face-0000' occurs twice"):
        write_shards([*records(3), record(0)], tmp_path, samples_per_shard=2)


def test_keys_may_be_of_any_script(tmp_path):
    write_shards([replace(record(0), key="顔 一")], tmp_path)
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        assert tar.getnames() == ["顔 一.png", "顔 一.json"]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from shard_cases import record
from emocap_shards.writer import write_shards

def endless():
    number = 0
    while True:
        if number == 70:
            print("seventy", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        yield record(number)
        number += 1

write_shards(endless(), sys.argv[1], samples_per_shard=2)
"""


def test_a_killed_writer_leaves_no_dataset_and_a_second_run_makes_one(tmp_path):
    run = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    env = {**os.environ, "TMPDIR": str(tmp_path.parent)}
    done = subprocess.run(run, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "seventy\n")
    assert (tmp_path / "shard-000002.tar").exists()
    with pytest.raises(ManifestError, match=r"no manifest\.json, so no dataset: make one with `emocap pack`"):
        read_manifest(tmp_path)
    assert write_shards(records(71), tmp_path, samples_per_shard=2) == read_manifest(tmp_path)


def test_a_progressive_jpeg_and_a_webp_go_in(tmp_path):
    extra = [
        replace(record(1), image=encode(1, kind="JPEG"), extension="jpg"),
        replace(record(2), image=encode(2, kind="WEBP"), extension="webp"),
    ]
    assert write_shards(extra, tmp_path).samples == 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "damaged"),
        (b"[]", "damaged"),
        (b'{"schema": 1}', "damaged"),
        (b'{"schema": 1, "shards": [{"path": "x"}]}', "damaged"),
        (b'{"schema": 9, "shards": []}', "schema 9, this code reads 1"),
        (Manifest(()).dump(), "the dataset is empty"),
    ],
)
def test_a_manifest_that_says_nothing_usable_is_refused(data, reason):
    with pytest.raises(ManifestError, match=f"s3://here: .*{reason}"):
        Manifest.load(data, url="s3://here")
