"""Tests that each kind of damage is found, named and counted, and that the report says what to do."""

import json
import shutil

import pytest
from emocap_shards.errors import ManifestError
from emocap_shards.index import load_index
from emocap_shards.inspecting.faults import FaultKind
from emocap_shards.inspecting.verify import verify
from emocap_shards.writer import write_shards
from forged import END
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_cases import records
from verify_cases import INDEX, LAST, SHARD, cut, flip, kinds, only, swap


@pytest.fixture
def folder(tmp_path):
    write_shards(records(9), tmp_path, samples_per_shard=3)
    return tmp_path


@pytest.fixture
def slots(folder):
    return list(load_index((folder / INDEX).read_bytes(), shard=SHARD))


def test_a_whole_dataset_is_whole(folder):
    verdict = verify(folder)
    assert verdict.whole
    assert (verdict.samples, verdict.shards, verdict.lost, verdict.faults) == (9, 3, 0, ())
    assert verify(folder, quick=True).whole


@pytest.mark.parametrize(
    ("where", "reason"),
    [("inside", "ends inside a sample"), ("between", "ends between two samples"), ("empty", "ends between two")],
)
def test_a_cut_shard_is_named_with_what_is_lost(folder, slots, where, reason):
    length = {"inside": slots[1].offset + 600, "between": slots[1].offset, "empty": 0}[where]
    cut(folder / SHARD, length)
    verdict = verify(folder)
    size, fault = verdict.faults
    first = 0 if where == "empty" else 1
    assert (size.kind, size.shard) == (FaultKind.SIZE, SHARD)
    assert (fault.kind, fault.shard, fault.key) == (FaultKind.CUT, SHARD, slots[first].key)
    assert reason in fault.reason
    assert verdict.lost == fault.lost == 3 - first
    assert kinds(verify(folder, quick=True)) == {FaultKind.SIZE}


def test_a_shard_cut_after_its_last_sample_lost_none(folder, slots):
    cut(folder / SHARD, slots[2].offset + slots[2].length + 512)
    verdict = verify(folder)
    assert kinds(verdict) == {FaultKind.SIZE, FaultKind.END}
    assert verdict.lost == 0
    assert "512 bytes of zeros" in verdict.faults[-1].reason


@pytest.mark.parametrize("offset", [10, 130, 150])
def test_a_flipped_header_byte_is_one_damaged_header(folder, slots, offset):
    flip(folder / SHARD, slots[1].offset + offset)
    fault = only(verify(folder))
    assert (fault.kind, fault.shard, fault.key, fault.lost) == (FaultKind.HEADER, SHARD, slots[1].key, 1)
    assert "CRC-32C" in fault.reason


@pytest.mark.parametrize("offset", [580, -1])
def test_a_flipped_payload_byte_is_one_changed_sample(folder, slots, offset):
    flip(folder / SHARD, (slots[1].offset if offset > 0 else slots[2].offset) + offset)
    fault = only(verify(folder))
    assert (fault.kind, fault.shard, fault.key, fault.lost) == (FaultKind.BYTES, SHARD, slots[1].key, 1)


def test_a_flipped_byte_of_the_end_is_no_lost_sample(folder):
    flip(folder / SHARD, -1)
    fault = only(verify(folder))
    assert (fault.kind, fault.shard, fault.lost) == (FaultKind.END, SHARD, 0)


def test_swapped_shards_are_recognised_and_cost_all_their_samples(folder):
    swap(folder / SHARD, folder / LAST)
    verdict = verify(folder)
    swapped = [fault for fault in verdict.faults if fault.kind is FaultKind.SWAPPED]
    assert [(fault.shard, fault.reason) for fault in swapped] == [
        (SHARD, f"its bytes are those of {LAST}"),
        (LAST, f"its bytes are those of {SHARD}"),
    ]
    assert verdict.lost == 6
    assert kinds(verdict) <= {FaultKind.SWAPPED, FaultKind.SIZE}


def test_a_missing_shard_is_named_without_a_byte_being_read(folder):
    (folder / SHARD).unlink()
    for quick in (True, False):
        fault = only(verify(folder, quick=quick))
        assert (fault.kind, fault.shard, fault.lost) == (FaultKind.MISSING_SHARD, SHARD, 3)


def test_a_missing_index_is_named_and_its_samples_are_lost(folder):
    (folder / INDEX).unlink()
    for quick in (True, False):
        fault = only(verify(folder, quick=quick))
        assert (fault.kind, fault.shard, fault.lost) == (FaultKind.MISSING_INDEX, SHARD, 3)
        assert INDEX in fault.reason


def test_a_shard_and_its_index_both_missing_are_lost_once(folder):
    (folder / SHARD).unlink()
    (folder / INDEX).unlink()
    verdict = verify(folder)
    assert kinds(verdict) == {FaultKind.MISSING_SHARD, FaultKind.MISSING_INDEX}
    assert verdict.lost == 3


@pytest.mark.parametrize(
    "damage", [lambda path: flip(path, 200), lambda path: cut(path, 100), lambda path: cut(path, 0)]
)
def test_a_damaged_index_is_named(folder, damage):
    damage(folder / INDEX)
    for quick in (True, False):
        fault = only(verify(folder, quick=quick))
        assert (fault.kind, fault.shard, fault.lost) == (FaultKind.INDEX_DIGEST, SHARD, 3)


def test_the_index_of_another_shard_is_recognised(folder):
    shutil.copy(folder / "shard-000002.npy", folder / INDEX)
    fault = only(verify(folder))
    assert (fault.kind, fault.lost) == (FaultKind.INDEX_DIGEST, 3)
    assert fault.reason == f"its index {INDEX} is that of {LAST}"


@pytest.mark.parametrize("name", ["shard-000009.tar", "shard-000009.npy", "more/part.tar"])
def test_a_stray_file_is_named(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    shutil.copy(folder / SHARD, folder / name)
    fault = only(verify(folder))
    assert (fault.kind, fault.shard, fault.lost) == (FaultKind.STRAY, name, 0)


def test_other_files_beside_a_dataset_are_nobodys_business(folder):
    (folder / "README.md").write_text("faces")
    assert verify(folder).whole


def test_a_sample_that_is_twice_in_its_tar_is_found(folder, slots):
    shard = folder / SHARD
    data = shard.read_bytes()
    block = data[slots[1].offset : slots[2].offset]
    shard.write_bytes(data[: -len(END)] + block + END)
    verdict = verify(folder)
    assert kinds(verdict) == {FaultKind.SIZE, FaultKind.END}
    assert "there are bytes that no index names" in verdict.faults[-1].reason


def test_a_manifest_that_is_not_json_is_damage(folder):
    cut(folder / "manifest.json", 100)
    fault = only(verify(folder))
    assert (fault.kind, fault.shard) == (FaultKind.MANIFEST, "manifest.json")


def test_a_manifest_of_a_later_version_is_refused_and_named(folder):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    with pytest.raises(ManifestError, match="schema 99"):
        verify(folder)


def test_a_folder_without_a_manifest_is_not_a_dataset(tmp_path):
    with pytest.raises(ManifestError, match="make one with `emocap pack`"):
        verify(tmp_path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_of_any_file_goes_unseen(folder, data):
    path = data.draw(st.sampled_from(sorted(folder.glob("shard-*"))))
    honest = path.read_bytes()
    offset, bit = data.draw(st.integers(0, len(honest) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(honest[:offset] + bytes([honest[offset] ^ (1 << bit)]) + honest[offset + 1 :])
    try:
        verdict = verify(folder)
        assert not verdict.whole
        assert {fault.shard for fault in verdict.faults} == {f"{path.stem}.tar"}
    finally:
        path.write_bytes(honest)


def test_a_shard_and_its_index_that_both_changed_places_are_told_apart(folder):
    swap(folder / SHARD, folder / LAST)
    swap(folder / INDEX, folder / "shard-000002.npy")
    verdict = verify(folder)
    assert {(fault.kind, fault.shard) for fault in verdict.faults if fault.kind is not FaultKind.SIZE} == {
        (kind, shard) for kind in (FaultKind.SWAPPED, FaultKind.INDEX_DIGEST) for shard in (SHARD, LAST)
    }
    assert verdict.lost == 6
