import json
from dataclasses import replace
from pathlib import Path

import pytest
from emocap_shards.errors import DamagedSample, ManifestError, RecordError
from emocap_shards.manifest import read_manifest
from emocap_shards.writer import write_shards
from emocap_shards.writing import prepare
from emocap_shards.writing.unpack import unpack
from forged import forge, sample
from pack_cases import files_of, folder_of, packed
from shard_cases import encode, record, records


@pytest.fixture
def dataset(tmp_path):
    write_shards(records(7), tmp_path / "dataset", samples_per_shard=3)
    return tmp_path / "dataset"


def test_every_sample_becomes_an_image_and_its_annotation(dataset, tmp_path):
    told = []
    assert unpack(dataset, tmp_path / "out", progress=told.append).samples == 7
    files = files_of(tmp_path / "out")
    names = [f"face-{number:04d}.{extension}" for number in range(7) for extension in ("json", "png")]
    assert sorted(files) == names
    assert files["face-0003.png"] == encode(3)
    assert json.loads(files["face-0003.json"])["caption"]["global"] == "Face 3 is glad."
    assert sum(told) == sum(len(encode(number)) for number in range(7))


def test_packed_again_it_is_the_same_bytes(dataset, tmp_path):
    unpack(dataset, tmp_path / "out")
    packed(tmp_path / "out", tmp_path / "again", samples=3)
    assert files_of(tmp_path / "again") == files_of(dataset)


def test_an_order_that_is_not_that_of_the_keys_is_kept(tmp_path):
    write_shards(records(7)[::-1], tmp_path / "dataset", samples_per_shard=3)
    unpack(tmp_path / "dataset", tmp_path / "out")
    assert (tmp_path / "out" / "order.txt").read_text().split()[0] == "face-0006.png"
    packed(tmp_path / "out", tmp_path / "again", samples=3)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "dataset")


def test_a_folder_that_is_there_is_left_alone(dataset, tmp_path):
    folder = folder_of(tmp_path / "out", 1)
    before = files_of(folder)
    with pytest.raises(RecordError, match="out exists already"):
        unpack(dataset, folder)
    assert files_of(folder) == before
    (tmp_path / "empty").mkdir()
    assert unpack(dataset, tmp_path / "empty").samples == 7


def test_what_is_not_whole_does_not_bear_the_folders_name(dataset, tmp_path):
    (dataset / "shard-000002.tar").unlink()
    with pytest.raises(DamagedSample, match=r"dataset/shard-000002\.tar: it is missing"):
        unpack(dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(RecordError, match=r"out\.partial exists already"):
        unpack(dataset, tmp_path / "out")


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_folder_that_cannot_be_made_is_one_line(dataset, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match=r"file/out.* cannot be written \(Not a directory\)"):
        unpack(dataset, tmp_path / "file" / "out")


@pytest.mark.parametrize("name", ["write_text", "rmdir"])
def test_a_disk_that_fails_at_the_end_is_one_line(tmp_path, monkeypatch, name):
    def fails(*_, **__):
        raise OSError(5, "Input/output error")

    write_shards(records(7)[::-1], tmp_path / "dataset", samples_per_shard=3)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, name, fails)
    with pytest.raises(RecordError, match=r"out cannot be written \(Input/output error\)"):
        unpack(tmp_path / "dataset", tmp_path / "out")


def test_damage_is_named_and_may_be_left_out(dataset, tmp_path):
    flip(dataset / "shard-000001.tar", 600)
    with pytest.raises(DamagedSample, match=r"'face-0003' of shard .*dataset/shard-000001\.tar: its CRC-32C"):
        unpack(dataset, tmp_path / "out")
    done = unpack(dataset, tmp_path / "other", skip_bad=1)
    assert (done.samples, [damage.key for damage in done.damaged]) == (6, ["face-0003"])


def test_two_samples_of_one_key_are_one_line(tmp_path):
    (tmp_path / "forged").mkdir()
    forge(tmp_path / "forged", [[sample("twice")], [sample("twice")]])
    with pytest.raises(RecordError, match="two samples have the key 'twice'"):
        unpack(tmp_path / "forged", tmp_path / "out")


def test_without_a_dataset_nothing_is_made(tmp_path):
    with pytest.raises(ManifestError, match=r"no manifest\.json"):
        unpack(tmp_path / "nothing", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["../evil", "a.b", "/etc/x", "a/b"])
def test_a_key_that_is_no_safe_name_is_refused(tmp_path, monkeypatch, key):
    """Our writer refuses such a key, but a forged dataset can have it."""
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "check_key", lambda _: None)
        write_shards([record(0), replace(record(1), key=key)], tmp_path / "forged")
    assert read_manifest(tmp_path / "forged").samples == 2
    with pytest.raises((RecordError, DamagedSample)):
        unpack(tmp_path / "forged", tmp_path / "deep" / "deeper" / "out")
    assert not list(tmp_path.rglob("evil*"))
