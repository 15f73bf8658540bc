"""Each kind of damage is found, named, counted, and told what helps."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from emocap_shards.errors import ManifestError, ShardsError, StoreError
from emocap_shards.index import load_index
from emocap_shards.inspecting import verify as module
from emocap_shards.inspecting.faults import CURES, Fault, Kind
from emocap_shards.inspecting.shard_pool import Progress
from emocap_shards.inspecting.tape import Tape
from emocap_shards.inspecting.verify import Verdict, verify
from emocap_shards.store import open_store
from emocap_shards.store.folder import FolderStore
from emocap_shards.writer import write_shards
from forged import ANNOTATION, END, forge, sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_cases import encode, records

FIRST, SHARD, LAST = (f"shard-00000{number}.tar" for number in range(3))
INDEX = "shard-000001.npy"


@pytest.fixture
def folder(tmp_path):
    write_shards(records(9), tmp_path, samples_per_shard=3)
    return tmp_path


@pytest.fixture
def slots(folder):
    return list(load_index((folder / INDEX).read_bytes(), shard=SHARD))


def only(verdict: Verdict) -> Fault:
    (fault,) = verdict.faults
    assert not verdict.whole
    assert verdict.kinds == {fault.kind: 1}
    assert verdict.lost == fault.lost
    assert str(fault).startswith(fault.shard)
    assert str(fault).endswith(f"; {fault.cure}.")
    return fault


def kinds(verdict: Verdict) -> set[Kind]:
    assert set(verdict.kinds) == {fault.kind for fault in verdict.faults}
    return set(verdict.kinds)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


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
    assert (size.kind, size.shard) == (Kind.SIZE, SHARD)
    assert (fault.kind, fault.shard, fault.key) == (Kind.CUT, SHARD, slots[first].key)
    assert reason in fault.reason
    assert verdict.lost == fault.lost == 3 - first
    assert kinds(verify(folder, quick=True)) == {Kind.SIZE}


def test_a_shard_cut_behind_its_last_sample_lost_none(folder, slots):
    cut(folder / SHARD, slots[2].offset + slots[2].length + 512)
    verdict = verify(folder)
    assert kinds(verdict) == {Kind.SIZE, Kind.END}
    assert verdict.lost == 0
    assert "512 bytes of zeros" in verdict.faults[-1].reason


@pytest.mark.parametrize("offset", [10, 130, 150])
def test_a_flipped_header_byte_is_one_damaged_header(folder, slots, offset):
    flip(folder / SHARD, slots[1].offset + offset)
    fault = only(verify(folder))
    assert (fault.kind, fault.shard, fault.key, fault.lost) == (Kind.HEADER, SHARD, slots[1].key, 1)
    assert "CRC-32C" in fault.reason


@pytest.mark.parametrize("offset", [580, -1])
def test_a_flipped_payload_byte_is_one_changed_sample(folder, slots, offset):
    flip(folder / SHARD, (slots[1].offset if offset > 0 else slots[2].offset) + offset)
    fault = only(verify(folder))
    assert (fault.kind, fault.shard, fault.key, fault.lost) == (Kind.BYTES, SHARD, slots[1].key, 1)


def test_a_flipped_byte_of_the_end_is_no_lost_sample(folder):
    flip(folder / SHARD, -1)
    fault = only(verify(folder))
    assert (fault.kind, fault.shard, fault.lost) == (Kind.END, SHARD, 0)


def test_swapped_shards_are_recognised_and_cost_all_their_samples(folder):
    swap(folder / SHARD, folder / LAST)
    verdict = verify(folder)
    swapped = [fault for fault in verdict.faults if fault.kind is Kind.SWAPPED]
    assert [(fault.shard, fault.reason) for fault in swapped] == [
        (SHARD, f"its bytes are those of {LAST}"),
        (LAST, f"its bytes are those of {SHARD}"),
    ]
    assert verdict.lost == 6
    assert kinds(verdict) <= {Kind.SWAPPED, Kind.SIZE}


def test_a_missing_shard_is_named_without_a_byte_being_read(folder):
    (folder / SHARD).unlink()
    for quick in (True, False):
        fault = only(verify(folder, quick=quick))
        assert (fault.kind, fault.shard, fault.lost) == (Kind.MISSING_SHARD, SHARD, 3)


def test_a_missing_index_is_named_and_its_samples_are_lost(folder):
    (folder / INDEX).unlink()
    for quick in (True, False):
        fault = only(verify(folder, quick=quick))
        assert (fault.kind, fault.shard, fault.lost) == (Kind.MISSING_INDEX, SHARD, 3)
        assert INDEX in fault.reason


def test_a_shard_and_its_index_both_missing_are_lost_once(folder):
    (folder / SHARD).unlink()
    (folder / INDEX).unlink()
    verdict = verify(folder)
    assert kinds(verdict) == {Kind.MISSING_SHARD, Kind.MISSING_INDEX}
    assert verdict.lost == 3


@pytest.mark.parametrize(
    "damage", [lambda path: flip(path, 200), lambda path: cut(path, 100), lambda path: cut(path, 0)]
)
def test_a_damaged_index_is_named(folder, damage):
    damage(folder / INDEX)
    for quick in (True, False):
        fault = only(verify(folder, quick=quick))
        assert (fault.kind, fault.shard, fault.lost) == (Kind.INDEX_DIGEST, SHARD, 3)


def test_the_index_of_another_shard_is_recognised(folder):
    shutil.copy(folder / "shard-000002.npy", folder / INDEX)
    fault = only(verify(folder))
    assert (fault.kind, fault.lost) == (Kind.INDEX_DIGEST, 3)
    assert fault.reason == f"its index {INDEX} is that of {LAST}"


@pytest.mark.parametrize("name", ["shard-000009.tar", "shard-000009.npy", "more/part.tar"])
def test_a_stray_file_is_named(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    shutil.copy(folder / SHARD, folder / name)
    fault = only(verify(folder))
    assert (fault.kind, fault.shard, fault.lost) == (Kind.STRAY, name, 0)


def test_other_files_beside_a_dataset_are_nobodys_business(folder):
    (folder / "README.md").write_text("faces")
    assert verify(folder).whole


def test_a_sample_that_stands_twice_in_its_tar_is_found(folder, slots):
    shard = folder / SHARD
    data = shard.read_bytes()
    block = data[slots[1].offset : slots[2].offset]
    shard.write_bytes(data[: -len(END)] + block + END)
    verdict = verify(folder)
    assert kinds(verdict) == {Kind.SIZE, Kind.END}
    assert "stands what no index names" in verdict.faults[-1].reason


def test_a_key_in_two_shards_is_found_though_every_digest_holds(tmp_path):
    forge(tmp_path, [[sample("a"), sample("b")], [sample("c"), sample("b"), sample("a")]])
    for quick in (True, False):
        fault = only(verify(tmp_path, quick=quick))
        assert (fault.kind, fault.shard, fault.key, fault.lost) == (Kind.TWICE, SHARD, "b", 0)
        assert fault.reason == f"this key is in {FIRST} too, and so are 1 more of its keys"


def test_a_key_twice_in_one_shard_is_found(tmp_path):
    forge(tmp_path, [[sample("a"), sample("b"), sample("a")]])
    fault = only(verify(tmp_path))
    assert (fault.kind, fault.key) == (Kind.TWICE, "a")
    assert "in this shard already" in fault.reason


@pytest.mark.parametrize(
    ("members", "kind", "reason"),
    [
        ({"png": encode(1)}, Kind.MEMBERS, "not one image and one annotation"),
        ({"json": ANNOTATION}, Kind.MEMBERS, "not one image and one annotation"),
        ({"png": encode(1), "jpg": encode(1, kind="JPEG"), "json": ANNOTATION}, Kind.MEMBERS, "not one image"),
        ({"png": encode(1), "json": b"{"}, Kind.ANNOTATION, "no JSON"),
        ({"png": encode(1), "json": b'{"caption": {}}'}, Kind.ANNOTATION, '"global"'),
        ({"jpg": encode(1), "json": ANNOTATION}, Kind.IMAGE, "the image is PNG, but its extension is 'jpg'"),
        ({"gif": encode(1), "json": ANNOTATION}, Kind.IMAGE, "its extension is 'gif'"),
        ({"png": encode(1, size=64)[:-3000], "json": ANNOTATION}, Kind.IMAGE, "cannot be decoded"),
        ({"png": b"no image", "json": ANNOTATION}, Kind.IMAGE, "no JPEG, PNG or WEBP"),
    ],
)
def test_a_sample_that_was_packed_wrong_is_found_though_every_digest_holds(tmp_path, members, kind, reason):
    forge(tmp_path, [[sample("a"), sample("b", members)]])
    fault = only(verify(tmp_path))
    assert (fault.kind, fault.key, fault.lost) == (kind, "b", 1)
    assert reason in fault.reason


def test_a_sample_under_another_key_than_its_members_is_found(tmp_path):
    forge(tmp_path, [[("a", sample("b")[1])]])
    fault = only(verify(tmp_path))
    assert (fault.kind, fault.key) == (Kind.MEMBERS, "a")
    assert "bear the key 'b'" in fault.reason


def test_bytes_between_two_samples_are_found(tmp_path):
    forge(tmp_path, [[sample("a"), sample("b")]], between=sample("hidden")[1])
    for quick in (True, False):
        fault = only(verify(tmp_path, quick=quick))
        assert (fault.kind, fault.key) == (Kind.INDEX, "b")


def test_a_shard_without_its_end_blocks_is_found_though_every_digest_holds(tmp_path):
    forge(tmp_path, [[sample("a")]], end=END[:512])
    assert kinds(verify(tmp_path)) == {Kind.INDEX, Kind.END}


def test_further_blocks_of_zeros_are_no_damage(tmp_path):
    assert verify(forge(tmp_path, [[sample("a")]], end=END * 10)).whole


def test_a_manifest_that_is_no_json_is_damage(folder):
    cut(folder / "manifest.json", 100)
    fault = only(verify(folder))
    assert (fault.kind, fault.shard) == (Kind.MANIFEST, "manifest.json")


def test_a_manifest_of_a_later_version_is_refused_and_named(folder):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    with pytest.raises(ManifestError, match="schema 99"):
        verify(folder)


def test_a_folder_without_a_manifest_is_no_dataset(tmp_path):
    with pytest.raises(ManifestError, match="make one with `emocap pack`"):
        verify(tmp_path)


def test_a_shard_that_the_store_does_not_give_is_a_fault_and_the_others_are_still_checked(folder, monkeypatch):
    honest = FolderStore.read_range

    def refused(self, path, start, end):
        if path == FIRST:
            raise StoreError("no permission.")
        return honest(self, path, start, end)

    monkeypatch.setattr(FolderStore, "read_range", refused)
    flip(folder / LAST, 600)
    verdict = verify(folder)
    assert [(fault.kind, fault.shard) for fault in verdict.faults] == [(Kind.UNREADABLE, FIRST), (Kind.BYTES, LAST)]
    assert verdict.lost == 4


def test_reads_that_differ_are_blamed_on_the_way(folder, monkeypatch):
    honest = FolderStore.read_range
    calls = []

    def first_time_wrong(self, path, start, end):
        part = bytearray(honest(self, path, start, end))
        calls.append(path)
        part[600] ^= len(calls) == 1
        return bytes(part)

    monkeypatch.setattr(FolderStore, "read_range", first_time_wrong)
    fault = only(verify(folder))
    assert (fault.kind, fault.shard, fault.lost) == (Kind.UNSTEADY, FIRST, 0)


def test_every_fault_is_told_when_it_is_found_and_many_are_counted_but_not_kept(folder, monkeypatch):
    monkeypatch.setattr(module, "MOST_FAULTS", 2)
    for name in (FIRST, SHARD, LAST):
        (folder / name).unlink()
    told: list[Fault] = []
    verdict = verify(folder, on_fault=told.append)
    assert (len(told), len(verdict.faults), verdict.kinds) == (3, 2, {Kind.MISSING_SHARD: 3})


def test_progress_ends_with_every_byte(folder):
    told: list[Progress] = []
    verdict = verify(folder, on_progress=told.append)
    assert told[-1] == Progress(3, 3, verdict.bytes, verdict.bytes)
    verify(folder, quick=True, on_progress=told.append)
    assert told[-1] == Progress(3, 3, 0, 0)


def test_processes_find_what_one_process_finds_and_in_the_same_order(folder):
    flip(folder / FIRST, 600)
    swap(folder / SHARD, folder / LAST)
    told: list[Progress] = []
    alone, together = verify(folder, processes=1), verify(folder, processes=2, on_progress=told.append)
    assert together.faults == alone.faults
    assert told[-1].bytes == alone.bytes


def test_a_process_that_dies_is_an_error_and_no_whole_dataset(folder, monkeypatch):
    monkeypatch.setattr(module, "open_store", lambda url: _Dying(str(url)))
    with pytest.raises(ShardsError, match="died"):
        verify(folder, processes=2)


class _Dying(FolderStore):
    """Ends the process that reads a shard."""

    def read_range(self, *_: object) -> bytes:
        os._exit(1)


def test_an_object_store_is_verified_too(tmp_path):
    url = f"memory://{tmp_path.name}-verify"
    write_shards(records(5), url, samples_per_shard=3)
    assert verify(url).whole
    store = open_store(url)
    store.put(FIRST, store.read(FIRST)[:700])
    assert kinds(verify(url)) == {Kind.SIZE, Kind.CUT}


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


@given(range_bytes=st.integers(1, 5000), steps=st.lists(st.integers(0, 700), max_size=12), back=st.booleans())
def test_a_tape_gives_the_same_bytes_in_ranges_of_any_size(tmp_path_factory, range_bytes, steps, back):
    data = encode(3, size=32)
    root = tmp_path_factory.mktemp("tape")
    (root / "file").write_bytes(data)
    told: list[int] = []
    tape = Tape(open_store(root), "file", told.append, range_bytes=range_bytes)
    position = 0
    for step in steps:
        assert tape.take(position, position + step) == data[position : position + step]
        position += step
    if back:
        assert tape.take(3, 40) == data[3:40]
        position = max(position, 40)
    assert b"".join(tape.rest(position)) == data[position:]
    assert tape.sha256() == hashlib.sha256(data).hexdigest()
    assert sum(told) == tape.position == len(data)


def test_a_tape_holds_one_range_and_one_sample_at_most(folder, slots):
    tape = Tape(open_store(folder), SHARD, lambda _: None, range_bytes=64)
    for slot in slots:
        tape.take(slot.offset, slot.offset + slot.length)
        assert len(tape._held) < slot.length + 2 * 64


def test_every_kind_has_a_cure():
    assert set(CURES) == set(Kind)


def test_a_verdict_as_json_is_plain(folder):
    (folder / SHARD).unlink()
    values = json.loads(json.dumps(verify(folder).to_json()))
    assert values["whole"] is False
    assert values["kinds"] == {"missing shard": 1}
    assert values["lost"] == 3
    assert values["faults"][0]["shard"] == SHARD
    assert set(values["faults"][0]) == {"kind", "shard", "key", "reason", "cure"}
