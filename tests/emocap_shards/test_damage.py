"""Tests that damage which plain tar readers return as data, or silently skip, is reported with the sample's name."""

import pickle
from pathlib import Path

import pytest
from emocap_shards.errors import BudgetSpent, DamagedSample, DamagedShard, ShardsError
from emocap_shards.index import Slot, load_index
from emocap_shards.inspecting.verify import verify
from emocap_shards.store.folder import FolderStore
from emocap_shards.stream import Stream
from emocap_shards.writer import write_shards
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_cases import records

SHARD = "shard-000001.tar"


@pytest.fixture
def folder(tmp_path):
    write_shards(records(9), tmp_path, samples_per_shard=3)
    return tmp_path


@pytest.fixture
def index(folder):
    return load_index((folder / "shard-000001.npy").read_bytes(), shard=SHARD)


def epoch(folder, **options):
    """Returns the keys of one epoch."""
    stream = Stream(url=str(folder), global_batch=4, epochs=1, **options)
    return sorted(row.key for rank_step in stream.steps() for row in rank_step.samples)


def rewrite(path: Path, change):
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def flip(offset):
    def change(data):
        data[offset] ^= 1

    return change


def cut(length):
    def change(data):
        del data[length:]

    return change


def damages(slot):
    """Maps a name to a function that damages the shard whose sample lies in `slot`."""
    image_member_ends = slot.offset + slot.length - 1024
    return {
        "cut at a sample boundary": cut(slot.offset),
        "cut between image and annotation": cut(image_member_ends),
        "cut inside the image": cut(slot.offset + 600),
        "one header byte": flip(slot.offset + 10),
        "one byte of a header's checksum": flip(slot.offset + 150),
        "one image byte": flip(slot.offset + 512 + 70),
        "one caption byte": flip(image_member_ends + 512 + 15),
        "one padding byte": flip(slot.offset + slot.length - 1),
        "emptied": cut(0),
    }


@pytest.mark.parametrize("name", damages(Slot("", 0, 2048, 0)))
def test_each_kind_of_damage_is_named_by_stream_and_by_verify(folder, index, name):
    rewrite(folder / SHARD, damages(index[1])[name])
    with pytest.raises(DamagedSample, match=rf"shard {SHARD}") as raised:
        epoch(folder)
    assert raised.value.shard == SHARD
    assert raised.value.key in {"face-0003", "face-0004", "face-0005"}
    faults = verify(folder).faults
    assert {fault.shard for fault in faults} == {SHARD}
    assert {fault.key for fault in faults} & {"face-0003", "face-0004"}


def test_the_undamaged_samples_of_a_cut_shard_are_still_delivered(folder, index):
    rewrite(folder / SHARD, cut(index[1].offset))
    assert epoch(folder, error_budget=2) == [f"face-{number:04d}" for number in (0, 1, 2, 3, 6, 7, 8)]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_of_a_shard_is_ever_delivered(folder, index, data):
    last = index[2].offset + index[2].length - 1
    offset, bit = data.draw(st.integers(0, last)), data.draw(st.integers(0, 7))
    honest = (folder / SHARD).read_bytes()
    rewrite(folder / SHARD, lambda body: body.__setitem__(offset, body[offset] ^ (1 << bit)))
    try:
        with pytest.raises(DamagedSample):
            epoch(folder)
    finally:
        (folder / SHARD).write_bytes(honest)


def test_bits_that_flip_on_the_way_are_read_once_more(folder, monkeypatch):
    honest = FolderStore.read_ranges
    calls = []

    def first_time_wrong(self, spans):
        calls.append(spans)
        parts = honest(self, spans)
        return [bytes([parts[0][0] ^ 1]) + parts[0][1:], *parts[1:]] if len(calls) == 1 else parts

    monkeypatch.setattr(FolderStore, "read_ranges", first_time_wrong)
    assert len(epoch(folder)) == 9
    assert len(calls) == 3 + 1


def test_a_missing_shard_is_named(folder):
    (folder / SHARD).unlink()
    with pytest.raises(DamagedShard, match=rf"shard {SHARD}.*missing") as raised:
        epoch(folder, error_budget=9)
    assert raised.value.shard == SHARD
    assert [str(fault) for fault in verify(folder).faults] == [f"{SHARD}: it is missing; upload this shard again."]


@pytest.mark.parametrize("change", [flip(200), cut(100), cut(0)])
def test_a_damaged_index_is_named(folder, change):
    rewrite(folder / "shard-000001.npy", change)
    with pytest.raises(DamagedShard, match=r"shard-000001.tar: its index shard-000001.npy is not the one"):
        epoch(folder)
    assert len(verify(folder).faults) == 1


def test_a_missing_index_is_named(folder):
    (folder / "shard-000001.npy").unlink()
    with pytest.raises(DamagedShard, match=r"shard-000001.tar: its index shard-000001.npy is missing"):
        epoch(folder)


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_index_reader(data):
    with pytest.raises(DamagedShard):
        load_index(data, shard=SHARD)


def test_quarantine_leaves_holes_and_tells_of_each_sample_once(folder, index):
    rewrite(folder / SHARD, flip(index[0].offset + 600))
    rewrite(folder / SHARD, flip(index[2].offset + 600))
    steps = list(Stream(url=str(folder), global_batch=4, epochs=2, error_budget=2).steps())
    told = [damage for rank_step in steps for damage in rank_step.damaged]
    assert sum(len(rank_step.samples) for rank_step in steps) == 2 * 7
    assert [rank_step.cursor.position for rank_step in steps] == [4, 8, 0] * 2
    assert sorted((damage.shard, damage.key) for damage in told) == [(SHARD, "face-0003"), (SHARD, "face-0005")]
    assert all("CRC-32C" in damage.reason for damage in told)


def test_a_spent_budget_names_everything(folder, index):
    rewrite(folder / SHARD, cut(0))
    with pytest.raises(BudgetSpent, match=r"error_budget=2 is used up by shard-000001.tar/face-000\d, shard-"):
        epoch(folder, error_budget=2)


def test_damage_survives_the_way_out_of_a_worker_process():
    damage = pickle.loads(pickle.dumps(DamagedSample.at(SHARD, "face-0003", "cut")))
    assert (damage.shard, damage.key, damage.reason) == (SHARD, "face-0003", "cut")
    assert str(DamagedSample(str(damage))) == str(damage)


def test_a_whole_dataset_has_nothing_to_say(folder):
    assert verify(folder).whole


def test_a_stray_shard_is_reported(folder):
    (folder / "shard-000009.tar").write_bytes(b"")
    (fault,) = verify(folder).faults
    assert str(fault).startswith("shard-000009.tar: the manifest does not name it; delete it")


def test_every_error_has_the_one_root():
    assert all(issubclass(error, ShardsError) for error in (DamagedSample, DamagedShard, BudgetSpent))
